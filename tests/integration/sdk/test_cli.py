"""The `worldtree` command as a user runs it: a process of its own, against a real server."""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from PIL import Image
from worldtree.video.v1 import video_generator_pb2 as pb

COMMAND = [sys.executable, "-P", "-m", "worldtree.cli"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(echo: Any, tmp_path: Path) -> Run:
    def run(*arguments: str, columns: int | None = 160, **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "WORLDTREE_ADDRESS": echo.address, "NO_COLOR": "1"}
        environment.pop("COLUMNS", None)
        if columns is not None:
            environment["COLUMNS"] = str(columns)
        return subprocess.run(
            [*COMMAND, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, **more
        )

    return run


@pytest.mark.parametrize(
    "command",
    ["", "up", "serve", "demo", "play", "generate", "rollout", "models", "sessions", "sessions list", "top", "doctor"]
    + ["keys", "keys create", "cache", "cache purge"]
    + [
        f"merge {name}".rstrip()
        for name in ("", "create", "list", "show", "predict", "pareto", "plot", "tasks", "methods")
    ],
)
def test_help_of_each_command_says_what_it_does(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert len(done.stdout.splitlines()) > 6


def test_models(run: Run) -> None:
    done = run("models")
    assert "four-rooms" in done.stdout
    assert "2 (default)" in done.stdout
    (model,) = json.loads(run("models", "--json").stdout)
    assert model["name"] == "echo"
    assert model["starts"] == ["four-rooms"]
    assert "int8: 0.2812 KiB a block, 227 blocks" in done.stdout
    assert "surprise" in done.stdout


def test_generate_writes_what_was_asked_for(run: Run, tmp_path: Path) -> None:
    done = run("generate", "echo", "--actions", "left*3,2", "--out", "deep/clip.mp4", "--scale", "4", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["frame_count"], answer["start"]) == (4, "four-rooms")
    with av.open(str(tmp_path / answer["path"])) as film:
        assert [(image.width, image.height) for image in film.decode(video=0)] == [(32, 32)] * 5
    assert "4 frames" in run("generate", "echo", "--actions", "left*4", "-o", "clip.gif").stdout
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.n_frames == 5


def test_a_prompt_takes_the_place_of_a_start_and_what_it_ignores_is_told(run: Run, tmp_path: Path, echo: Any) -> None:
    arguments = ("generate", "echo", "--prompt", "a red dragon", "--out", "clip.png")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "from 'a red dragon'" in done.stdout
    assert done.stderr == "ignores dragon\n"
    assert echo.servicer.requests["Generate"].origin.start == ""
    answer = json.loads(run(*arguments, "--json").stdout)
    assert (answer["start"], answer["prompt"], answer["warnings"]) == (None, "a red dragon", ["ignores dragon"])
    assert run("rollout", "echo", "--prompt", "dragon", "-s", "left").stderr == "ignores dragon\n"
    assert "up to 4 of the words a, red, door" in run("models").stdout
    refused = run(*arguments, "--start", "four-rooms")
    assert refused.returncode == 1
    assert "--start and --prompt exclude each other" in refused.stderr


def test_rollout_counts_shared_prefixes_once_and_leaves_nothing_behind(run: Run, tmp_path: Path, echo: Any) -> None:
    done = run("rollout", "echo", "-s", "left*3", "-s", "left,right", "--out", "sheet.png", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["node_count"], report["chunk_count"]) == (4, 5)
    assert Image.open(tmp_path / "sheet.png").width > 400
    assert echo.servicer.sessions == {}
    table = run("rollout", "echo", "--random", "3", "--horizon", "2").stdout
    assert "6 chunks in 3 futures" in table


def test_sessions_list_get_and_delete(run: Run, echo: Any) -> None:
    import worldtree

    with worldtree.Client(echo.address) as client:
        world = client.world("echo", start="four-rooms", seed=7)
        world.step("left")
    assert [session["id"] for session in json.loads(run("sessions", "list", "--json").stdout)] == [world.id]
    assert world.id in run("sessions", "list").stdout
    assert json.loads(run("sessions", "get", world.id, "--json").stdout)["chunk_index"] == 1
    assert world.state_hash in run("sessions", "get", world.id).stdout
    assert "it outlives its replica" in run("sessions", "get", world.id).stdout
    echo.servicer.sessions[world.id].rest = pb.Session.STATE_SPILLED
    echo.servicer.sessions[world.id].journaled = False
    (row,) = [line for line in run("sessions", "list").stdout.splitlines() if world.id in line]
    assert "spilled" in row
    assert "none" in row
    assert run("sessions", "delete", world.id).returncode == 0
    assert echo.servicer.sessions == {}


@pytest.mark.parametrize("columns", [60, None])
def test_ids_are_whole_in_a_narrow_terminal_and_in_a_pipe(run: Run, echo: Any, columns: int | None) -> None:
    import worldtree

    with worldtree.Client(echo.address) as client:
        world = client.world("echo", start="four-rooms")
        child = world.fork()
    listed = run("sessions", "list", columns=columns).stdout
    assert world.id in listed
    assert child.id in listed
    if columns is None:
        assert "four-rooms" in listed
        assert world.state_hash in run("sessions", "get", world.id, columns=columns).stdout


def test_brackets_in_names_are_shown_as_they_are(run: Run, tmp_path: Path) -> None:
    (tmp_path / "[bold]").mkdir()
    assert "[bold]/clip.gif" in run("generate", "echo", "-o", "[bold]/clip.gif").stdout
    assert "wrote [bold]/sheet.png" in run("rollout", "echo", "-s", "left", "-o", "[bold]/sheet.png").stderr


def test_what_the_system_refuses_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (["generate", "echo", "-o", "file/clip.gif"], ["demo", "-o", "file/out"]):
        done = run(*arguments)
        assert done.returncode == 1
        assert "file" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_while_the_packages_load_is_no_traceback() -> None:
    code = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "typer": raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from worldtree.cli import main; main()
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sessions", "get", "nope"], ["no session nope", "NOT_FOUND"]),
        (["generate", "echo", "--actions", "left*0"], ["number after *", "left*0"]),
        (["generate", "echo", "--out", "clip.avi", "--address", "127.0.0.1:1"], [".mp4", "clip.avi"]),
        (["generate", "echo", "--nfe", "99999999999"], ["nfe", "99999999999"]),
        (["rollout", "echo", "-s", "left", "-o", "sheet.jpg", "--address", "127.0.0.1:1"], [".png", "sheet.jpg"]),
        (["rollout", "echo"], ["no future", "--sequence"]),
        (["play", "echo"], ["terminal"]),
        (["--ca-file", "nowhere.pem", "models"], ["nowhere.pem"]),
    ],
)
def test_an_error_is_one_clear_line_and_exit_code_1(run: Run, arguments: list[str], words: list[str]) -> None:
    done = run(*arguments, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_at_the_address_says_how_to_start_a_server(run: Run) -> None:
    done = run("models", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "worldtree up" in done.stderr


def test_wrong_usage_is_exit_code_2(run: Run) -> None:
    assert run("models", "--nonsense").returncode == 2
    assert run("dance").returncode == 2


def test_a_reader_that_went_away_is_no_traceback(run: Run) -> None:
    done = subprocess.run(f"{' '.join(COMMAND)} --help | true", shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_doctor_finds_the_server_and_names_what_is_wrong(run: Run, tmp_path: Path, valkey: Any) -> None:
    package = tmp_path / "models" / "half" / "1"
    package.mkdir(parents=True)
    (package / "model.yaml").write_text("files: {denoise: denoise.onnx}\n")
    done = run("doctor", "--json", "--redis-url", valkey.url)
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["model half/1"]["verdict"] == "bad"
    assert "denoise.onnx" in findings["model half/1"]["found"]
    assert next(value["found"] for name, value in findings.items() if name.startswith("redis")) == "answers"
    assert "serves echo" in next(value["found"] for name, value in findings.items() if name.startswith("server"))
    (package / "model.yaml").write_text("files: {denoise: 3}\n")
    assert "3 missing" in run("doctor").stdout
    (package / "model.yaml").write_text("files: {denoise: denoise.onnx}\n")
    (package / "denoise.onnx").touch()
    assert run("doctor").returncode == 0
    experts = tmp_path / "models" / "experts" / "1"
    experts.mkdir(parents=True)
    (experts / "model.yaml").write_text(
        "kind: multitask\nfiles: {}\ntasks: [{expert: hue.safetensors}]\nimage_sets: [{file: sets.npz}]\n"
        "preference: map\n"
    )
    assert "hue.safetensors, sets.npz, map missing" in run("doctor").stdout
    for name in ("hue.safetensors", "sets.npz", "map"):
        (experts / name).touch()
    assert "redis://HOST:PORT" in run("doctor", "--redis-url", "redis://localhost:port").stdout
    down = run("doctor", "--redis-url", "redis://127.0.0.1:1")
    assert down.returncode == 1
    assert "WORLDTREE_REDIS_URL" in down.stdout
    sentinels = valkey.url.replace("redis://", "redis+sentinel://127.0.0.1:1,").replace("/0", "/main/0")
    assert "others answer" in " ".join(run("doctor", "--redis-url", sentinels).stdout.split())


def test_doctor_tells_of_the_multi_task_service(run: Run, echo: Any) -> None:
    def found() -> dict[str, str]:
        findings: list[dict[str, str]] = json.loads(run("doctor", "--json").stdout)
        return next(each for each in findings if each["subject"] == "multitask")

    assert found()["found"] == "serves echo-tasks: 2 tasks, 0 merges that have a name"
    echo.multitask.gone = True
    assert (found()["verdict"], found()["found"]) == ("note", "no such model")


def test_doctor_tells_of_each_replica_s_tiers_and_journal(run: Run, echo: Any) -> None:
    import worldtree

    with worldtree.Client(echo.address) as client:
        world = client.world("echo", start="four-rooms")
        client.world("echo", start="four-rooms", seed=1)
    echo.servicer.other_replicas = ["echo-2"]
    told = {finding["subject"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    assert told["replica echo: blocks of echo"]["found"] == "pool fp32 7 of 64, folder 9"
    assert told["replica echo: journal of echo"]["found"] == "written for all 2 sessions"
    assert told["replica echo-2"]["found"] == "draining: it takes on nothing new"
    echo.servicer.sessions[world.id].journaled = False
    told = {finding["subject"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    assert told["replica echo: journal of echo"]["verdict"] == "note"
    assert "1 of 2 sessions have none" in told["replica echo: journal of echo"]["found"]
    # Which it may lack for two reasons, and only one of them is a setting.
    assert "does its Redis or its folder answer?" in told["replica echo: journal of echo"]["advice"]
    assert "WORLDTREE_REDIS_URL" in told["replica echo: journal of echo"]["advice"]


def test_doctor_speaks_for_the_sessions_that_it_looked_at(run: Run, echo: Any) -> None:
    import worldtree

    def journal() -> str:
        told = {finding["subject"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
        return str(told["replica echo: journal of echo"]["found"])

    with worldtree.Client(echo.address) as client:
        world = client.world("echo", start="four-rooms")
        world.fork(102)
    assert journal() == "written for all the 100 sessions looked at, 103 in all"
    echo.servicer.sessions[world.id].journaled = False
    assert journal().startswith("1 of the 100 sessions looked at, 103 in all, have none")


def test_doctor_finds_a_replica_that_died_and_a_gateway_that_has_nobody_left(run: Run, echo: Any) -> None:
    echo.servicer.other_replicas = ["echo-2"]
    assert run("doctor").returncode == 0
    echo.servicer.gone = "echo-2"
    done = run("doctor", "--json")
    told = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert (done.returncode, told["replica echo-2"]["verdict"]) == (1, "bad")
    assert told["replica echo-2"]["advice"] == "start it again, or take it out of the gateway's --video"
    assert told["replica echo"]["verdict"] == "note"
    status = status_pb2.Status(code=14, message="no video replica answers")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NO_BACKEND", domain="worldtree"))
    echo.servicer.fail("ListModels", grpc.StatusCode.UNAVAILABLE, "no video replica answers", status=status)
    done = run("doctor", "--json")
    (server,) = (finding for finding in json.loads(done.stdout) if finding["subject"].startswith("server"))
    assert (done.returncode, server["verdict"]) == (1, "bad")
    assert "no video replica answers" in server["found"]


@pytest.mark.parametrize(("package", "extra"), [("typer", "cli"), ("rich", "cli")])
def test_without_its_packages_the_command_says_how_to_get_them(package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from worldtree.cli import main; main()"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"pip install 'worldtree[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("package", "path"), [("PIL", "clip.gif"), ("av", "clip.mp4")])
def test_without_the_media_extra_saving_names_it(package: str, path: str, tmp_path: Path) -> None:
    code = f"""
import sys; sys.modules[{package!r}] = None
import numpy, worldtree
from worldtree.media import save_frames
try: save_frames(numpy.zeros((2, 8, 8, 3), numpy.uint8), {str(tmp_path / path)!r})
except worldtree.MissingExtra as error: print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "pip install 'worldtree[media]'" in done.stdout


class Terminal:
    """A pseudo-terminal with a command in it."""

    def __init__(self, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (40, 110))
        self.before = termios.tcgetattr(self.slave)
        self.screen = ""
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not re.search(text, self.screen):
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{text!r} did not appear; the screen ends with {self.screen[-600:]!r}"
            if select.select([self.master], [], [], left_s)[0]:
                self.screen += os.read(self.master, 65536).decode("utf-8", "replace")

    def end(self) -> int:
        """Its exit code. Reads on meanwhile, so that it never waits for us."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                self.screen += os.read(self.master, 65536).decode("utf-8", "replace")
        return self.process.wait(1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(echo: Any) -> Any:
    opened = Terminal("play", "echo", "--address", echo.address)
    opened.wait_for("press a key")
    yield opened
    opened.close()


def test_play_walks_rewinds_forks_and_leaves_the_terminal_as_it_was(terminal: Terminal, echo: Any) -> None:
    terminal.press("\x1b[A")
    terminal.wait_for(r"chunk 1 · forward")
    terminal.press("a")
    terminal.wait_for(r"chunk 2 · left")
    terminal.wait_for(r"key to frame \d+ ms")
    terminal.press("f")
    terminal.wait_for("forked branch 2")
    terminal.press("u")
    terminal.wait_for("back at chunk 1")
    terminal.press("\t")
    terminal.wait_for(r"branch 2/2 · chunk 2")
    terminal.press("z")
    terminal.wait_for("no action on 'z'")
    terminal.press("o")
    terminal.wait_for("paused")
    terminal.press("o")
    terminal.press("6")
    terminal.wait_for(r"chunk 3 · done")
    assert "▀" in terminal.screen
    terminal.press("q")
    assert terminal.end() == 0
    assert "2 branches" in terminal.screen
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert "\x1b[?1049l" in terminal.screen  # back from the alternate screen
    assert "\x1b[?25h" in terminal.screen  # the cursor is back
    assert echo.servicer.sessions == {}


def test_rewinding_at_the_start_is_a_message_not_an_end(terminal: Terminal) -> None:
    terminal.press("u")
    terminal.wait_for("at the start")
    terminal.press("w")
    terminal.wait_for("chunk 1 · forward")
    terminal.press("uuuuu")
    terminal.wait_for("back at chunk 0")
    terminal.press("q")
    assert terminal.end() == 0


def test_a_play_that_is_re_homed_says_so_while_it_goes_on_and_at_its_end(terminal: Terminal, echo: Any) -> None:
    echo.servicer.rehomed_before = 1
    terminal.press("w")
    terminal.wait_for("goes on at chunk 1 on echo-2 after 1.2 s")
    terminal.press("w")
    terminal.wait_for("chunk 2")
    terminal.press("q")
    assert terminal.end() == 0
    assert terminal.screen.rindex("goes on at chunk 1 on echo-2") > terminal.screen.rindex("2 chunks played")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_play_that_is_ended_by_a_signal_restores_the_terminal_and_its_sessions(
    terminal: Terminal, echo: Any, number: signal.Signals, code: int
) -> None:
    terminal.press("w")
    terminal.wait_for("chunk 1")
    terminal.process.send_signal(number)
    assert terminal.end() == code
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert echo.servicer.sessions == {}


def test_a_walk_takes_the_fps_that_can_be_held(terminal: Terminal, echo: Any) -> None:
    echo.servicer.fps_possible = 4.5
    terminal.press("f")
    terminal.wait_for("forked branch 2")
    terminal.press("\t")
    terminal.wait_for("10 fps cannot be held here now: playing at 4.5")
    terminal.press("w")
    terminal.wait_for("branch 2/2 · chunk 1")
    terminal.press("q")
    assert terminal.end() == 0
    assert echo.servicer.requests["Play"].begin.fps == 4.5


def test_a_walk_at_an_fps_that_was_asked_for_is_refused_as_it_is(echo: Any) -> None:
    echo.servicer.fps_possible = 4.5
    opened = Terminal("play", "echo", "--fps", "10", "--address", echo.address)
    try:
        opened.wait_for("fps=4.5 or less")
        assert opened.end() == 1
    finally:
        opened.close()


def test_a_server_that_refuses_ends_the_play_with_its_reason(terminal: Terminal, echo: Any) -> None:
    terminal.press("w")
    terminal.wait_for("chunk 1")
    import grpc

    echo.servicer.fail("Play", grpc.StatusCode.RESOURCE_EXHAUSTED, "no room to play")
    terminal.press("f")
    terminal.wait_for("forked branch 2")
    terminal.press("\t")
    assert terminal.end() == 1
    assert "no room to play" in terminal.screen
    assert termios.tcgetattr(terminal.slave) == terminal.before
