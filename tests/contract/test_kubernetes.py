"""deploy/k8s: built as kustomize builds it, accepted by Kubernetes' schemas, and of one mind with the services."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kustomization import Resource, build
from service_settings import SETTINGS
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.discovery import ByName, to_source
from worldtree_runtime.settings import SettingsError

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy/k8s"
OVERLAYS = ["cpu", "gpu", "whole"]  # the last one has every component; no file, as nobody wants both ways in
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
# the oldest that has all we use (the sleep of preStop), and the newest whose schemas we have
VERSIONS = ["1.30", "1.37"]
PASSWORD = "0f1e2d3c"  # in a Secret
# kinds that come with an operator; their schemas are not among Kubernetes' own
CUSTOM = {
    "monitoring.coreos.com/v1": {"PodMonitor", "PrometheusRule"},
    "gateway.networking.k8s.io/v1": {"Gateway", "GRPCRoute", "HTTPRoute"},
}
VIDEO_MODELS = ["minigrid", "doom"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/ with the overlay `whole`."""
    copy = tmp_path_factory.mktemp("checkouts") / "worldtree/deploy"
    shutil.copytree(ROOT / "deploy", copy)
    whole = copy / "k8s/overlays/whole"
    whole.mkdir()
    text = (copy / "k8s/overlays/cpu/kustomization.yaml").read_text()
    document = yaml.safe_load(text)
    document["components"] = re.findall(r"- (\.\./\.\./components/[a-z-]+)$", text, re.MULTILINE)  # of remarks too
    (whole / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return copy


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[str, list[Resource]]:
    return {overlay: build(folder / "k8s/overlays" / overlay) for overlay in OVERLAYS}


@pytest.fixture(params=OVERLAYS)
def resources(request: pytest.FixtureRequest, built: dict[str, list[Resource]]) -> list[Resource]:
    return built[request.param]


def of_kind(resources: list[Resource], *kinds: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] in kinds]


def name(resource: Resource) -> str:
    text: str = resource["metadata"]["name"]
    return text


def named(resources: list[Resource], kind: str, wanted: str) -> Resource:
    (found,) = [resource for resource in of_kind(resources, kind) if name(resource) == wanted]
    return found


def workloads(resources: list[Resource]) -> list[Resource]:
    return of_kind(resources, "Deployment", "StatefulSet")


def pod(workload: Resource) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def labels(workload: Resource) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def containers(resources: list[Resource], *, also_init: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    for workload in workloads(resources):
        for container in pod(workload)["containers"] + (pod(workload).get("initContainers", []) if also_init else []):
            yield f"{name(workload)}/{container['name']}", container


def selects(selector: dict[str, Any], given: dict[str, str]) -> bool:
    """What matchLabels and matchExpressions with In say."""
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return all(given.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        given.get(each["key"]) in each["values"] for each in expressions
    )


def kubernetes_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30}[unit]


# ---- built


