"""The compose file, the Dockerfile and the Prometheus configuration: accepted by their tools, and of one mind."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from worldtree_gateway.config import GatewaySettings
from worldtree_multitask.config import MultitaskSettings
from worldtree_navigator.config import NavigatorSettings
from worldtree_reward.config import RewardSettings
from worldtree_runtime.settings import ServiceSettings
from worldtree_video.config import VideoSettings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "services/Dockerfile"
SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "video": VideoSettings,
    "multitask": MultitaskSettings,
    "reward": RewardSettings,
    "navigator": NavigatorSettings,
}
# each with an edit that it must refuse
BREAKS = {
    "an unknown key": ("    ports:", "    portz:"),
    "an unknown condition": ("condition: service_healthy", "condition: perfect"),
    "no boolean": ("read_only: true", "read_only: perhaps"),
}


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return document


def services() -> dict[str, Any]:
    """Those that are built from our Dockerfile."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def check_with_docker_compose(command: list[str], text: str, folder: Path) -> str | None:
    """What it complains about; None when it accepts."""
    file = folder / "docker-compose.yml"
    file.write_text(text)
    done = subprocess.run([*command, "-f", file, "config", "--quiet"], capture_output=True, text=True, timeout=60)
    return None if done.returncode == 0 else done.stderr


def check_with_compose_spec(text: str) -> str | None:
    try:
        compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(text))).validate()
    except ValueError as error:
        return str(error)
    return None


def docker_compose(kind: str) -> list[str]:
    """The command; skips the test where it is not installed."""
    command = kind.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if subprocess.run([*command, "version"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip(f"{kind} is not installed")
    return command


@pytest.mark.parametrize("kind", ["docker-compose", "docker compose"])
def test_docker_compose_accepts_our_file(kind: str, tmp_path: Path) -> None:
    assert check_with_docker_compose(docker_compose(kind), COMPOSE.read_text(), tmp_path) is None


@pytest.mark.parametrize("edit", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("kind", ["docker-compose", "docker compose"])
def test_docker_compose_refuses_a_broken_file(kind: str, edit: tuple[str, str], tmp_path: Path) -> None:
    text = COMPOSE.read_text()
    assert edit[0] in text
    assert check_with_docker_compose(docker_compose(kind), text.replace(*edit), tmp_path)


def test_the_compose_specification_accepts_our_file() -> None:
    assert check_with_compose_spec(COMPOSE.read_text()) is None


@pytest.mark.parametrize("edit", BREAKS.values(), ids=BREAKS)
def test_the_compose_specification_refuses_a_broken_file(edit: tuple[str, str]) -> None:
    text = COMPOSE.read_text()
    assert edit[0] in text
    assert check_with_compose_spec(text.replace(*edit))


def test_compose_builds_services_that_exist() -> None:
    assert set(services()) == set(SETTINGS)
    for name, service in services().items():
        assert service["build"]["args"]["SERVICE"] == name
        assert (ROOT / f"services/{name}/worldtree_{name}/__main__.py").is_file()
        assert ROOT / service["build"]["dockerfile"] == DOCKERFILE


def test_every_port_is_published_on_loopback_only() -> None:
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port}"


def settings_in_compose(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> ServiceSettings:
    """What a service of the compose file reads when it starts: the image's variables, compose's, and its command."""
    monkeypatch.chdir(folder)  # no worldtree.yaml
    for variable, value in [*image_variables().items(), *services()[name].get("environment", {}).items()]:
        monkeypatch.setenv(variable, value)
    return SETTINGS[name].from_command_line(name, services()[name].get("command", []))


def image_variables() -> dict[str, str]:
    return dict(re.findall(r"^\s+(WORLDTREE_\w+)=(\S+)", DOCKERFILE.read_text(), re.MULTILINE))


def test_the_gateway_starts_with_the_settings_of_compose_and_finds_the_services_behind_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway = settings_in_compose("gateway", monkeypatch, tmp_path)
    assert isinstance(gateway, GatewaySettings)
    assert gateway.host == "0.0.0.0"
    assert gateway.video == [f"video:{VideoSettings.load().port}"]
    assert gateway.multitask == [f"multitask:{MultitaskSettings.load().port}"]
    assert gateway.reward == [f"reward:{RewardSettings.load().port}"]
    assert gateway.navigator == [f"navigator:{NavigatorSettings.load().port}"]
    assert gateway.redis_url == "redis://redis:6379/0"
    published = [port.split(":", 1)[1] for port in services()["gateway"]["ports"]]
    assert published == [f"{gateway.port}:{gateway.port}", f"{gateway.metrics_port}:{gateway.metrics_port}"]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "gateway"])
def test_a_service_behind_it_starts_with_the_settings_of_compose(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = settings_in_compose(name, monkeypatch, tmp_path)
    assert service.host == "0.0.0.0"
    kept = name not in ("reward", "navigator")  # they keep nothing
    assert service.redis_url == ("redis://redis:6379/0" if kept else None)


def test_the_navigator_finds_the_services_that_it_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    navigator = settings_in_compose("navigator", monkeypatch, tmp_path)
    assert isinstance(navigator, NavigatorSettings)
    assert navigator.video == f"video:{VideoSettings.load().port}"
    assert navigator.reward == f"reward:{RewardSettings.load().port}"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_health_check_of_the_image_asks_the_port_that_the_service_has(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = dict(re.findall(r'^\s+(\w+)\) port="\$\{(\w+:-\d+)\}"', DOCKERFILE.read_text(), re.MULTILINE))
    variable, _, port = cases[name].partition(":-")
    assert int(port) == settings_in_compose(name, monkeypatch, tmp_path).metrics_port
    monkeypatch.setenv(variable, "9999")
    assert settings_in_compose(name, monkeypatch, tmp_path).metrics_port == 9999


def test_prometheus_reads_every_service_where_its_metrics_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (mounted, *_) = compose()["services"]["prometheus"]["volumes"]
    document = yaml.safe_load((ROOT / mounted.split(":")[0]).read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in document["scrape_configs"]}
    for name in services():
        port = settings_in_compose(name, monkeypatch, tmp_path).metrics_port
        assert targets[name] == [f"{name}:{port}"]


def test_promtool_accepts_the_configuration() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        ["promtool", "check", "config", ROOT / "deploy/prometheus/prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_image_copies_what_exists_and_the_context_lets_through() -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied: list[str] = []
    for line in DOCKERFILE.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied += line.split()[1:-1]
    assert sorted(copied) == sorted(let_through)
    for path in copied:
        assert (ROOT / path).exists(), path


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert users
    assert all(user.isdigit() and int(user) > 0 for user in users), users
