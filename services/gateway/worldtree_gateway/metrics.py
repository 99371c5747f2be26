"""Every Prometheus name of the gateway, beside those of the runtime."""

from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Watched(Protocol):
    """What is read off a backend."""

    @property
    def address(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def usable(self) -> bool: ...


class GatewayMetrics:
    """Declared once a process; `registry` is the one that /metrics shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.cache_requests = Counter(
            "worldtree_cache_requests_total",
            "Calls of cacheable methods: hit (from the cache), joined (from a call under way), miss, bypass.",
            ("result",),
            registry=registry,
        )
        for result in ("hit", "joined", "miss", "bypass"):
            self.cache_requests.labels(result)
        self.store_errors = Counter(
            "worldtree_cache_store_errors_total",
            "Failures of the shared cache (Redis); each call went on without it.",
            ("operation",),
            registry=registry,
        )
        for operation in ("get", "set", "decode", "skipped"):
            self.store_errors.labels(operation)
        self._cache_bytes = Gauge("worldtree_cache_bytes", "Bytes of answers held in this process.", registry=registry)
        self._store_up = Gauge(
            "worldtree_cache_store_up", "1 while the shared cache is in use, 0 while left alone.", registry=registry
        )
        self._in_flight = Gauge(
            "worldtree_upstream_in_flight", "Calls running at a backend.", ("service", "backend"), registry=registry
        )
        self._backend_up = Gauge(
            "worldtree_upstream_up", "1 while a backend takes calls.", ("service", "backend"), registry=registry
        )
        self.upstream_failures = Counter(
            "worldtree_upstream_failures_total",
            "Calls whose backend went away under them, those that another answered too.",
            ("service",),
            registry=registry,
        )

        self.failovers = Counter(
            "worldtree_failovers_total",
            "Calls whose replica was gone: ok (another, or the same again, answered), not_found (it knew no such "
            "session), failed (refused there), expired (nobody took it on in time).",
            ("service", "kind", "result"),
            registry=registry,
        )
        self.failover_pause = Histogram(
            "worldtree_failover_pause_seconds",
            "From the loss of a call's replica to the first answer of the next.",
            ("service", "kind"),
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )

    def watch_cache(self, byte_count: Callable[[], float], store_up: Callable[[], float]) -> None:
        """Read at each scrape, so that the calls themselves pay nothing for it."""
        self._cache_bytes.set_function(byte_count)
        self._store_up.set_function(store_up)

    def watch_backend(self, service: str, backend: Watched) -> None:
        """The same for one backend."""
        self._in_flight.labels(service, backend.address).set_function(lambda: backend.in_flight)
        self._backend_up.labels(service, backend.address).set_function(lambda: backend.usable)
