"""The containers of docker-compose.yml, and what took how long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import worldtree
import yaml
from docker_daemon import Docker

ROOT = Path(__file__).parents[3]
OVERRIDE = Path(__file__).with_name("override.yml")
HEALTHY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30


@dataclass
class Report:
    """What took how long, told as it happens and all of it at the end."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(f"compose: {line}", flush=True)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begun_s = time.monotonic()
        yield
        self.say(f"{what}: {time.monotonic() - begun_s:.1f} s")


class Stack:
    """The containers of docker-compose.yml, and what befalls them."""

    def __init__(self, docker: Docker, report: Report) -> None:
        self.docker = docker
        self.report = report

    def compose(self, *arguments: str) -> str:
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(OVERRIDE))
        return self.docker.run("docker-compose", "--ansi", "never", *files, *arguments, cwd=ROOT)

    def containers(self, service: str = "") -> list[str]:
        """Their names, the oldest first."""
        wanted = (
            f"label=com.docker.compose.service={service}" if service else "label=com.docker.compose.project=worldtree"
        )
        return sorted(self.docker("ps", "--all", "--filter", wanted, "--format", "{{.Names}}").split())

    def build_arguments(self) -> dict[str, str]:
        """Those of the override."""
        return dict(yaml.safe_load(OVERRIDE.read_text())["x-build"]["args"])

    def home_of(self, session: str) -> str:
        """The container where a session lives, which has the replica that the session's id ends in."""
        for container in self.containers("video"):
            with worldtree.Client(f"{self.address_of(container)}:7110") as client:
                if session.rpartition(".")[2] in client.replicas():
                    return container
        pytest.fail(f"{session} lives nowhere")

    def doors(self) -> list[str]:
        """Two ways to the balancer. gRPC makes a connection for each, so that both gateways get one."""
        (balancer,) = self.containers("balancer")
        return ["127.0.0.1:7070", f"{self.address_of(balancer)}:7070"]

    def restart(self, container: str) -> None:
        """As an operator would: it is told to stop, has time to, and comes back."""
        self.docker("restart", "--time", str(STOP_TIMEOUT_S), container)
        self.wait_healthy(container)
        self.wait_known()

    def wait_known(self) -> None:
        """Each gateway reaches as many video replicas as there are."""
        expected = len(self.containers("video"))
        ends_s = time.monotonic() + HEALTHY_TIMEOUT_S
        for gateway in self.containers("gateway"):
            with worldtree.Client(f"{self.address_of(gateway)}:7070") as client:
                while (up := replicas_up(client)) != expected:
                    if time.monotonic() > ends_s:
                        pytest.fail(f"{gateway} reaches {up} of {expected} video replicas")
                    time.sleep(0.2)

    def health(self, container: str) -> str:
        state = self.docker.inspect(container)["State"]
        return str(state["Health"]["Status"] if state["Running"] else state["Status"])

    def wait_healthy(self, *containers: str) -> None:
        ends_s = time.monotonic() + HEALTHY_TIMEOUT_S
        for container in containers:
            while (health := self.health(container)) != "healthy":
                if time.monotonic() > ends_s:
                    pytest.fail(f"{container} is {health}:\n{self.docker('logs', '--tail', '40', container)}")
                time.sleep(0.3)

    def address_of(self, container: str) -> str:
        """Its IP address in the network inside."""
        return str(self.docker.inspect(container)["NetworkSettings"]["Networks"]["worldtree_inside"]["IPAddress"])


def replicas_up(client: worldtree.Client) -> int:
    up_count = 0
    for name in client.replicas():
        try:
            client.introspect(name)
        except (worldtree.Unavailable, worldtree.NotFound):
            continue
        up_count += 1
    return up_count
