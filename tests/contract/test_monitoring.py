"""Rules, alerts, dashboard and autoscaling: their PromQL asks for what the services export, each alert can be looked up
and is tested, and what was made from them is not stale.
"""

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_reward.metrics import RewardMetrics
from worldtree_runtime.metrics import RpcMetrics, process_registry
from worldtree_video.metrics import VideoMetrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULE_FILES = sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
RUNBOOKS = ROOT / "docs/runbooks"
SERVICES = ("gateway", "video", "multitask", "reward", "navigator")
# what Prometheus adds to every series: by docker-compose.yml the first two, by the PodMonitor all
TARGET_LABELS = {"job", "instance", "namespace", "pod"}
WINDOW = "5m"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def exported() -> dict[str, tuple[set[str], set[str]]]:
    """By the name of each series that a service shows: its labels, and the values that `le` may have."""
    registry = CollectorRegistry()
    RpcMetrics(registry, "any")
    metrics: list[Callable[[CollectorRegistry], object]] = [
        GatewayMetrics,
        VideoMetrics,
        MultitaskMetrics,
        RewardMetrics,
        NavigatorMetrics,
    ]
    for declare in metrics:
        declare(registry)
    process = {sample.name for metric in process_registry().collect() for sample in metric.samples}
    found: dict[str, tuple[set[str], set[str]]] = {name: (set(), set()) for name in ("up", *process)}
    for series, collector in registry._names_to_collectors.items():
        labels = set(getattr(collector, "_labelnames", ()))
        bounds = {f"{bound:g}" for bound in getattr(collector, "_upper_bounds", ())} - {"inf"}
        found[series] = (labels | {"le"}, bounds) if series.endswith("_bucket") else (labels, set())
    return found


