"""README.md and ARCHITECTURE.md: their commands and Python run, their tables and names are true, no link is dead."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import grpc
import pytest
import worldtree
from google.protobuf.descriptor import MethodDescriptor
from PIL import Image
from worldtree.cli.stack import Stack, StackOptions
from worldtree.multitask.v1 import multi_task_pb2 as multitask_pb
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as pb

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
QUICKSTART = ROOT / "docs/quickstart.md"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
ADDRESS, OPENPI = "localhost:7070", '"localhost", 7072'
COMMAND_TIMEOUT_S = 170.0
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 40.0
# the same commands beside another server on this machine
FREE_PORTS = {"WORLDTREE_GATEWAY_PORT": "0", "WORLDTREE_VIDEO_PORT": "0"}
SERVES = "make up"  # the one command that ends only when it is told to


def blocks(language: str, document: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


def links(document: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    return [link for link in found if "://" not in link and not link.startswith("#")]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    logged: list[str] = []  # a service that fails to start brings its last lines along
    with Stack(StackOptions(port=0, models=str(ROOT / "models")), on_log=logged.append) as stack:
        yield stack


def run_block(block: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", block], cwd=folder, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_has_the_two_commands() -> None:
    assert COMMANDS == ["make demo", SERVES]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != SERVES])
def test_a_command_of_the_readme_runs(command: str) -> None:
    begin_s = time.time()
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    if command == "make demo":
        for name in ("demo.mp4", "world_tree.png", "report.json"):
            file = ROOT / "out" / name
            assert file.stat().st_mtime >= begin_s - 1, f"{file.name} is an old one"
            assert file.stat().st_size > 0, f"{file.name} is empty"


def test_make_up_serves_until_it_is_interrupted() -> None:
    process = subprocess.Popen(
        ["bash", "-c", SERVES],
        cwd=ROOT,
        env={**os.environ, **FREE_PORTS},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a group of its own, for the interrupt that a terminal sends to all of it
    )
    try:
        assert process.stdout is not None
        ready = next((line for line in process.stdout if line.startswith("worldtree ready ")), None)
        assert ready is not None, f"{SERVES} ended with {process.wait()} before it was ready"
        match = re.fullmatch(r"worldtree ready grpc=(\S+) metrics=(\S+)\n", ready)
        assert match, ready
        with worldtree.Client(match[1]) as client:
            assert "minigrid" in [model.name for model in client.wait_ready(READY_TIMEOUT_S)]
        os.killpg(process.pid, signal.SIGINT)
        process.wait(STOP_TIMEOUT_S)
        with grpc.insecure_channel(match[1]) as channel, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(timeout=0.5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: re.findall(r"\w+\S*Client\w*", block)[0])
def test_python_of_the_readme_runs(block: str, stack: Stack, tmp_path: Path) -> None:
    assert block.count(ADDRESS) + block.count(OPENPI) == 1
    assert stack.openpi_address is not None
    openpi = f'"127.0.0.1", {stack.openpi_address.rpartition(":")[2]}'
    run_block(block.replace(ADDRESS, stack.grpc_address).replace(OPENPI, openpi), tmp_path)
    if "clip.mp4" in block:
        assert (tmp_path / "clip.mp4").stat().st_size > 0


@pytest.mark.parametrize("block", blocks("python", QUICKSTART), ids=("step", "branch", "play", "fail"))
def test_python_of_the_quickstart_runs(block: str, stack: Stack, tmp_path: Path) -> None:
    assert ADDRESS in block
    run_block(block.replace(ADDRESS, stack.grpc_address), tmp_path)


def test_the_sdk_is_shown_in_about_twenty_lines() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 20, f"{len(lines)} lines"


def test_the_tables_of_rpcs_are_the_services() -> None:
    def kind(method: MethodDescriptor) -> str:
        if method.client_streaming and method.server_streaming:
            return "bidirectional"
        return "server stream" if method.server_streaming else "unary"

    rows = re.findall(r"^\| `(\w+)` \| ([a-z ]+) \| .+ \|$", README.read_text(), re.MULTILINE)
    services = (
        pb.DESCRIPTOR.services_by_name["VideoGenerator"],
        multitask_pb.DESCRIPTOR.services_by_name["MultiTask"],
        reward_pb.DESCRIPTOR.services_by_name["RewardScorer"],
        navigator_pb.DESCRIPTOR.services_by_name["Navigator"],
    )
    assert rows == [(method.name, kind(method)) for service in services for method in service.methods]


@pytest.mark.parametrize(
    "document",
    [README, ARCHITECTURE, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "clients/node/README.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_link_is_dead(document: Path) -> None:
    dead = [link for link in links(document) if not (document.parent / link.partition("#")[0]).exists()]
    assert not dead


def test_the_picture_of_the_readme_is_one_that_the_demo_draws() -> None:
    assert "docs/world_tree.png" in links(README)
    with Image.open(ROOT / "docs/world_tree.png") as picture:
        picture.load()
        assert picture.width >= 1000
        assert picture.height >= 400


def test_architecture_names_every_room_of_every_service() -> None:
    text = ARCHITECTURE.read_text()
    services = "runtime|video service|multi-task service|reward service|navigator service|gateway"
    parts = re.split(rf"^### The ({services})$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for title, package in {
        "runtime": "worldtree_runtime",
        "video service": "worldtree_video",
        "multi-task service": "worldtree_multitask",
        "reward service": "worldtree_reward",
        "navigator service": "worldtree_navigator",
        "gateway": "worldtree_gateway",
    }.items():
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0])
        rooms = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
        rooms |= {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
        rows = [line.split("|")[1] for line in sections[title].splitlines() if line.startswith("|")]
        named = {name for row in rows for name in re.findall(r"`([\w/.]+)`", row)}
        assert named == rooms, package


def test_architecture_names_files_that_exist() -> None:
    named = set(re.findall(r"`([\w./]+\.(?:py|onnx|yml|yaml))`", ARCHITECTURE.read_text())) - {"worldtree.yaml"}
    known = {
        path.name
        for folder in ("clients", "protos", "services", "models", "training")
        for path in (ROOT / folder).rglob("*")
    } | {path.name for path in ROOT.iterdir()}
    assert {name for name in named if Path(name).name not in known} == set()
