"""`worldtree up` and `worldtree demo` with the real services: ready, ended, and never an orphan."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import worldtree
from PIL import Image

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-P", "-m", "worldtree.cli"]
READY = re.compile(r"worldtree ready grpc=(127\.0\.0\.1:\d+) metrics=(127\.0\.0\.1:\d+)\n")

pytestmark = pytest.mark.skipif(
    not (ROOT / "models/minigrid").is_dir(), reason="the shipped world is not in this checkout"
)


class Up:
    """A running `worldtree up` on free ports."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--port", "0", *arguments],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = READY.fullmatch(line)
        assert match, f"{line!r}; {log.read_text()[-2000:]}"
        self.address = match[1]
        self.children = children_of(self.process.pid)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(40)

    def rest_of_stdout(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()


def children_of(pid: int) -> dict[str, int]:
    """The services among a process's children, by name."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        # Before its exec a child is still our launcher, whose last words are the same.
        found.update({word: int(child) for word in words if word.startswith("worldtree_")})
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if running(pid)]}"
        time.sleep(0.05)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    started = Up(tmp_path / "up.log")
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait()
    wait_gone(list(started.children.values()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_serves_says_so_in_one_line_and_ends_well(up: Up, number: signal.Signals) -> None:
    assert sorted(up.children) == [
        "worldtree_gateway",
        "worldtree_multitask",
        "worldtree_navigator",
        "worldtree_reward",
        "worldtree_video",
    ]
    with worldtree.Client(up.address) as client:
        models = client.models()
        experts = client.multitask.tasks()
        rubrics = client.reward.rubrics()
        of_the_navigator = ["action-only", "joint", "mazes", "reactive"]  # which lists planners, each by what it does
        names = sorted([*(model.name for model in models), *experts.models, *rubrics.models, *of_the_navigator])
        assert names == sorted(path.name for path in (ROOT / "models").iterdir())
        pictures = np.zeros((2, experts.height_px, experts.width_px, 3), np.uint8)
        assert len(client.multitask.predict(pictures)[experts.tasks[0].name].labels) == 2
        assert client.reward.score((pictures, ["forward"]), goal=rubrics.categories[0].example).category is not None
        for model in models:
            with client.world(model, start=model.starts[0], seed=1) as world:
                shape = (model.frames_per_chunk, model.height_px, model.width_px, 3)
                assert world.step(model.actions[0]).shape == shape
        with client.world("minigrid", start="four-rooms") as world:
            found = client.navigator.imagine(world, goal=rubrics.categories[0].example, candidates=4, horizon=2)
            assert (found.ending, found.best.chunk_count) == ("complete", 2)
    openpi = re.search(r"robots that speak openpi: ws://(127\.0\.0\.1:\d+)\n", up.log.read_text())
    assert openpi is not None
    with urllib.request.urlopen(f"http://{openpi[1]}/healthz", timeout=5) as answer:
        assert answer.read() == b"OK\n"
    assert up.end(number) == 0
    wait_gone(list(up.children.values()))
    assert up.rest_of_stdout() == ""
    assert "Traceback" not in up.log.read_text()


def test_killing_up_outright_leaves_no_orphan(up: Up) -> None:
    assert up.end(signal.SIGKILL) == -signal.SIGKILL
    wait_gone(list(up.children.values()))


@pytest.mark.parametrize(
    "service",
    [
        "worldtree_video",
        "worldtree_multitask",
        "worldtree_reward",
        "worldtree_navigator",
        "worldtree_gateway",
    ],
)
def test_a_service_that_dies_brings_up_down_with_its_name_and_code(up: Up, service: str) -> None:
    os.kill(up.children[service], signal.SIGKILL)
    assert up.process.wait(40) == 1
    wait_gone(list(up.children.values()))
    log = up.log.read_text()
    assert f"{service.removeprefix('worldtree_')} ended with code -9 (UNAVAILABLE, SERVICE_ENDED)" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("delay_s", [0.3, 0.8])
def test_up_that_is_ended_while_it_starts_leaves_no_orphan(delay_s: float) -> None:
    process = subprocess.Popen(
        [*COMMAND, "up", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 20
    while not (started := children_of(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay_s)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    wait_gone(list(started.values()))
    process.communicate()


def test_a_taken_port_is_told_by_its_number(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "up", "--port", str(port)], cwd=ROOT, capture_output=True, text=True, timeout=90
        )
    assert done.returncode == 1
    assert str(port) in done.stderr.split("SERVICE_ENDED")[1]


def test_a_service_that_cannot_start_is_told_with_its_last_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "up", "--port", "0", "--models", str(tmp_path / "nowhere")],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert "video ended with code" in done.stderr
    assert "nowhere" in done.stderr.split("SERVICE_ENDED")[1]


def test_serve_becomes_the_service() -> None:
    done = subprocess.run(
        [*COMMAND, "serve", "video", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--metrics-port" in done.stdout
    assert subprocess.run([*COMMAND, "serve", "nonsense"], capture_output=True, timeout=60).returncode == 2


def test_the_demo_keeps_every_promise_and_leaves_pictures(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--out", str(tmp_path), "--json"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert len(report["checks"]) >= 10
    assert all(report["checks"].values()), report["checks"]
    assert report["chunk_count"] > 40
    with Image.open(tmp_path / "world_tree.png") as tree:
        assert tree.width > 1500
        assert len(np.unique(np.asarray(tree).reshape(-1, 3), axis=0)) > 50
    with av.open(str(tmp_path / "demo.mp4")) as film:
        images = [image.to_ndarray(format="rgb24") for image in film.decode(video=0)]
    assert len(images) > 60
    assert any((first != last).any() for first, last in pairwise(images))


def test_top_shows_the_sessions_of_a_real_server(up: Up) -> None:
    with worldtree.Client(up.address) as client:
        world = client.world("minigrid", start="four-rooms", seed=7)
        world.step(["left", "forward"])
        children = world.fork(3)
        children[0].step("right")
        done = subprocess.run(
            [*COMMAND, "top", "--once", "--json", "--address", up.address],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        (reading,) = json.loads(done.stdout)
        (model,) = [each for each in reading["status"]["models"] if each["name"] == "minigrid"]
        sessions = {each["session"]["id"]: each for each in model["sessions"]}
        assert set(sessions) == {world.id, *(child.id for child in children)}
        assert model["session_count"] == 4
        sharing = {each["session"]: each["block_count"] for each in sessions[world.id]["sharing"]}
        assert set(sharing) == {child.id for child in children}
        assert all(count == sessions[world.id]["session"]["block_count"] for count in sharing.values())
        pool = next(tier for tier in model["tiers"] if (tier["name"], tier["storage"]) == ("pool", "fp32"))
        assert pool["held_block_count"] == sessions[world.id]["session"]["block_count"] + 1
        assert pool["shared_block_count"] == sessions[world.id]["session"]["block_count"]
        for each in (world, *children):
            each.close()
    text = subprocess.run(
        [*COMMAND, "top", "--once", "--address", up.address],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert "minigrid/1  0 sessions" in text


def test_a_world_outlives_up_in_its_journal_folder(tmp_path: Path) -> None:
    arguments = ("--journal-folder", str(tmp_path / "journal"))
    first = Up(tmp_path / "first.log", *arguments)
    with worldtree.Client(first.address) as client:
        world = client.world("minigrid", start="four-rooms", seed=7)
        world.step(["left", "forward"])
        twin = client.world("minigrid", start="four-rooms", seed=7)
        expected = twin.step(["left", "forward", "right"])[-1:]
    assert first.end(signal.SIGTERM) == 0
    second = Up(tmp_path / "second.log", *arguments)
    try:
        with worldtree.Client(second.address) as client:
            again = client.session(world.id)
            assert again.chunk_index == 2
            np.testing.assert_array_equal(again.step("right"), expected)
    finally:
        assert second.end(signal.SIGTERM) == 0
