"""The compose file, the Dockerfile and the Prometheus configuration: accepted by their tools, and of one mind."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from service_settings import SETTINGS
from worldtree_gateway.config import GatewaySettings
from worldtree_multitask.config import MultitaskSettings
from worldtree_navigator.config import NavigatorSettings
from worldtree_reward.config import RewardSettings
from worldtree_runtime.probe import METRICS_PORTS
from worldtree_runtime.settings import ServiceSettings
from worldtree_video.config import VideoSettings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "services/Dockerfile"
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
    """Those that are built from our Dockerfile, without what a profile adds."""
    return {
        name: service
        for name, service in compose()["services"].items()
        if "build" in service and "profiles" not in service
    }


def stages() -> dict[str, str]:
    """What the Dockerfile says in each stage, by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


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
        assert service["build"]["target"] == name
        assert ROOT / service["build"]["dockerfile"] == DOCKERFILE
        assert f'ENTRYPOINT ["python", "-P", "-m", "worldtree_{name}"]' in stages()[name]
        assert (ROOT / f"services/{name}/worldtree_{name}/__main__.py").is_file()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_image_installs_the_extras_of_its_service_and_no_other_runtime_for_models(name: str) -> None:
    (extras,) = re.findall(r"worldtree_server-\*\.whl\)\[([^\]]+)\]", stages()[f"build-{name}"])
    assert extras.split(",") == [name, *([] if name == "gateway" else ["ort-${ORT}"])]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name, "ort-cpu", "ort-gpu", "otel"} <= set(known)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_service_starts_with_what_its_extras_install(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    there = [*extras[name], *([] if name == "gateway" else extras["ort-cpu"])]
    of_others = {each for other in (*SETTINGS, "ort-cpu") for each in extras[other]} - set(there)
    absent = {re.split(r"[\[>]", each)[0] for each in of_others} - {re.split(r"[\[>]", each)[0] for each in there}
    modules = sorted({"pyjwt": "jwt"}.get(each, each) for each in absent)
    program = f"import sys; sys.modules.update(dict.fromkeys({modules})); import worldtree_{name}.__main__"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"without {modules}: {done.stderr[-1000:]}"


def test_gateway_and_sdk_need_no_onnx_runtime() -> None:
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sdk = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
    needed = [*server["dependencies"], *server["optional-dependencies"]["gateway"], *sdk["dependencies"]]
    needed += [each for extra in sdk["optional-dependencies"].values() for each in extra]
    assert not [requirement for requirement in needed if requirement.startswith("onnx")]


def test_replicas_on_gpus_are_asked_for_and_found_under_the_name_of_the_others() -> None:
    gpu = compose()["services"]["video-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["build"]["args"]["ORT"] == "gpu"
    assert gpu["networks"]["inside"]["aliases"] == ["video"]
    assert gpu["environment"].items() >= services()["video"]["environment"].items()
    assert gpu["environment"]["WORLDTREE_VIDEO_DEVICE"] == "cuda"
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_every_container_is_bounded_watched_and_may_do_little() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert 0 < service["cpus"] <= 1, f"{name}: a machine may have no more"
        assert service["mem_limit"], name
        assert service["pids_limit"] > 0, name
        if "build" in service:
            assert "HEALTHCHECK" in stages()[service["build"]["target"]], name
        else:
            assert service["healthcheck"]["test"][0] == "CMD", name


def test_only_what_has_a_port_of_the_machine_is_in_the_network_outside() -> None:
    assert compose()["networks"]["inside"] == {"internal": True}
    for name, service in compose()["services"].items():
        assert "inside" in service["networks"], name
        assert ("outside" in service["networks"]) == ("ports" in service), name


def test_the_balancer_hands_the_ports_of_the_gateway_on() -> None:
    balancer = compose()["services"]["balancer"]
    (mounted,) = balancer["volumes"]
    text = (ROOT / mounted.split(":")[0]).read_text()
    gateway = GatewaySettings.load(environ={"WORLDTREE_GATEWAY_INSECURE": "true"})
    bound = dict(re.findall(r"^  bind :(\d+)\n  server-template gateway 1-\d+ gateway:(\d+)$", text, re.MULTILINE))
    assert bound == {str(port): str(port) for port in (gateway.port, gateway.openpi_port)}
    assert balancer["ports"] == [f"127.0.0.1:{port}:{port}" for port in bound]


def test_haproxy_accepts_the_balancers_configuration() -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    file = ROOT / "deploy/haproxy/haproxy.cfg"
    done = subprocess.run(["haproxy", "-c", "-f", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_redis_keeps_a_log_of_what_it_is_told() -> None:
    command = compose()["services"]["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    folder = command[command.index("--dir") + 1]
    assert f"redis:{folder}" in compose()["services"]["redis"]["volumes"]


def test_grafana_is_given_prometheus_and_the_dashboard() -> None:
    grafana = compose()["services"]["grafana"]
    mounts = {inside: ROOT / here for here, inside, *_ in (volume.split(":") for volume in grafana["volumes"])}
    provisioning = mounts["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((provisioning / "dashboards/worldtree.yml").read_text())["providers"]
    (dashboard,) = (inside for inside in mounts if inside.startswith(provider["options"]["path"]))
    assert json.loads(mounts[dashboard].read_text())["panels"]


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
    assert gateway.video == [f"dns:video:{VideoSettings.load().port}"]
    assert gateway.multitask == [f"dns:multitask:{MultitaskSettings.load().port}"]
    assert gateway.reward == [f"dns:reward:{RewardSettings.load().port}"]
    assert gateway.navigator == [f"dns:navigator:{NavigatorSettings.load().port}"]
    assert gateway.redis_url == "redis://redis:6379/0"


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "gateway"])
def test_a_service_behind_it_starts_with_the_settings_of_compose(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = settings_in_compose(name, monkeypatch, tmp_path)
    assert service.host == "0.0.0.0"
    kept = name not in ("reward", "navigator")  # they keep nothing
    assert service.redis_url == ("redis://redis:6379/0" if kept else None)


def test_the_navigator_asks_the_gateways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    navigator = settings_in_compose("navigator", monkeypatch, tmp_path)
    assert isinstance(navigator, NavigatorSettings)
    assert navigator.video == navigator.reward == "balancer:7070"


@pytest.mark.parametrize("name", SETTINGS)
def test_the_health_check_of_the_image_asks_the_port_that_the_service_has(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert f'CMD ["python", "-P", "-m", "worldtree_runtime.probe", "{name}"]' in stages()[name]
    assert METRICS_PORTS[name] == settings_in_compose(name, monkeypatch, tmp_path).metrics_port


def test_prometheus_reads_every_replica_where_its_metrics_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in document["scrape_configs"]}
    for name in services():
        (asked,) = jobs[name]["dns_sd_configs"]
        port = settings_in_compose(name, monkeypatch, tmp_path).metrics_port
        assert (asked["names"], asked["type"], asked["port"]) == ([name], "A", port)


def test_prometheus_is_given_its_configuration_and_the_rules_where_it_looks() -> None:
    mounts = [volume.split(":")[:2] for volume in compose()["services"]["prometheus"]["volumes"]]
    assert ["./deploy/prometheus/prometheus.yml", "/etc/prometheus/prometheus.yml"] in mounts
    assert ["./deploy/prometheus/rules", "/etc/prometheus/rules"] in mounts


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
    wheelhouse = copied.pop(copied.index("${WHEELHOUSE}"))
    assert f"ARG {wheelhouse[2:-1]}=LICENSE" in DOCKERFILE.read_text().splitlines()
    assert sorted([*copied, "out/wheelhouse"]) == sorted(let_through)
    for path in copied:
        assert (ROOT / path).exists(), path


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert users
    assert all(user.isdigit() and int(user) > 0 for user in users), users
