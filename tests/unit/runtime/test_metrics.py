"""Counting never grows without bound and never stops a call."""

import logging

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram
from worldtree_runtime.metrics import METHOD_COUNT_MAX, RpcMetrics


def test_methods_beyond_the_bound_share_one_series() -> None:
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry, "gateway")
    for number in range(METHOD_COUNT_MAX + 50):
        metrics.started()
        metrics.finished(f"made.up/{number}", code="UNIMPLEMENTED", seconds=0.001)
    labels = {"service": "gateway", "method": "other", "code": "UNIMPLEMENTED"}
    assert registry.get_sample_value("worldtree_rpc_seconds_count", labels) == 50
    (family,) = [family for family in registry.collect() if family.name == "worldtree_rpc_seconds"]
    assert len({sample.labels["method"] for sample in family.samples}) == METHOD_COUNT_MAX + 1
    assert registry.get_sample_value("worldtree_rpc_in_flight", {"service": "gateway"}) == 0


@pytest.mark.parametrize("broken", [(Histogram, "observe"), (Gauge, "inc"), (Gauge, "dec")])
def test_a_failing_observer_is_logged_and_counted_and_not_raised(
    broken: tuple[type, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("the registry is broken")

    registry = CollectorRegistry()
    metrics = RpcMetrics(registry, "video")
    monkeypatch.setattr(*broken, explode)
    metrics.started()
    metrics.finished("a/B", code="OK", seconds=1.0)
    assert registry.get_sample_value("worldtree_observer_failures_total", {"service": "video"}) == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "the registry is broken" in str(record.exc_info)