@pytest.mark.parametrize("overlay", ["base", *(f"overlays/{name}" for name in OVERLAYS)])
def test_kustomize_builds_what_the_tests_look_at(overlay: str, folder: Path) -> None:
    """So that these tests mean something where there is no kustomize."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(command[0]) is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    done = subprocess.run([*command, folder / "k8s" / overlay], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

    def order(resource: Resource) -> tuple[str, str]:
        return resource["kind"], name(resource)

    ours = sorted(build(folder / "k8s" / overlay), key=order)
    assert sorted(yaml.safe_load_all(done.stdout), key=order) == ours


@pytest.mark.parametrize(
    ("edit", "refusal"),
    [
        (("labels:", "commonLabels:"), "not known here: commonLabels"),
        (("  - redis.yaml", "  - redis.yaml\n  - reward.yaml"), "twice"),
        (("    files: [", "    literals: ["), "files"),
    ],
)
def test_what_the_tests_cannot_build_is_refused(edit: tuple[str, str], refusal: str, folder: Path) -> None:
    """Rather than looked at without what it says."""
    broken = folder / "k8s/broken"
    shutil.copytree(folder / "k8s/base", broken)
    try:
        file = broken / "kustomization.yaml"
        assert edit[0] in file.read_text()
        file.write_text(file.read_text().replace(*edit, 1))
        with pytest.raises((ValueError, KeyError), match=refusal):
            build(broken)
    finally:
        shutil.rmtree(broken)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_resource(
    built: dict[str, list[Resource]], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it reads megabytes of schemas again for each resource
    utils = kubernetes_validate.utils
    monkeypatch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
    checked: list[Resource] = []
    for resource in (each for resources in built.values() for each in resources):
        if resource in checked or resource["kind"] in CUSTOM.get(resource["apiVersion"], ()):
            continue
        kubernetes_validate.validate(resource, version, strict=True)
        checked.append(resource)
    assert {"Deployment", "StatefulSet", "HorizontalPodAutoscaler"} <= {each["kind"] for each in checked}


@pytest.mark.parametrize(
    "edit",
    [
        ("spec", "template", "spec", "containerz"),
        ("spec", "replicas"),
        ("spec", "template", "spec", "terminationGracePeriodSeconds"),
    ],
    ids=lambda edit: edit[-1],
)
def test_kubernetes_refuses_a_broken_resource(edit: tuple[str, ...], folder: Path) -> None:
    deployment = named(build(folder / "k8s/base"), "Deployment", "gateway")
    place = deployment
    for key in edit[:-1]:
        place = place[key]
    place[edit[-1]] = "many"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_every_component_is_offered_by_the_overlay_and_says_what_it_is() -> None:
    overlay = (K8S / "overlays/cpu/kustomization.yaml").read_text()
    section = (ROOT / "docs/deploy.md").read_text().partition("\n## On Kubernetes\n")[2]
    assert sorted(re.findall(r"^\| `([a-z-]+)`", section, re.MULTILINE)) == COMPONENTS
    for component in COMPONENTS:
        assert f"../../components/{component}\n" in overlay
        assert (K8S / f"components/{component}/kustomization.yaml").read_text().startswith("# ")


# ---- pods


def test_every_container_is_asked_whether_it_lives_and_is_ready(resources: list[Resource]) -> None:
    for where, container in containers(resources):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert {"grpc", "httpGet", "exec", "tcpSocket"} & container[probe].keys(), f"{where}: {probe}"


def test_a_service_that_may_be_full_is_not_killed_for_it(resources: list[Resource]) -> None:
    """The gateway and the video service tell NOT_SERVING while there is no room for new sessions."""
    for where, container in containers(resources):
        if container["name"] in ("gateway", "video"):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"]["path"] == "/healthz", where
        elif container["name"] in SETTINGS:
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["grpc"] == {"port": ports["grpc"]}, where


def test_every_container_has_requests_and_limits(resources: list[Resource]) -> None:
    for where, container in containers(resources, also_init=True):
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys(), where
        requests, limits = (kubernetes_bytes(container["resources"][kind]["memory"]) for kind in ("requests", "limits"))
        assert requests <= limits, where


def test_every_pod_is_one_of_the_restricted_profile(resources: list[Resource]) -> None:
    namespace = named(resources, "Namespace", "worldtree")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in workloads(resources):
        context = pod(workload)["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod(workload).keys() & {"hostNetwork", "hostPID", "hostIPC"}
        for volume in pod(workload).get("volumes", []):
            assert volume.keys() & {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}, name(workload)
    for where, container in containers(resources, also_init=True):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, where
        assert context["capabilities"] == {"drop": ["ALL"]}, where
        assert context["readOnlyRootFilesystem"] is True, where
        assert not context.get("privileged"), where


def test_no_pod_gets_a_token_for_the_api_server(resources: list[Resource]) -> None:
    accounts = {name(account): account for account in of_kind(resources, "ServiceAccount")}
    for workload in workloads(resources):
        assert pod(workload)["automountServiceAccountToken"] is False
        assert accounts[pod(workload)["serviceAccountName"]]["automountServiceAccountToken"] is False


def test_every_pod_has_a_priority_that_exists_and_every_service_spreads(resources: list[Resource]) -> None:
    classes = {name(each) for each in of_kind(resources, "PriorityClass")}
    for workload in workloads(resources):
        assert pod(workload)["priorityClassName"] in classes
        if name(workload) in SETTINGS:
            spread = pod(workload)["topologySpreadConstraints"]
            assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
            assert all(selects(each["labelSelector"], labels(workload)) for each in spread)


def test_the_user_is_the_one_of_the_image(resources: list[Resource]) -> None:
    (uid,) = re.findall(r"^USER (\d+)$", (ROOT / "services/Dockerfile").read_text(), re.MULTILINE)
    for workload in workloads(resources):
        if name(workload) in SETTINGS:
            assert pod(workload)["securityContext"]["runAsUser"] == int(uid)


def test_images_are_those_of_compose(folder: Path) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    base = dict(containers(build(folder / "k8s/base")))
    for service in [*SETTINGS, "redis"]:
        assert base[f"{service}/{service}"]["image"] == compose[service]["image"]


def test_an_overlay_names_a_version_of_each_image(resources: list[Resource]) -> None:
    for where, container in containers(resources, also_init=True):
        assert re.fullmatch(r"(worldtree-\w+|redis):[\w.-]+", container["image"]), where


def test_the_overlay_that_the_page_shows_takes_all_our_images_from_its_registry(folder: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE | re.DOTALL)
    mine = folder.parents[1] / "my"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(text)
    images = {container["image"] for _, container in containers(build(mine), also_init=True)}
    assert {image for image in images if "worldtree" in image} == {
        f"registry.my.org/worldtree-{service}:0.1.0" for service in SETTINGS
    }


# ---- what refers to what


def test_every_selector_finds_its_pods(resources: list[Resource]) -> None:
    given = [labels(workload) for workload in workloads(resources)]
    for workload in workloads(resources):
        assert selects(workload["spec"]["selector"], labels(workload)), name(workload)
        others = [each for each in workloads(resources) if each is not workload]
        assert not any(selects(workload["spec"]["selector"], labels(other)) for other in others), name(workload)
    for service in of_kind(resources, "Service"):
        assert sum(selects({"matchLabels": service["spec"]["selector"]}, each) for each in given) == 1, name(service)
    for budget in of_kind(resources, "PodDisruptionBudget"):
        assert sum(selects(budget["spec"]["selector"], each) for each in given) == 1, name(budget)
    for policy in of_kind(resources, "NetworkPolicy"):
        assert any(selects(policy["spec"]["podSelector"], each) for each in given), name(policy)
    for monitor in of_kind(resources, "PodMonitor"):
        assert any(selects(monitor["spec"]["selector"], each) for each in given), name(monitor)


def test_every_service_has_a_disruption_budget(resources: list[Resource]) -> None:
    budgets = {name(budget) for budget in of_kind(resources, "PodDisruptionBudget")}
    assert budgets == {name(workload) for workload in workloads(resources)} - {"redis"}, "which has one replica"


def test_every_port_that_is_named_exists(resources: list[Resource]) -> None:
    for service in of_kind(resources, "Service"):
        for workload in workloads(resources):
            if selects({"matchLabels": service["spec"]["selector"]}, labels(workload)):
                offered = {port["name"]: port["containerPort"] for port in pod(workload)["containers"][0]["ports"]}
                for port in service["spec"]["ports"]:
                    assert offered[port["targetPort"]] == port["port"], name(service)
    for where, container in containers(resources):
        offered = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for kind in container[probe].keys() & {"httpGet", "tcpSocket"}:
                assert container[probe][kind]["port"] in offered, where
    for policy in of_kind(resources, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for workload in workloads(resources):
                offered = {port["name"]: port["containerPort"] for port in pod(workload)["containers"][0]["ports"]}
                if name(policy) != "metrics" and selects(policy["spec"]["podSelector"], labels(workload)):
                    assert {port["port"] for port in rule["ports"]} <= offered.keys(), name(policy)


@pytest.mark.parametrize("service", SETTINGS)
def test_ports_are_those_that_the_service_listens_on(service: str, resources: list[Resource]) -> None:
    container = dict(containers(resources))[f"{service}/{service}"]
    offered = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = SETTINGS[service].model_fields
    assert offered["grpc"] == settings["port"].default
    assert offered["metrics"] == settings["port"].default + 1
    if service == "gateway":
        assert offered["openpi"] == settings["openpi_port"].default


def test_every_volume_and_what_is_in_it_is_there(resources: list[Resource]) -> None:
    configs = {name(each): each["data"] for each in of_kind(resources, "ConfigMap")}
    claims = {name(each) for each in of_kind(resources, "PersistentVolumeClaim")}
    for workload in workloads(resources):
        volumes = {volume["name"]: volume for volume in pod(workload).get("volumes", [])}
        claimed = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for container in [*pod(workload)["containers"], *pod(workload).get("initContainers", [])]:
            for mount in container["volumeMounts"]:
                volume = volumes.get(mount["name"], {})
                assert volume or mount["name"] in claimed, name(workload)
                if "configMap" in volume:
                    assert mount["subPath"] in configs[volume["configMap"]["name"]]
                if "persistentVolumeClaim" in volume:
                    assert volume["persistentVolumeClaim"]["claimName"] in claims
                if "secret" in volume:  # which comes from elsewhere, and may change
                    assert "subPath" not in mount


def test_ways_in_lead_to_ports_of_the_gateway(built: dict[str, list[Resource]]) -> None:
    resources = built["whole"]
    ports = {port["name"]: port["port"] for port in named(resources, "Service", "gateway")["spec"]["ports"]}
    for ingress in of_kind(resources, "Ingress"):
        (rule,) = ingress["spec"]["rules"]
        (path,) = rule["http"]["paths"]
        assert path["backend"]["service"] == {"name": "gateway", "port": {"name": name(ingress)}}
        assert name(ingress) in ports
        assert [rule["host"]] == ingress["spec"]["tls"][0]["hosts"]
    listeners = {each["name"]: each for each in named(resources, "Gateway", "worldtree")["spec"]["listeners"]}
    for route in of_kind(resources, "GRPCRoute", "HTTPRoute"):
        (parent,) = route["spec"]["parentRefs"]
        listener = listeners[parent["sectionName"]]
        assert route["spec"]["hostnames"] == [listener["hostname"]]
        assert listener["tls"]["certificateRefs"]
        (backend,) = route["spec"]["rules"][0]["backendRefs"]
        assert backend == {"name": "gateway", "port": ports[parent["sectionName"]]}


def test_an_autoscaler_scales_what_is_there_and_nothing_else_sets_the_count(built: dict[str, list[Resource]]) -> None:
    resources = built["whole"]
    scaled = of_kind(resources, "HorizontalPodAutoscaler")
    assert {name(each) for each in scaled} == set(SETTINGS)
    for scaler in scaled:
        target = scaler["spec"]["scaleTargetRef"]
        workload = named(resources, target["kind"], target["name"])
        assert workload["apiVersion"] == target["apiVersion"]
        assert "replicas" not in workload["spec"]
        assert scaler["spec"]["minReplicas"] >= 2, "one that is replaced must not be all there are"


# ---- settings


def settings_in(resources: list[Resource], wanted: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """What a workload's process reads when it starts: the image's variables, the pod's, and worldtree.yaml."""
    (workload,) = [each for each in workloads(resources) if name(each) == wanted]
    (container,) = pod(workload)["containers"]
    service = container["name"]
    for variable in [each for each in os.environ if each.startswith("WORLDTREE_")]:
        monkeypatch.delenv(variable)
    (mounted,) = [volume for volume in pod(workload)["volumes"] if "configMap" in volume]
    config = named(resources, "ConfigMap", mounted["configMap"]["name"])["data"]["worldtree.yaml"]
    (folder / "worldtree.yaml").write_text(config)
    dockerfile = (ROOT / "services/Dockerfile").read_text()
    for variable, value in re.findall(r"^\s+(WORLDTREE_\w+)=(\S+)", dockerfile, re.MULTILINE):
        monkeypatch.setenv(variable, value)
    given: dict[str, str] = {}
    for variable in container["env"]:
        value = variable.get("value") or (PASSWORD if "secretKeyRef" in variable["valueFrom"] else f"{wanted}-0")
        value = re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], value)  # of those before it
        given[variable["name"]] = value
        if variable["name"] == "WORLDTREE_CONFIG":
            (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == value]
            assert mount["name"] == mounted["name"]
            value = str(folder / "worldtree.yaml")
        monkeypatch.setenv(variable["name"], value)
    return SETTINGS[service].from_command_line(service, container.get("args", []))


