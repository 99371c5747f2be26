"""The real processes on free ports: a video service with the shipped world, and a gateway before it."""

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
    """HOST:PORT of each service's gRPC."""

    video: str
    gateway: str


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    children: list[Child] = []

    def start(service: str, *arguments: str) -> str:
        logged: list[str] = []  # a service that fails to start brings its last lines along
        children.append(Child(service, ["--port", "0", "--metrics-port", "0", *arguments], on_log=logged.append))
        children[-1].wait_ready(READY_TIMEOUT_S)
        return children[-1].grpc_address

    try:
        video = start("video", "--models", str(ROOT / "models"))
        yield Deployment(video, start("gateway", "--video", video))
    finally:
        for child in reversed(children):
            child.terminate()
            child.wait(STOP_TIMEOUT_S)
            child.kill()
