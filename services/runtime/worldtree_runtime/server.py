"""A service's server: gRPC with health, reflection and limits, HTTP for metrics, and a drain at its end."""

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import Default
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import CollectorRegistry

from worldtree_runtime.address import joined
from worldtree_runtime.health import SERVICE_NAME as HEALTH_SERVICE
from worldtree_runtime.health import Health
from worldtree_runtime.interceptors import CallInterceptor
from worldtree_runtime.metrics import MetricsServer, RpcMetrics, process_registry
from worldtree_runtime.process import run
from worldtree_runtime.settings import ServiceSettings, SettingsError
from worldtree_runtime.tracing import Tracer

__all__ = ["RunningServer", "always", "run", "start_server"]

_log = logging.getLogger(__name__)

# A connection without traffic is probed each 20 s and given up 10 s later, so that a client whose machine vanished
# doesn't hold its session longer. Clients may probe us as often as each 5 s, also between calls.
_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # two servers on one port would share its connections, where the second should fail
    ("grpc.so_reuseport", 0),
)


def always() -> bool:
    return True


class RunningServer:
    """What a service holds of its server while it runs."""

    def __init__(
        self,
        service: str,
        address: str,
        metrics_address: str,
        health: Health,
        closed: asyncio.Event,
        inside_address: str,
    ) -> None:
        self.service = service
        self.address = address
        self.metrics_address = metrics_address
        self.inside_address = inside_address  # for this process itself; the same where nothing is encrypted
        self._health = health
        self._closed = closed

    @property
    def ready_line(self) -> str:
        return f"worldtree ready service={self.service} grpc={self.address} metrics={self.metrics_address}"

    def announce(self, **also: str) -> None:
        """Prints the one line that stdout gets, for whoever started this process and waits. `also`: more addresses."""
        print(self.ready_line, *(f"{name}={address}" for name, address in also.items()), flush=True)

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
    options: Sequence[tuple[str, int]] = (),
    inside: str | None = None,
    metrics_host: str | None = None,
    believes: bool = True,
    held: Callable[[], int] | None = None,
) -> AsyncIterator[RunningServer]:
    """Serves from here to the end of the block. `register` adds the servicers and returns their full names.
    `credentials`: None for no encryption. `options`: gRPC's, in the place of ours where the names are the same.
    `inside`: where the process reaches its own server too, without encryption; for nobody else.
    `metrics_host`: where HTTP is served; None: at the settings' host.
    `held`: how many sessions there are, told to gateways; None: the service has none.
    `believes`: whether spans and the access log say for whom a call is as its metadata does.

    At the end: health turns NOT_SERVING, `on_drain` runs while calls still are answered, new calls are refused, and
    running ones get what is left of `drain_timeout_s`. Raises OSError where an address can't be had.
    """
    registry = process_registry() if registry is None else registry
    metrics = RpcMetrics(registry, service)
    tracer = _tracer(settings, service, registry)
    around = CallInterceptor(
        metrics,
        unread_s=settings.unread_s,
        tracer=tracer,
        access_log=service if settings.access_log else None,
        believes=believes,
        held=held,
    )
    server = grpc.aio.server(
        interceptors=[around, *interceptors],
        options=(
            *(pair for pair in _OPTIONS if pair[0] not in dict(options)),
            *options,
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
        ),
    )
    names = list(register(server))
    metrics.declare(_methods([*names, HEALTH_SERVICE]))
    health = Health(names, ready=_logged(ready))
    health.add_to(server)
    _add_reflection(server, [*names, HEALTH_SERVICE])
    port = _listen(server, settings, credentials)
    if inside is not None:
        server.add_insecure_port(inside)
    async with tracer or nullcontext(), MetricsServer(registry, ready=health.is_serving) as metrics_server:
        metrics_host = metrics_host or settings.host
        await metrics_server.start(metrics_host, settings.metrics_port)
        await server.start()
        closed = asyncio.Event()
        address, metrics_address = joined(settings.host, port), joined(metrics_host, metrics_server.port)
        _log.info("serving", extra={"service": service, "grpc": address, "metrics": metrics_address})
        try:
            yield RunningServer(service, address, metrics_address, health, closed, inside or address)
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


def _tracer(settings: ServiceSettings, service: str, registry: CollectorRegistry) -> Tracer | None:
    if settings.otel_endpoint is None:
        return None
    try:
        # here, as whoever doesn't trace need not have it, nor spend the time to load it
        from worldtree_runtime.otel import OtelTracer
    except ImportError as error:
        raise SettingsError("otel_endpoint needs the extra otel: pip install 'worldtree-server[otel]'") from error
    return OtelTracer(
        service=service,
        replica=settings.replica,
        endpoint=settings.otel_endpoint,
        sample_share=settings.otel_sample_share,
        registry=registry,
    )


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
    address = joined(settings.host, settings.port)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(errno.EADDRINUSE, f"cannot listen on {address} for gRPC: is the port taken?") from error
    return int(port)
