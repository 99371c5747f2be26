"""Writes worldtree.json, the dashboard, from the rows below: a title, a unit, and what each panel shows.

python deploy/grafana/draw.py
"""

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("worldtree.json")
WIDTH, HEIGHT, ACROSS = 8, 7, 3
# Without Kubernetes there is no namespace, which `.*` matches too.
HERE = 'namespace=~"$namespace"'

Panel = tuple[str, str, dict[str, str]]


def rate(metric: str, by: str, matchers: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{matchers}{HERE}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str = "", matchers: str = "") -> str:
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}le', matchers)})"


def mean(metric: str, by: str) -> str:
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


def total(metric: str, by: str) -> str:
    return f"sum by ({by}) ({metric}{{{HERE}}})"


ROWS: dict[str, list[Panel]] = {
    "What is promised": [
        (
            "Calls that end by a fault of ours (0.1%)",
            "percentunit",
            {f"worldtree:rpc_errors:ratio_rate{each}{{{HERE}}}": each for each in ("5m", "1h", "6h")},
        ),
        (
            "Controls not in frames within 0.4 s (1%)",
            "percentunit",
            {f"worldtree:controls_slow:ratio_rate{each}{{{HERE}}}": each for each in ("5m", "1h", "6h")},
        ),
        (
            "Chunks late for their plays (1%)",
            "percentunit",
            {f"worldtree:deadlines_missed:ratio_rate{each}{{{HERE}}}": each for each in ("5m", "1h", "6h")},
        ),
    ],
    "Calls": [
        ("Calls by code", "reqps", {rate("worldtree_rpc_seconds_count", "code", 'service="gateway",'): "{{code}}"}),
        ("Duration, 95th percentile", "s", {quantile(0.95, "worldtree_rpc_seconds", "service, "): "{{service}}"}),
        ("Under way", "short", {total("worldtree_rpc_in_flight", "service"): "{{service}}"}),
        (
            "Control to frames",
            "s",
            {
                quantile(0.5, "worldtree_control_latency_seconds"): "50%",
                quantile(0.95, "worldtree_control_latency_seconds"): "95%",
                f"worldtree:control_latency_seconds:p99_5m{{{HERE}}}": "99%",
            },
        ),
        ("Processes that answer", "short", {f"sum by (job) (up{{{HERE}}})": "{{job}}"}),
        ("Resident memory", "bytes", {f"process_resident_memory_bytes{{{HERE}}}": "{{job}} {{instance}}"}),
    ],
    "Gateway": [
        (
            "Replicas that take calls",
            "short",
            {f"sum by (service) (max by (service, backend) (worldtree_upstream_up{{{HERE}}}))": "{{service}}"},
        ),
        ("Failovers", "ops", {rate("worldtree_failovers_total", "service, result"): "{{service}} {{result}}"}),
        (
            "Pause of a failover, 95th percentile",
            "s",
            {quantile(0.95, "worldtree_failover_pause_seconds", "service, "): "{{service}}"},
        ),
        ("Cacheable calls", "ops", {rate("worldtree_cache_requests_total", "result"): "{{result}}"}),
        (
            "Redis's failures",
            "ops",
            {
                rate("worldtree_cache_store_errors_total", "operation, fault"): "{{operation}} {{fault}}",
                rate("worldtree_limit_store_errors_total", "fault"): "limits {{fault}}",
            },
        ),
        (
            "Not let in, or beyond its limits",
            "ops",
            {
                rate("worldtree_refused_callers_total", "reason"): "{{reason}}",
                rate("worldtree_limited_total", "quota"): "beyond its {{quota}}",
            },
        ),
    ],
    "Video": [
        (
            "Tick",
            "s",
            {quantile(each, "worldtree_tick_seconds", "model, "): f"{{{{model}}}} {each:.0%}" for each in (0.5, 0.95)},
        ),
        ("Members of a tick, mean", "short", {mean("worldtree_tick_batch_size", "model"): "{{model}}"}),
        ("A chunk's time, mean", "s", {mean("worldtree_chunk_seconds", "phase"): "{{phase}}"}),
        ("Engine time by work", "percentunit", {rate("worldtree_engine_seconds_total", "work"): "{{work}}"}),
        ("Promised to plays", "percentunit", {f"worldtree_play_load{{{HERE}}}": "{{instance}} {{model}}"}),
        (
            "Late and degraded chunks",
            "ops",
            {
                rate("worldtree_deadline_missed_total", "instance"): "late {{instance}}",
                rate("worldtree_degraded_chunks_total", "model"): "degraded {{model}}",
            },
        ),
        ("Blocks", "short", {total("worldtree_kv_blocks", "tier, state"): "{{tier}} {{state}}"}),
        ("Sessions", "short", {total("worldtree_sessions", "state"): "{{state}}"}),
        ("Sessions that are not journaled", "short", {total("worldtree_unprotected_sessions", "model"): "{{model}}"}),
        (
            "Sessions that left the pool and came back",
            "ops",
            {
                rate("worldtree_spilled_sessions_total", "model"): "spilled {{model}}",
                rate("worldtree_loaded_sessions_total", "model"): "loaded {{model}}",
                rate("worldtree_recomputed_sessions_total", "model"): "made again {{model}}",
            },
        ),
        ("Chunks that were known already", "ops", {rate("worldtree_prefix_hits_total", "model"): "{{model}}"}),
        (
            "Blocks dropped, refused, not answered",
            "ops",
            {
                rate("worldtree_tier_dropped_total", "tier"): "dropped {{tier}}",
                rate("worldtree_tier_refused_total", "tier"): "refused {{tier}}",
                rate("worldtree_tier_unavailable_total", "tier"): "no answer {{tier}}",
            },
        ),
    ],
    "Multi-task, reward, navigator": [
        (
            "Waiting images and frames",
            "short",
            {
                total("worldtree_predict_waiting_images", "model"): "{{model}}",
                total("worldtree_score_waiting_frames", "model"): "{{model}}",
            },
        ),
        (
            "Run of a network, 95th percentile",
            "s",
            {
                quantile(0.95, "worldtree_predict_run_seconds", "model, "): "{{model}}",
                quantile(0.95, "worldtree_score_run_seconds", "model, "): "{{model}}",
                quantile(0.95, "worldtree_policy_round_seconds", "model, "): "{{model}}",
            },
        ),
        ("Merges made", "ops", {rate("worldtree_merge_creations_total", "result"): "{{result}}"}),
        (
            "Robots",
            "short",
            {
                f"sum(worldtree_navigations{{{HERE}}})": "navigations",
                f"sum(worldtree_openpi_connections{{{HERE}}})": "by openpi",
            },
        ),
        (
            "Observation to actions, 95th percentile",
            "s",
            {
                quantile(0.95, "worldtree_decision_seconds", "planner, "): "{{planner}}",
                quantile(0.95, "worldtree_openpi_seconds", "result, "): "by openpi: {{result}}",
            },
        ),
        ("Chunks of futures", "ops", {rate("worldtree_imagined_chunks_total", "result"): "{{result}}"}),
    ],
}


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": WIDTH * ACROSS, "h": 1}})
        for index, panel in enumerate(row):
            panels.append(_panel(*panel, x=index % ACROSS * WIDTH, y=y + 1 + index // ACROSS * HEIGHT))
        y += 1 + -(-len(row) // ACROSS) * HEIGHT
    for number, each in enumerate(panels, start=1):
        each["id"] = number
    return {
        "uid": "worldtree",
        "title": "Worldtree",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_data_source(), _namespace()]},
        "panels": panels,
    }


def _panel(title: str, unit: str, shown: dict[str, str], *, x: int, y: int) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": expression,
                "legendFormat": legend,
                # a slow bar leads to the trace of one slow call
                "exemplar": "_bucket" in expression,
            }
            for index, (expression, legend) in enumerate(shown.items())
        ],
    }


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus"}


def _namespace() -> dict[str, Any]:
    return {
        "name": "namespace",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": "label_values(worldtree_rpc_in_flight, namespace)",
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=1) + "\n")
