"""`worldtree top` as an operator runs it: once, into a pipe, and live in a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import worldtree
from worldtree.video.v1 import video_generator_pb2 as pb

COMMAND = [sys.executable, "-P", "-m", "worldtree.cli", "top"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(echo: Any) -> Run:
    def run(*arguments: str, columns: int | None = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment(echo.address, columns),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def environment(address: str, columns: int | None = None) -> dict[str, str]:
    variables = {**os.environ, "WORLDTREE_ADDRESS": address, "NO_COLOR": "1", "TERM": "xterm-256color"}
    variables.pop("COLUMNS", None)
    return variables if columns is None else {**variables, "COLUMNS": str(columns)}


@pytest.fixture
def family(echo: Any) -> Iterator[list[worldtree.World]]:
    """A world of 3 chunks and two children that went on by a chunk; the second of them is playing."""
    with worldtree.Client(echo.address) as client:
        world = client.world("echo", start="four-rooms", seed=7)
        world.step(["left"] * 3)
        children = world.fork(2)
        for child in children:
            child.step("right")
        live = worldtree.LiveActions()
        play = children[1].play(live)
        live.put("left")
        next(play)
        yield [world, *children]
        play.close()


def test_once_as_json_is_what_each_replica_says(run: Run, echo: Any, family: list[worldtree.World]) -> None:
    (reading,) = json.loads(run("--once", "--json").stdout)
    assert reading["error"] is None
    status = reading["status"]
    assert (reading["replica"], status["replica"], status["draining"]) == ("echo", "echo", False)
    (model,) = status["models"]
    assert [each["session"]["id"] for each in model["sessions"]] == [world.id for world in family]
    assert [each["call"] for each in model["sessions"]] == [None, None, "Play"]
    assert model["sessions"][0]["sharing"][0] == {"session": family[1].id, "block_count": 4}
    assert model["plays"][0]["missed_count"] == 2
    assert (model["tiers"][0]["name"], model["tiers"][0]["storage"]) == ("pool", "fp32")
    assert len(model["ticks"]) == 64
    echo.servicer.other_replicas = ["echo-2"]
    assert [each["replica"] for each in json.loads(run("--once", "--json").stdout)] == ["echo", "echo-2"]
    (reading,) = json.loads(run("--once", "--json", "--replica", "echo-2", "--sessions", "1").stdout)
    assert reading["status"]["models"][0]["sessions"] == []


def test_once_shows_tiers_ticks_plays_and_who_shares_with_whom(
    run: Run, echo: Any, family: list[worldtree.World]
) -> None:
    echo.servicer.sessions[family[0].id].rest = pb.Session.STATE_SPILLED
    echo.servicer.sessions[family[1].id].journaled = False
    shown = run("--once").stdout
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert "echo up 1 h 01 min" in shown
    assert "3 sessions (1 busy, 1 idle, 1 spilled)" in shown
    assert re.search(
        r"pool fp32  [█▓▒·]{32}  \d+ of 64 free · █ \d+ held \(\d shared\) ▓ 2 in flight ▒ 5 cached", shown
    )
    assert "25 % of the engine promised to 1 play" in lines["load"]
    assert lines["bulk"].startswith("bulk of")
    assert "█" * 64 in shown
    assert "anonymous 7 chunks (1 waiting)" in lines["bulk"]
    assert "spilled" in lines[family[0].id]
    assert "none" in lines[family[1].id]
    assert "Play" in lines[family[2].id]
    assert f"{family[1].id.partition('.')[0]}:4" in lines[family[0].id]
    assert re.search(rf"{family[2].id} +10 +-30 ms +9 +2 +1", shown)


@pytest.mark.parametrize("columns", [30, 59, 80, 109, 200, None])
def test_a_page_is_as_wide_as_it_may_be_and_names_the_sessions(
    run: Run, family: list[worldtree.World], columns: int | None
) -> None:
    done = run("--once", columns=columns)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= (columns or 160)
    for world in family:
        assert world.id in done.stdout


def test_a_replica_that_does_not_answer_is_shown_beside_the_one_that_does(run: Run, echo: Any) -> None:
    echo.servicer.other_replicas = ["gone"]
    echo.servicer.gone = "gone"
    done = run("--once")
    assert done.returncode == 0
    assert "gone does not answer" in done.stdout
    assert "echo up 1 h 01 min" in done.stdout


def test_what_cannot_be_looked_at_once_is_one_clear_line(run: Run) -> None:
    for arguments, words in (
        (["--once", "--address", "127.0.0.1:1"], "worldtree up"),
        (["--once", "--json", "--replica", "nobody"], "no replica nobody"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_picture_of_the_page(run: Run, family: list[worldtree.World], tmp_path: Path) -> None:
    path = tmp_path / "top.svg"
    assert run("--svg", str(path)).returncode == 0
    picture = path.read_text()
    assert picture.startswith("<svg")
    assert family[0].id in picture
    assert "127.0.0.1" not in picture, "a port of the moment says nothing"
    assert "url(http" not in picture, "a picture loads nothing from anywhere"


def test_json_into_a_pipe_is_a_line_each_interval_and_goes_on_when_the_server_does(
    echo: Any, family: list[worldtree.World]
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--json", "--interval", "0.1"], env=environment(echo.address), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())[0]["replica"] == "echo"
        echo.servicer.fail("Introspect", grpc.StatusCode.UNAVAILABLE, times=5)
        lines = [json.loads(process.stdout.readline())[0] for _ in range(8)]
        assert any("UNAVAILABLE" in line["error"] for line in lines if line["error"])
        assert lines[-1]["status"] is not None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


class Screen:
    """`worldtree top` in a pseudo-terminal."""

    def __init__(self, address: str, *, columns: int = 100, rows: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (rows, columns))
        self.before = termios.tcgetattr(self.slave)
        self.seen = ""
        self.process = subprocess.Popen(
            [*COMMAND, "--interval", "0.2"],
            env=environment(address),
            stdin=self.slave, stdout=self.slave, stderr=self.slave,
        )  # fmt: skip

    def wait_for(self, text: str, *, anew: bool = False) -> None:
        if anew:
            self.seen = ""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen[-3000:]
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def end(self) -> int:
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
        while select.select([self.master], [], [], 0.05)[0]:
            self.seen += os.read(self.master, 65536).decode(errors="replace")
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("how", ["q", signal.SIGINT, signal.SIGTERM])
def test_live_it_follows_the_server_and_leaves_the_terminal_as_it_was(
    echo: Any, family: list[worldtree.World], how: str | signal.Signals
) -> None:
    screen = Screen(echo.address)
    try:
        screen.wait_for("3 sessions (1 busy, 2 idle)")
        family[0].fork(20)
        screen.wait_for("23 sessions (1 busy, 22 idle)")
        screen.wait_for("more sessions")  # 24 rows do not hold them all
        echo.servicer.fail("Introspect", grpc.StatusCode.UNAVAILABLE, "out for lunch")
        screen.wait_for("out for lunch")
        screen.wait_for("trying again every 0.2 s")
        echo.servicer.faults.clear()
        screen.wait_for("23 sessions", anew=True)
        if isinstance(how, str):
            screen.press(how)
        else:
            screen.process.send_signal(how)
        assert screen.end() == 0
        assert screen.seen.endswith("\x1b[?25h\x1b[?1049l"), "the cursor is back, the alternate screen is left"
        assert "Traceback" not in screen.seen
        assert termios.tcgetattr(screen.slave) == screen.before
    finally:
        screen.close()


def test_live_it_waits_for_a_server_that_is_not_there_yet() -> None:
    screen = Screen("127.0.0.1:1")
    try:
        screen.wait_for("CONNECTION_FAILED")
        screen.wait_for("trying again")
        screen.press("q")
        assert screen.end() == 0
    finally:
        screen.close()
