"""The real processes on free ports: the services with the shipped models, and a gateway before them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from worldtree.cli.child import Child

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """HOST:PORT of each service's gRPC, and of its /healthz."""

    video: str
    gateway: str
    http: dict[str, str]


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    children: list[Child] = []

    def start(service: str, *arguments: str) -> Child:
        logged: list[str] = []  # a service that fails to start brings its last lines along
        children.append(Child(service, ["--port", "0", "--metrics-port", "0", *arguments], on_log=logged.append))
        children[-1].wait_ready(READY_TIMEOUT_S)
        return children[-1]

    try:
        video = start("video", "--models", str(ROOT / "models"))
        multitask = start("multitask", "--models", str(ROOT / "models"))
        reward = start("reward", "--models", str(ROOT / "models"))
        behind = {"--video": video, "--multitask": multitask, "--reward": reward}
        gateway = start("gateway", *(word for flag, each in behind.items() for word in (flag, each.grpc_address)))
        http = {each.service: each.metrics_address for each in (*behind.values(), gateway)}
        yield Deployment(video.grpc_address, gateway.grpc_address, http)
    finally:
        for child in reversed(children):
            child.terminate()
            child.wait(STOP_TIMEOUT_S)
            child.kill()