@pytest.mark.parametrize("service", SETTINGS)
def test_a_service_starts_with_its_settings(
    service: str, resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_in(resources, service, monkeypatch, tmp_path)
    assert settings.host == "0.0.0.0"
    assert settings.replica == f"{service}-0", "a replica's name is its pod's"
    assert settings.redis_url in ("redis://redis:6379/0", f"redis://:{PASSWORD}@redis:6379/0")
    assert named(resources, "Service", "redis")["spec"]["ports"][0]["port"] == 6379


def test_a_setting_that_does_not_exist_would_be_noticed(folder: Path, tmp_path: Path) -> None:
    text = (folder / "k8s/base/worldtree.yaml").read_text()
    (tmp_path / "worldtree.yaml").write_text(text.replace("keys_file:", "key_file:"))
    with pytest.raises(SettingsError, match="key_file"):
        GatewaySettings.load(tmp_path / "worldtree.yaml", environ={})


def test_the_gateway_finds_every_replica_behind_it(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway = settings_in(resources, "gateway", monkeypatch, tmp_path)
    for service in [name for name in SETTINGS if name != "gateway"]:
        (text,) = gateway.backends(service)
        source = to_source(text)
        assert isinstance(source, ByName)
        headless = named(resources, "Service", source.host)["spec"]
        assert headless["clusterIP"] == "None", "else only one of its replicas is found"
        (port,) = headless["ports"]
        assert port["port"] == source.port
        (workload,) = [each for each in workloads(resources) if name(each) == service]
        assert selects({"matchLabels": headless["selector"]}, labels(workload))
    assert not gateway.insecure
    assert gateway.authenticates


def test_replicas_of_the_video_service_keep_their_names_and_are_listed_while_they_are_full(
    resources: list[Resource],
) -> None:
    video = named(resources, "StatefulSet", "video")
    headless = named(resources, "Service", video["spec"]["serviceName"])
    assert headless["spec"]["publishNotReadyAddresses"] is True
    assert video["spec"]["podManagementPolicy"] == "Parallel"


def test_keys_are_where_the_gateway_looks_for_them(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway = settings_in(resources, "gateway", monkeypatch, tmp_path)
    workload = named(resources, "Deployment", "gateway")
    (secret,) = [
        each for each in pod(workload)["volumes"] if each.get("secret", {}).get("secretName") == "worldtree-keys"
    ]
    (mount,) = [each for each in pod(workload)["containers"][0]["volumeMounts"] if each["name"] == secret["name"]]
    assert gateway.keys_file is not None
    assert str(gateway.keys_file.parent) == mount["mountPath"]
    # as docs/deploy.md creates it
    command = f"create secret generic {secret['secret']['secretName']} --from-file={gateway.keys_file.name}="
    assert command in (ROOT / "docs/deploy.md").read_text()


def test_the_navigator_asks_through_the_gateway(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    navigator = settings_in(resources, "navigator", monkeypatch, tmp_path)
    assert navigator.video == navigator.reward
    host, _, port = navigator.video.rpartition(":")
    service = named(resources, "Service", host)["spec"]
    assert {"name": "grpc", "port": int(port)}.items() <= service["ports"][0].items()
    (gateway,) = [each for each in workloads(resources) if selects({"matchLabels": service["selector"]}, labels(each))]
    assert settings_in(resources, name(gateway), monkeypatch, tmp_path).tls_cert_file is None, "it speaks no TLS"
    assert allowed(resources, "navigator", name(gateway), "grpc")


def test_the_gateway_encrypts_with_the_certificate_that_it_is_given(
    built: dict[str, list[Resource]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resources = built["whole"]
    gateway = settings_in(resources, "gateway", monkeypatch, tmp_path)
    workload = named(resources, "Deployment", "gateway")
    (secret,) = [each for each in pod(workload)["volumes"] if each.get("secret", {}).get("secretName") == "gateway-tls"]
    (mount,) = [each for each in pod(workload)["containers"][0]["volumeMounts"] if each["name"] == secret["name"]]
    # the names that a Secret of the type kubernetes.io/tls has
    assert [str(gateway.tls_cert_file), str(gateway.tls_key_file)] == [
        f"{mount['mountPath']}/tls.crt",
        f"{mount['mountPath']}/tls.key",
    ]


@pytest.mark.parametrize("service", SETTINGS)
def test_a_pod_is_given_the_time_that_its_drain_takes(
    service: str, resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = settings_in(resources, service, monkeypatch, tmp_path)
    (workload,) = [each for each in workloads(resources) if name(each) == service]
    hook = pod(workload)["containers"][0].get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
    taken_s = hook["sleep"]["seconds"] + settings.drain_timeout_s
    assert pod(workload)["terminationGracePeriodSeconds"] >= taken_s + 10


def test_the_video_service_has_the_memory_for_its_pools(
    resources: list[Resource], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    video = settings_in(resources, "video", monkeypatch, tmp_path)
    container = dict(containers(resources))["video/video"]
    pools = len(VIDEO_MODELS) * (video.pool_mib + video.fp16_pool_mib + video.int8_pool_mib)
    on_host = video.host_mib + (0 if video.device == "cuda" else 2 * pools)  # twice: while a new version is loaded
    assert on_host << 20 < kubernetes_bytes(container["resources"]["limits"]["memory"])


def test_the_gpu_is_asked_for_where_it_is_used(
    built: dict[str, list[Resource]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = built["gpu"]
    for service in SETTINGS:
        settings = settings_in(gpu, service, monkeypatch, tmp_path)
        container = dict(containers(gpu))[f"{service}/{service}"]
        wanted = getattr(settings, "device", "cpu") == "cuda"
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == wanted, service
        assert container["image"].endswith("-gpu") == wanted, service


def test_redis_keeps_its_log_where_there_is_a_volume(resources: list[Resource]) -> None:
    redis = named(resources, "StatefulSet", "redis")
    (container,) = pod(redis)["containers"]
    arguments = container["args"]
    assert arguments[arguments.index("--appendonly") + 1] == "yes"
    (claim,) = redis["spec"]["volumeClaimTemplates"]
    assert {"name": claim["metadata"]["name"], "mountPath": "/data"} in container["volumeMounts"]
    room = kubernetes_bytes(container["resources"]["limits"]["memory"])
    assert 2 * (int(arguments[arguments.index("--maxmemory") + 1].removesuffix("mb")) << 20) <= room


def test_redis_and_those_who_use_it_are_given_one_password(
    built: dict[str, list[Resource]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resources = built["whole"]
    (redis,) = pod(named(resources, "StatefulSet", "redis"))["containers"]
    (variable,) = redis["env"]
    assert redis["args"][redis["args"].index("--requirepass") + 1] == f"$({variable['name']})"
    secret = variable["valueFrom"]["secretKeyRef"]
    users = {name(each) for each in workloads(resources) if allowed(resources, name(each), "redis", "redis")}
    assert users
    for user in users:
        settings = settings_in(resources, user, monkeypatch, tmp_path)
        assert settings.redis_url == f"redis://:{PASSWORD}@redis:6379/0", user
        (container,) = [each for where, each in containers(resources) if where.startswith(f"{user}/")]
        assert secret in [each.get("valueFrom", {}).get("secretKeyRef") for each in container["env"]]
    assert f"create secret generic {secret['name']}" in (ROOT / "docs/deploy.md").read_text()


# ---- models on a volume


def test_models_of_the_image_are_put_on_the_volume_and_those_that_are_there_stay(
    built: dict[str, list[Resource]], tmp_path: Path
) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    for version, text in (("ours/1", "new"), ("ours/2", "new"), ("theirs/1", "new")):
        (image / version).mkdir(parents=True)
        (image / version / "model.yaml").write_text(text)
    for version in ("theirs/1", "own/7"):
        (volume / version).mkdir(parents=True)
        (volume / version / "model.yaml").write_text("old")
    (copier,) = pod(named(built["whole"], "Deployment", "reward"))["initContainers"]
    *shell, script = copier["command"]
    script = script.replace("/srv/models", str(image)).replace("/models", str(volume))

    def copying(host: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*shell, script], env={"PATH": os.defpath, "HOSTNAME": host})

    # two replicas at once, and one later
    for processes in ([copying("reward-a"), copying("reward-b")], [copying("reward-c")]):
        assert [process.wait(30) for process in processes] == [0] * len(processes)
    found = {str(file.parent.relative_to(volume)): file.read_text() for file in volume.rglob("model.yaml")}
    assert found == {"ours/1": "new", "ours/2": "new", "theirs/1": "old", "own/7": "old"}


# ---- who may speak with whom


def allowed(resources: list[Resource], caller: str, called: str, port: str) -> bool:
    """Whether some policy lets one of our pods call another."""
    pods = {name(workload): labels(workload) for workload in workloads(resources)}
    for policy in of_kind(resources, "NetworkPolicy"):
        if not selects(policy["spec"]["podSelector"], pods[called]):
            continue
        for rule in policy["spec"].get("ingress", []):
            if port not in [each["port"] for each in rule["ports"]]:
                continue
            peers = [each["podSelector"] for each in rule.get("from", []) if "podSelector" in each]
            if "from" not in rule or any(selects(peer, pods[caller]) for peer in peers):
                return True
    return False


def test_policies_let_through_what_is_needed_and_no_more(resources: list[Resource]) -> None:
    assert named(resources, "NetworkPolicy", "nothing")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    behind = [service for service in SETTINGS if service != "gateway"]
    gateways = {name(each) for each in workloads(resources)} - {*behind, "redis"}
    for service in behind:
        assert all(allowed(resources, gateway, service, "grpc") for gateway in gateways)
        for other in [*behind, "redis"]:
            assert not allowed(resources, other, service, "grpc"), f"{other} -> {service}"
    keep = {name(each) for each in workloads(resources) if allowed(resources, name(each), "redis", "redis")}
    assert keep == {*gateways, "video", "multitask"}
    for service in SETTINGS:
        assert not allowed(resources, "gateway", service, "metrics")