def rules() -> list[dict[str, Any]]:
    groups = [group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((DEPLOY / "grafana/worldtree.json").read_text())
    return document


def adapter_rules() -> list[dict[str, Any]]:
    text = (DEPLOY / "k8s/components/autoscaling/prometheus-adapter.yaml").read_text()
    found: list[dict[str, Any]] = yaml.safe_load(text)["rules"]["custom"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression, and where it stands."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"].replace("$__rate_interval", WINDOW).replace("$namespace", ".*")
            yield f"dashboard: {panel['title']}", text
    for rule in adapter_rules():
        yield "adapter", rule["seriesQuery"]
        for series in sorted(series_of(rule)):
            text = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
            yield f"adapter: {series}", text.replace("<<.LabelMatchers>>", 'namespace="worldtree"')
    for page in sorted(RUNBOOKS.glob("*.md")):
        for text in re.findall(r"`([^`]+)`", page.read_text()):
            if (
                re.match(r"worldtree[_:]\w|(topk|sum|histogram_quantile)[ (]", text)
                and text != "worldtree_gateway.audit"
            ):
                yield page.name, text


def series_of(rule: dict[str, Any]) -> set[str]:
    """The series that a rule of the adapter is about."""
    query = promql_parser.parse(rule["seriesQuery"])
    assert isinstance(query, promql_parser.VectorSelector)
    if query.name is not None:
        return {query.name}
    (pattern,) = [each.value for each in query.matchers.matchers if each.name == "__name__"]
    return {name for name in exported() if re.fullmatch(pattern, name)}


def nodes(expression: str) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []
    promql_parser.walk(promql_parser.parse(expression), found.append)
    return found


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    return [
        node.vector_selector if isinstance(node, promql_parser.MatrixSelector) else node
        for node in nodes(expression)
        if isinstance(node, promql_parser.VectorSelector | promql_parser.MatrixSelector)
    ]


@cache
def words_of_the_services() -> set[str]:
    """Every string in the services, as the values of labels are written there."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "services").rglob("*.py")))
    members = {name.lower() for name in re.findall(r"^    ([A-Z_]+) = ", text, re.MULTILINE)}  # of enums
    return {*re.findall(r'"([\w-]+)"', text), *members, *(code.name for code in grpc.StatusCode), *SERVICES}


def wrong(expression: str) -> list[str]:
    """What an expression asks for that nobody exports."""
    found = []
    known = exported()
    labels = set(TARGET_LABELS)
    for selector in selectors(expression):
        own: set[str] | None = None
        if selector.name is None:
            own = set(TARGET_LABELS) | {"__name__"}
        elif selector.name in known:
            own = known[selector.name][0] | TARGET_LABELS
        elif selector.name in recorded():
            own = set(TARGET_LABELS) | {"model", "tier"}
        else:
            found.append(f"no metric {selector.name}")
            continue
        labels |= own
        for matcher in selector.matchers.matchers:
            if matcher.name not in own:
                found.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.name == "le":
                if matcher.value not in known[selector.name][1]:
                    found.append(f"{selector.name} has no bucket {matcher.value}")
            elif matcher.name not in {*TARGET_LABELS, "__name__"} - {"job"}:
                values = {value for value in matcher.value.split("|") if re.fullmatch(r"[\w-]+", value)}
                found += [f"{matcher.name} is never {value}" for value in values - words_of_the_services()]
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found += [f"nothing has the label {label}" for label in set(node.modifier.labels) - labels]
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_an_expression_asks_for_what_is_exported(where: str, expression: str) -> None:
    assert wrong(expression) == []


@pytest.mark.parametrize(
    "expression",
    [
        "worldtree_ticks_seconds_count",
        'worldtree_tick_seconds_count{modell="doom"}',
        'worldtree_chunk_seconds_count{phase="commmit"}',
        'worldtree_control_latency_seconds_bucket{le="0.3"}',
        "sum by (modell) (rate(worldtree_tick_seconds_count[5m]))",
        "worldtree:nothing:ratio",
    ],
)
def test_an_expression_that_asks_for_something_else_is_noticed(expression: str) -> None:
    assert wrong(expression)


def test_rules_and_the_dashboard_ask_no_histogram_by_its_bare_name() -> None:
    """It has no series: only _bucket, _sum and _count are scraped."""
    bare = {name for name in exported() if f"{name}_bucket" in exported()}
    for where, expression in expressions():
        if not where.endswith(".md"):
            assert not bare & {selector.name for selector in selectors(expression)}, where


def test_what_is_recorded_is_named_as_prometheus_recommends_and_used() -> None:
    used = {selector.name for _, expression in expressions() for selector in selectors(expression)}
    for name in recorded():
        assert re.fullmatch(r"worldtree:[a-z_]+:[a-z0-9_]+", name)
        assert name in used, name


# ---- alerts


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_an_alert_says_how_bad_it_is_and_where_to_look(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Worldtree[A-Z]\w+", alert["alert"])
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"]
    runbook = ROOT / alert["annotations"]["runbook"]
    assert runbook == RUNBOOKS / f"{alert['alert']}.md"
    text = runbook.read_text()
    assert text.startswith(f"# {alert['alert']}\n")
    assert "\n## Look\n" in text
    assert "\n## Do\n" in text


def test_every_runbook_is_of_an_alert_and_its_links_lead_somewhere() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == {alert["alert"] for alert in alerts()}
    for page in RUNBOOKS.glob("*.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (RUNBOOKS / link).is_file(), f"{page.name}: {link}"


def test_runbooks_name_settings_that_exist() -> None:
    files = [*(ROOT / "services").glob("*/worldtree_*/config.py"), *(ROOT / "services/runtime").rglob("settings.py")]
    fields = {name for file in files for name in re.findall(r"^    (\w+): .*Field\(", file.read_text(), re.MULTILINE)}
    assert "play_load_max" in fields
    for page in RUNBOOKS.glob("*.md"):
        for text in re.findall(r"`([a-z]+_[a-z_]+)`", page.read_text()):
            if not text.startswith("worldtree_") and text != "request_id":
                assert text in fields | words_of_the_services(), f"{page.name}: {text}"


def test_every_alert_is_tested_to_fire_and_not_to() -> None:
    document = yaml.safe_load((DEPLOY / "prometheus/rules_test.yml").read_text())
    assert sorted(document["rule_files"]) == [f"rules/{file.name}" for file in RULE_FILES]
    fired, silent = set(), set()
    for case in document["tests"]:
        for check in case["alert_rule_test"]:
            expected = check["exp_alerts"]
            fired |= {(check["alertname"], each["exp_labels"]["severity"]) for each in expected}
            # only that series for which it fires, where there are others
            if len(expected) < len(case["input_series"]):
                silent.add(check["alertname"])
    assert fired == {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}
    assert silent == {alert["alert"] for alert in alerts()}


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", *RULE_FILES)


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", DEPLOY / "prometheus/rules_test.yml")


# ---- what is made from the rules, and who reads the metrics


def test_prometheus_reads_the_rules() -> None:
    (pattern,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["rule_files"]
    assert sorted((DEPLOY / "prometheus").glob(pattern)) == RULE_FILES


def test_the_rules_for_kubernetes_are_those_of_prometheus() -> None:
    made = loaded(DEPLOY / "prometheus/to_kubernetes.py")
    assert made.OUT.read_text() == made.prometheus_rule(), "run deploy/prometheus/to_kubernetes.py"


def test_the_dashboard_is_the_one_that_is_drawn() -> None:
    assert dashboard() == loaded(DEPLOY / "grafana/draw.py").dashboard(), "run deploy/grafana/draw.py"


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_the_pod_monitor_makes_the_jobs_that_alerts_know() -> None:
    monitor = yaml.safe_load((DEPLOY / "k8s/components/monitoring/pod-monitor.yaml").read_text())["spec"]
    assert [each["port"] for each in monitor["podMetricsEndpoints"]] == ["metrics"]
    for service in SERVICES:
        documents = yaml.safe_load_all((DEPLOY / f"k8s/base/{service}.yaml").read_text())
        (workload,) = [each for each in documents if each["kind"] in ("Deployment", "StatefulSet")]
        assert workload["spec"]["template"]["metadata"]["labels"][monitor["jobLabel"]] == service


def test_autoscalers_ask_for_what_the_adapter_offers() -> None:
    offered = set()
    for rule in adapter_rules():
        assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
        offered |= {rule["name"]["as"]} if "name" in rule else series_of(rule)
    documents = yaml.safe_load_all((DEPLOY / "k8s/components/autoscaling/autoscalers.yaml").read_text())
    asked = {
        metric["pods"]["metric"]["name"]
        for scaler in documents
        for metric in scaler["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert asked == offered
