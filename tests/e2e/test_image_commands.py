"""The image's own commands, as its Dockerfile writes them, outside of a container: health check and entry point."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCKERFILE = (Path(__file__).parents[2] / "services/Dockerfile").read_text()
SERVICES = ["video", "multitask", "reward", "gateway"]
TIMEOUT_S = 30.0


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    # the image has the environment's bin on its PATH too
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


def words(instruction: str, service: str) -> list[str]:
    """The command of an instruction in the stage that is the service's image."""
    (stage,) = re.findall(rf"^FROM \S+ AS {service}\n((?:(?!FROM ).*\n)*)", DOCKERFILE, re.MULTILINE)
    (command,) = re.findall(rf"^{instruction} .*?(\[.+\])$", stage, re.MULTILINE)
    found: list[str] = json.loads(command)
    return found


@pytest.mark.parametrize("service", SERVICES)
def test_the_health_check_passes_while_the_service_lives(service: str, deployment: Any) -> None:
    port = deployment.http[service].rpartition(":")[2]
    checked = run(words("HEALTHCHECK", service), **{f"WORLDTREE_{service.upper()}_METRICS_PORT": port})
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_the_health_check_fails_where_nobody_listens(service: str) -> None:
    checked = run(words("HEALTHCHECK", service), **{f"WORLDTREE_{service.upper()}_METRICS_PORT": "1"})
    assert checked.returncode == 1
    assert "refused" in checked.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_the_entry_point_is_the_service_with_the_flags_that_follow(service: str) -> None:
    helped = run([*words("ENTRYPOINT", service), "--help"])
    assert helped.returncode == 0, helped.stderr
    assert f"$WORLDTREE_{service.upper()}_METRICS_PORT" in helped.stdout


def test_the_gateway_of_the_image_refuses_to_start_in_the_open_without_being_told() -> None:
    variables = dict(re.findall(r"(WORLDTREE_\w+)=(\S+)", DOCKERFILE))
    refused = run(words("ENTRYPOINT", "gateway"), **variables)
    assert refused.returncode == 2
    assert "--insecure" in refused.stderr
