"""The image's own commands, as its Dockerfile writes them, outside of a container: health check and entry point."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCKERFILE = (Path(__file__).parents[2] / "services/Dockerfile").read_text().replace("\\\n", "")
TIMEOUT_S = 30.0


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    # the image has the environment's bin on its PATH too
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


def health_check() -> list[str]:
    (command,) = re.findall(r"^HEALTHCHECK .*? CMD (.+)$", DOCKERFILE, re.MULTILINE)
    return ["/bin/sh", "-c", command]


def entry_point() -> list[str]:
    (command,) = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    words: list[str] = json.loads(command)
    return words


@pytest.mark.parametrize("service", ["video", "multitask", "reward", "gateway"])
def test_the_health_check_passes_while_the_service_lives(service: str, deployment: Any) -> None:
    port = deployment.http[service].rpartition(":")[2]
    checked = run(health_check(), SERVICE=service, **{f"WORLDTREE_{service.upper()}_METRICS_PORT": port})
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("service", ["video", "multitask", "reward", "gateway"])
def test_the_health_check_fails_where_nobody_listens(service: str) -> None:
    checked = run(health_check(), SERVICE=service, **{f"WORLDTREE_{service.upper()}_METRICS_PORT": "1"})
    assert checked.returncode != 0
    assert "refused" in checked.stderr


@pytest.mark.parametrize("service", ["video", "multitask", "reward", "gateway"])
def test_the_entry_point_is_the_service_with_the_flags_that_follow(service: str) -> None:
    helped = run([*entry_point(), "--help"], SERVICE=service)
    assert helped.returncode == 0, helped.stderr
    assert f"$WORLDTREE_{service.upper()}_METRICS_PORT" in helped.stdout


def test_the_gateway_of_the_image_refuses_to_start_in_the_open_without_being_told() -> None:
    variables = dict(re.findall(r"(WORLDTREE_\w+)=(\S+)", DOCKERFILE))
    refused = run(entry_point(), SERVICE="gateway", **variables)
    assert refused.returncode == 2
    assert "--insecure" in refused.stderr
