"""A service's server: gRPC with health, reflection and limits, HTTP for metrics, and a drain at its end."""

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import Default
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import CollectorRegistry

from worldtree_runtime.health import SERVICE_NAME as HEALTH_SERVICE
from worldtree_runtime.health import Health
from worldtree_runtime.interceptors import CallInterceptor
from worldtree_runtime.metrics import MetricsServer, RpcMetrics, process_registry
from worldtree_runtime.process import run
from worldtree_runtime.settings import ServiceSettings

__all__ = ["RunningServer", "always", "run", "start_server"]

_log = logging.getLogger(__name__)

# A connection without traffic is probed each 20 s and given up 10 s later, so that a client whose machine vanished
# doesn't hold its session longer. Clients may probe us as often as each 5 s, also between calls.
_KEEPALIVE_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


def always() -> bool:
    return True


class RunningServer:
    """What a service holds of its server while it runs."""

    def __init__(self, service: str, address: str, metrics_address: str, health: Health, closed: asyncio.Event) -> None:
        self.service = service
        self.address = address
        self.metrics_address = metrics_address
        self._health = health
        self._closed = closed

    @property
    def ready_line(self) -> str:
        return f"worldtree ready service={self.service} grpc={self.address} metrics={self.metrics_address}"

    def announce(self) -> None:
        """Prints the one line that stdout gets, for whoever started this process and waits."""
        print(self.ready_line, flush=True)

    def set_serving(self, serving: bool) -> None:
        """Health and /readyz say whether new work is welcome; calls are answered either way."""
        self._health.set_serving(serving)

    async def wait_closed(self) -> None:
        """Returns when the server has stopped. A service's main waits here until it is cancelled."""
        # not grpc's wait_for_termination: cancelling that one cancels what `stop` waits for, and cuts the drain short
        await self._closed.wait()


@asynccontextmanager
async def start_server(
    settings: ServiceSettings,
    *,
    service: str,
    register: Callable[[grpc.aio.Server], Sequence[str]],
    ready: Callable[[], bool] = always,
    on_drain: Callable[[], Awaitable[None]] | None = None,
    registry: CollectorRegistry | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[RunningServer]:
    """Serves from here to the end of the block. `register` adds the servicers and returns their full names.

    At the end: health turns NOT_SERVING, `on_drain` runs while calls still are answered, new calls are refused, and
    running ones get what is left of `drain_timeout_s`. Raises OSError where an address can't be had.
    """
    registry = process_registry() if registry is None else registry
    metrics = RpcMetrics(registry, service)
    server = grpc.aio.server(
        interceptors=[CallInterceptor(metrics, unread_s=settings.unread_s), *interceptors],
        options=(
            *_KEEPALIVE_OPTIONS,
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # two servers on one port would share its connections, where the second should fail
            ("grpc.so_reuseport", 0),
        ),
    )
    names = list(register(server))
    metrics.declare(_methods([*names, HEALTH_SERVICE]))
    health = Health(names, ready=_logged(ready))
    health.add_to(server)
    _add_reflection(server, [*names, HEALTH_SERVICE])
    port = _listen(server, settings, credentials)
    async with MetricsServer(registry, ready=health.is_serving) as metrics_server:
        await metrics_server.start(settings.host, settings.metrics_port)
        await server.start()
        closed = asyncio.Event()
        address, metrics_address = _join(settings.host, port), _join(settings.host, metrics_server.port)
        _log.info("serving", extra={"service": service, "grpc": address, "metrics": metrics_address})
        try:
            yield RunningServer(service, address, metrics_address, health, closed)
        finally:
            health.drain()
            ends_s = time.monotonic() + settings.drain_timeout_s
            _log.info("draining", extra={"service": service, "drain_timeout_s": settings.drain_timeout_s})
            try:
                if on_drain is not None:
                    await _drain(on_drain, settings.drain_timeout_s)
            finally:
                await server.stop(max(0.0, ends_s - time.monotonic()))
                closed.set()
            _log.info("stopped", extra={"service": service})


async def _drain(on_drain: Callable[[], Awaitable[None]], timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await on_drain()
    except TimeoutError:
        _log.error("the drain took more than its %g s; what it had not saved is lost", timeout_s)
    except Exception:
        # the calls that still run shall end properly all the same
        _log.exception("the drain failed")


def _logged(ready: Callable[[], bool]) -> Callable[[], bool]:
    def safely_ready() -> bool:
        try:
            return ready()
        except Exception:
            _log.exception("the readiness check failed")
            return False

    return safely_ready


def _methods(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        # a service of raw bytes may have no descriptor here
        with suppress(KeyError):
            yield from (f"{name}/{each.name}" for each in Default().FindServiceByName(name).methods)


def _add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    servicer = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    # v1 has the messages of v1alpha under another name, and newer clients ask for it first
    for name in (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection"):
        generic = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((generic,))


def _listen(server: grpc.aio.Server, settings: ServiceSettings, credentials: grpc.ServerCredentials | None) -> int:
    address = _join(settings.host, settings.port)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(errno.EADDRINUSE, f"cannot listen on {address} for gRPC: is the port taken?") from error
    return int(port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
