"""The metrics of every service's RPCs, and the HTTP port that they are read from."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

_log = logging.getLogger(__name__)

# one cached answer is well under a millisecond, one long rollout is minutes
RPC_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# a proxy is asked for methods by strangers; beyond this many names, what isn't declared shares one series
METHOD_COUNT_MAX = 256

_HEAD_BYTES_MAX = 8 * 1024
_READ_TIMEOUT_S = 5.0


def process_registry() -> CollectorRegistry:
    """A registry of one server's own, so that several can live in one process, with what is known of the process."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


class RpcMetrics:
    """How long calls take, how they end, how many are running."""

    def __init__(self, registry: CollectorRegistry, service: str) -> None:
        self._service = service
        self._declared: set[str] = set()
        self._methods: set[str] = set()
        self._seconds = Histogram(
            "worldtree_rpc_seconds",
            "Time from a call's start to its status.",
            ("service", "method", "code"),
            buckets=RPC_BUCKETS_S,
            registry=registry,
        )
        in_flight = Gauge("worldtree_rpc_in_flight", "Calls that are being handled.", ("service",), registry=registry)
        self._in_flight = in_flight.labels(service)
        self._observer_failures = Counter(
            "worldtree_observer_failures_total",
            "Observations that failed; each is in the log.",
            ("service",),
            registry=registry,
        )
        self._observer_failures.labels(service)
        self._series: dict[tuple[str, str], Histogram] = {}  # by method and code; looking one up costs a lock

    def declare(self, methods: Iterable[str]) -> None:
        """These keep a series of their own, however many names strangers make up."""
        self._declared.update(methods)

    def started(self) -> None:
        try:
            self._in_flight.inc()
        except Exception:
            self._failed()

    def finished(self, method: str, *, code: str, seconds: float, trace_id: str | None = None) -> None:
        """`trace_id` becomes the exemplar of the call's bucket, which leads from a slow bar to one slow call."""
        try:
            self._in_flight.dec()
        except Exception:
            self._failed()
        try:
            exemplar = None if trace_id is None else {"trace_id": trace_id}
            self._seconds_of(method, code).observe(seconds, exemplar)
        except Exception:
            self._failed()

    def _seconds_of(self, method: str, code: str) -> Histogram:
        series = self._series.get((method, code))
        if series is None:
            bounded = self._bounded(method)
            series = self._seconds.labels(self._service, bounded, code)
            if bounded == method:
                self._series[method, code] = series
        return series

    def _bounded(self, method: str) -> str:
        if method not in self._declared and method not in self._methods:
            if len(self._methods) >= METHOD_COUNT_MAX:
                return "other"
            self._methods.add(method)
        return method

    def _failed(self) -> None:
        """Serving doesn't stop because counting fails."""
        _log.exception("an observation failed", extra={"service": self._service})
        with suppress(Exception):  # the same registry, so it may fail the same way
            self._observer_failures.labels(self._service).inc()


class MetricsServer:
    """/metrics, /healthz (the event loop turns) and /readyz (`ready` says so) over plain HTTP/1.1.

    `before` is awaited before each answer, where others have to be asked for what the registry shows.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        ready: Callable[[], bool],
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._registry = registry
        self._ready = ready
        self._before = before
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listens; port 0 picks a free one. Raises OSError where the address can't be had."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_HEAD_BYTES_MAX)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        # a connection that sends nothing would hold up the end for as long as it may read
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _READ_TIMEOUT_S)
            method, path, headers = _read(head)
            if self._before is not None and path != "/healthz":  # which says it by answering
                await self._before()
            writer.write(self._response(method, path, headers))
            await asyncio.wait_for(writer.drain(), _READ_TIMEOUT_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that left or never finished its request; there is nobody to tell
        finally:
            writer.close()

    def _response(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        if method not in ("GET", "HEAD"):
            status, content_type, body = "405 Method Not Allowed", "text/plain", b"only GET and HEAD\n"
        else:
            status, content_type, body = self._page(path, headers.get("accept", ""))
        answer = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        return f"{answer}Connection: close\r\n\r\n".encode("latin-1") + (b"" if method == "HEAD" else body)

    def _page(self, path: str, accept: str) -> tuple[str, str, bytes]:
        try:
            match path:
                case "/metrics":
                    # the OpenMetrics form, which carries exemplars, for those who ask for it
                    encode, content_type = choose_encoder(accept)
                    return "200 OK", content_type, encode(self._registry)
                case "/healthz":
                    return "200 OK", "text/plain", b"ok\n"
                case "/readyz" if self._ready():
                    return "200 OK", "text/plain", b"ready\n"
                case "/readyz":
                    return "503 Service Unavailable", "text/plain", b"not ready\n"
                case _:
                    return "404 Not Found", "text/plain", b"only /metrics, /healthz and /readyz\n"
        except Exception:
            _log.exception("%s could not be answered", path)
            return "500 Internal Server Error", "text/plain", b"see the log\n"


def _read(head: bytes) -> tuple[str, str, Mapping[str, str]]:
    """The method of a request, its path without the query, and its headers by lower-case name."""
    request_line, *header_lines = head.decode("latin-1").split("\r\n")
    method, _, rest = request_line.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    headers = {}
    for line in header_lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return method, path, headers
