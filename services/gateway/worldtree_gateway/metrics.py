"""Every Prometheus name of the gateway, beside those of the runtime."""

from collections.abc import Callable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_RESULTS = ("hit", "stale", "joined", "miss", "bypass")  # of a call of a cacheable method


class Watched(Protocol):
    """What is read off a backend."""

    @property
    def address(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def load(self) -> float: ...
    @property
    def share(self) -> float: ...
    @property
    def usable(self) -> bool: ...
    @property
    def away(self) -> bool: ...


class GatewayMetrics:
    """Declared once a process; `registry` is the one that /metrics shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        cache_requests = Counter(
            "worldtree_cache_requests_total",
            "Calls of cacheable methods: hit (from the cache), stale (from it, while a new one is asked for), joined "
            "(from a call under way), miss, bypass.",
            ("result",),
            registry=registry,
        )
        # by result; looking a series up costs as much as half of what a hit needs otherwise
        self.cache_requests = {result: cache_requests.labels(result) for result in _RESULTS}
        self.store_errors = Counter(
            "worldtree_cache_store_errors_total",
            "Failures of the shared cache (Redis); each call went on without it. By what was done (get, set, flight, "
            "decode; skipped: too many writes under way) and what was wrong: timeout, unreachable, denied, full, other",
            ("operation", "fault"),
            registry=registry,
        )
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
        self._backend_away = Gauge(
            "worldtree_upstream_ejected",
            "1 while a backend gets no new calls as it failed one after the other.",
            ("service", "backend"),
            registry=registry,
        )
        self._backend_load = Gauge(
            "worldtree_upstream_load",
            "Calls under way at a backend, as far as is known here: ours and those of other gateways.",
            ("service", "backend"),
            registry=registry,
        )
        self._backend_share = Gauge(
            "worldtree_upstream_share",
            "How much of its share of the calls a backend is given; below 1 while it is new.",
            ("service", "backend"),
            registry=registry,
        )
        self._placements = Counter(
            "worldtree_placements_total",
            "Sessions by where they were opened: start (where others that begin alike have gone), overflow (not there, "
            "as that backend has more than its share to do), spread (at the one with the least to do).",
            ("service", "how"),
            registry=registry,
        )
        self.upstream_failures = Counter(
            "worldtree_upstream_failures_total",
            "Calls whose backend went away under them, those that another answered too.",
            ("service",),
            registry=registry,
        )

        self.retries = Counter(
            "worldtree_retries_total",
            "Calls that any backend can answer and one could not: sent to another, or refused: the budget was spent.",
            ("service", "result"),
            registry=registry,
        )

        self.hedges = Counter(
            "worldtree_hedges_total",
            "Copies of calls whose answer was late: won (the copy answered first), lost (it did not), refused (not "
            "sent: the budget was spent).",
            ("service", "result"),
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

        self.plays_left = Counter(
            "worldtree_plays_left_total",
            "Plays that this gateway has ended as it was about to stop, for another one to go on with.",
            registry=registry,
        )
        self.limited = Counter(
            "worldtree_limited_total",
            "Calls refused as their key had used up what it may: calls or frames by the second, streams at a time; or "
            "their tenant, sessions; their address, calls at a time.",
            ("quota",),
            registry=registry,
        )
        for quota in ("calls", "frames", "streams", "sessions", "peer"):
            self.limited.labels(quota)
        self.charged_frames = Counter(
            "worldtree_charged_frames_total",
            "Frames made for callers, each counted once for each of its function evaluations.",
            registry=registry,
        )
        self.limit_store_errors = Counter(
            "worldtree_limit_store_errors_total",
            "Failures of Redis to count what is used, by what was wrong; the gateway counted by itself.",
            ("fault",),
            registry=registry,
        )

        self._oip_sequences = Gauge(
            "worldtree_oip_sequences",
            "Sequences of the inference protocol that are open, each with a session of its own.",
            registry=registry,
        )
        self.refused_callers = Counter(
            "worldtree_refused_callers_total",
            "Calls that were not let in, by the reason: what was wrong with their credentials, or the role they need.",
            ("reason",),
            registry=registry,
        )

        self.openpi_connections = Gauge(
            "worldtree_openpi_connections", "Robots that are connected by openpi.", registry=registry
        )
        self.openpi_seconds = Histogram(
            "worldtree_openpi_seconds",
            "From an observation that came by openpi to its answer: chunk, refused (the observation cannot be used), "
            "failed (nothing could be planned).",
            ("result",),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        for result in ("chunk", "refused", "failed"):
            self.openpi_seconds.labels(result)

    def watch_cache(self, byte_count: Callable[[], float], store_up: Callable[[], float]) -> None:
        """Read at each scrape, so that the calls themselves pay nothing for it."""
        self._cache_bytes.set_function(byte_count)
        self._store_up.set_function(store_up)

    def watch_sequences(self, count: Callable[[], float]) -> None:
        """The same for the sequences of the inference protocol."""
        self._oip_sequences.set_function(count)

    def watch_backend(self, service: str, backend: Watched) -> None:
        """The same for one backend."""
        self._in_flight.labels(service, backend.address).set_function(lambda: backend.in_flight)
        self._backend_up.labels(service, backend.address).set_function(lambda: backend.usable)
        self._backend_away.labels(service, backend.address).set_function(lambda: backend.away)
        self._backend_load.labels(service, backend.address).set_function(lambda: backend.load)
        self._backend_share.labels(service, backend.address).set_function(lambda: backend.share)

    def forget_backend(self, service: str, backend: Watched) -> None:
        """It is not there any more."""
        self._in_flight.remove(service, backend.address)
        self._backend_up.remove(service, backend.address)
        self._backend_away.remove(service, backend.address)
        self._backend_load.remove(service, backend.address)
        self._backend_share.remove(service, backend.address)

    def placed(self, service: str, how: str) -> None:
        """A session is opened at a backend that was chosen so."""
        self._placements.labels(service, how).inc()


class WorkerMetrics:
    """Of the process that starts a gateway's workers, and answers no call itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = Gauge("worldtree_workers", "Processes of this gateway that are ready.", registry=registry)
        self.restarts = Counter(
            "worldtree_worker_restarts_total",
            "Processes of this gateway that ended and were started again.",
            registry=registry,
        )
