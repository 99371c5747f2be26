"""docs/http.md: its curl lines run against the shipped world, its tables are those of the code."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from server_loop import ServerLoop
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.http_calls import http_status
from worldtree_gateway.serving import start_gateway
from worldtree_video.config import VideoSettings
from worldtree_video.serving import serve_video

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/http.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.M | re.S) for line in block.splitlines()
]  # one after the other
ANYWHERE: dict[str, Any] = {"port": 0, "metrics_port": 0, "drain_timeout_s": 1.0}


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of a gateway's HTTP side before the world of the examples."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/minigrid").symlink_to(ROOT / "models/minigrid", target_is_directory=True)
    loop = ServerLoop()
    try:
        settings = VideoSettings(**ANYWHERE, models=str(tmp_path / "models"), pool_mib=64, max_batch=2)
        video, _ = loop.enter(serve_video(settings))
        gateway = loop.enter(start_gateway(GatewaySettings(**ANYWHERE, video=[video.address], http_port=0)))
        loop.run(gateway.wait_ready())
        yield gateway.rest_address
    finally:
        loop.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_run(address: str) -> None:
    session, answered = "", []
    for command in COMMANDS:
        line = command.replace("localhost:8000", address).replace("SESSION", session)
        done = subprocess.run(
            ["bash", "-c", f"{line} -sS --fail-with-body"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answers = [json.loads(each) for each in done.stdout.splitlines()]
        answered.append(re.findall(r"/v1/video/(\w+)", command)[0])
        session = answers[0].get("session", {}).get("session", session) if answered[-1] == "CreateSession" else session
        if answered[-1] == "Step":
            assert [chunk["index"] for chunk in answers[0]["chunks"]] == ["0", "1"]
        if answered[-1] == "Generate":
            assert ["result" in each for each in answers] == [True, True]
    assert answered == ["ListModels", "CreateSession", "Step", "Generate", "Delete"]


def test_the_statuses_are_those_that_are_answered() -> None:
    told = {
        code: int(status)
        for status, codes in re.findall(r"^\| (\d+) \| ([A-Z_, ]+) \|$", TEXT, re.MULTILINE)
        for code in codes.split(", ")
    }
    assert told == {code.name: http_status(code) for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


def test_the_sections_and_streams_are_all_named() -> None:
    (sections,) = re.findall(r"the section is (.+?), the RPC", TEXT, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", sections)) == {service.section for service in SERVICES}
    streams, refused = (
        set(re.findall(r"`(\w+)`", text)) for text in re.findall(r"[Ss]treams?(?: of requests)? \((`.+?)\)", TEXT, re.S)
    )
    methods = [method for service in SERVICES for method in service.descriptor.methods]
    assert refused == {method.name for method in methods if method.client_streaming}
    assert streams == {method.name for method in methods if method.server_streaming} - refused
