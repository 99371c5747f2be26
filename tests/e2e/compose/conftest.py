"""The stack of docker-compose.yml, for real: a Docker daemon, the images, the containers. Outside of `make test`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_stack import ROOT, Report, Stack
from docker_daemon import Docker, docker_daemon
from worldtree.cli.child import Child

OUT = ROOT / "out/compose"

# `make test-compose` says 1; `keep` leaves the built images for the next run
ASKED = os.environ.get("WORLDTREE_COMPOSE", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not ASKED and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="takes minutes and a Docker daemon: make test-compose"))


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    report = Report()
    yield report
    (OUT / "report.txt").write_text("\n".join(report.lines) + "\n")


@pytest.fixture(scope="session")
def docker(report: Report) -> Iterator[Docker]:
    with docker_daemon(OUT / "docker", keep=ASKED == "keep") as docker:
        yield docker


@pytest.fixture(scope="session")
def built(docker: Docker, report: Report) -> Stack:
    """The images, made of what lies in out/ and of nothing else."""
    for base in ("debian", "infrastructure"):
        if not docker("images", "--quiet", f"local/{base}"):  # a second import would be another image to the builder
            docker("import", str(OUT / f"{base}.tar"), f"local/{base}")
    stack = Stack(docker, report)
    with report.timed("building the images of the services"):
        stack.compose("build")
    with report.timed("building the image of the SDK"):
        arguments = stack.build_arguments()
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        command = [
            "docker",
            "build",
            "-f",
            "services/Dockerfile",
            "--target",
            "sdk",
            "-t",
            "worldtree-sdk",
            *given,
            ".",
        ]
        docker.run(*command, cwd=ROOT)
    return stack


@pytest.fixture(scope="session")
def stack(built: Stack, report: Report) -> Iterator[Stack]:
    try:
        with report.timed("docker-compose up, until every container is healthy"):
            built.compose("up", "--detach", "--no-build")
            built.wait_healthy(*built.containers())
        yield built
    finally:
        (OUT / "containers.log").write_text(built.compose("logs", "--timestamps"))
        with report.timed("docker-compose down"):
            built.compose("down", "--volumes")
    assert built.docker("ps", "--all", "--quiet") == ""
    assert built.docker("volume", "ls", "--quiet") == ""


@pytest.fixture(scope="session")
def right() -> Iterator[str]:
    """Where a video service listens that shares nothing with the stack: what it makes is what must be seen."""
    child = Child(
        "video", ["--port", "0", "--metrics-port", "0", "--models", str(ROOT / "models")], on_log=lambda _: None
    )
    try:
        child.wait_ready(120.0)
        yield child.grpc_address
    finally:
        child.terminate()
        child.wait(30.0)
        child.kill()
