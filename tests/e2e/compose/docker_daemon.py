"""A Docker daemon of our own, in the namespaces that `make test-compose` starts us in; all of it ends with them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 3600.0  # all images, on a machine that is busy
CGROUP = "worldtree-compose"


class Docker:
    """Its command line, and docker-compose's, where a command that fails fails the test with what it said."""

    def __init__(self, socket: Path) -> None:
        self.environment: Mapping[str, str] = {
            **os.environ,
            "DOCKER_HOST": f"unix://{socket}",
            "COMPOSE_PROJECT_NAME": "worldtree",
            # the builder that is in the daemon: Debian packages no other
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
        }

    def run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout.strip()

    def __call__(self, *arguments: str) -> str:
        return self.run("docker", *arguments)

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self("inspect", name))
        return dict(found)


@contextmanager
def docker_daemon(folder: Path, *, keep: bool) -> Iterator[Docker]:
    """`keep`: images stay in the folder, for a next run that builds less."""
    if len(Path("/proc/net/route").read_text().splitlines()) > 1:
        pytest.fail("this network is the machine's, and a daemon would change it: run `make test-compose`")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    # what a daemon leaves in /run is seen by nobody else
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    socket = Path("/run/worldtree.sock")
    command = ["dockerd", "--data-root", folder, "--exec-root", "/run/worldtree", "--host", f"unix://{socket}"]
    command += ["--pidfile", "/run/worldtree.pid", "--cgroup-parent", f"/{CGROUP}"]
    with (folder.parent / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        docker = Docker(socket)
        _wait_until_it_answers(docker, daemon, folder.parent / "dockerd.log")
        yield docker
    finally:
        daemon.terminate()
        try:
            daemon.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        _remove_cgroups()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(docker: Docker, daemon: subprocess.Popen[bytes], log: Path) -> None:
    ends_s = time.monotonic() + START_TIMEOUT_S
    while subprocess.run(["docker", "info"], env=docker.environment, capture_output=True).returncode != 0:
        if daemon.poll() is not None or time.monotonic() > ends_s:
            pytest.fail(f"dockerd does not answer:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


def _remove_cgroups() -> None:
    """They are the one thing that is not in a namespace. Empty ones remain, deepest first."""
    for top in [Path("/sys/fs/cgroup") / CGROUP, *Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")]:
        for folder, _, _ in os.walk(top, topdown=False):
            Path(folder).rmdir()
