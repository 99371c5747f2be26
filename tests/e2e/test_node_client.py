"""A Node.js client with stock gRPC packages plays the world that the Python SDK sees."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import worldtree

ROOT = Path(__file__).parents[2]
INSTALL_TIMEOUT_S = 120.0
PLAY_TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`play.mjs` beside its packages, in a copy: an install leaves nothing in the working tree."""
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    root = tmp_path_factory.mktemp("node")
    shutil.copytree(ROOT / "protos", root / "protos")
    client = root / "clients/node"
    shutil.copytree(ROOT / "clients/node", client, ignore=shutil.ignore_patterns("node_modules"))
    # no package's script has to run for ours
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=client, timeout_s=INSTALL_TIMEOUT_S)
    return client / "play.mjs"


def run(*command: str, cwd: Path, timeout_s: float) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def play(node_client: Path, address: str) -> dict[str, Any]:
    lines = run("node", node_client.name, address, cwd=node_client.parent, timeout_s=PLAY_TIMEOUT_S).splitlines()
    assert len(lines) == 1, f"expected one line, got {len(lines)}"
    played: dict[str, Any] = json.loads(lines[0])
    return played


def test_node_plays_ten_chunks_with_the_frames_that_python_sees(node_client: Path, deployment: Any) -> None:
    played = play(node_client, deployment.gateway)

    assert played["chunkCount"] == 10
    assert played["indices"] == list(range(10))
    with worldtree.Client(deployment.gateway) as client:
        model = client.model("minigrid")
        clip = client.generate(model, start="four-rooms", seed=7, actions=played["actions"])
        assert played["model"]["digest"] == model.digest
        assert played["chunkShape"] == list(clip.frames[:1].shape)
        assert played["startShape"] == list(clip.start_frames.shape)
        assert played["framesSha256"] == hashlib.sha256(clip.frames.tobytes()).hexdigest()
        assert played["session"] not in [session.id for session in client.sessions()]


def test_node_sees_the_same_frames_through_the_gateway_and_without_it(node_client: Path, deployment: Any) -> None:
    direct, proxied = play(node_client, deployment.video), play(node_client, deployment.gateway)

    assert direct["framesSha256"] == proxied["framesSha256"]
    assert direct["stateHash"] == proxied["stateHash"]


def test_node_is_told_what_failed_by_code(node_client: Path, deployment: Any, tmp_path: Path) -> None:
    program = node_client.with_name("lost.mjs")
    program.write_text(node_client.read_text().replace('"four-rooms"', '"five-rooms"'))

    failed = subprocess.run(
        ["node", program.name, deployment.gateway],
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=PLAY_TIMEOUT_S,
    )

    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("NOT_FOUND: "), failed.stderr
    assert "five-rooms" in failed.stderr
