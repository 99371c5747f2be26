"""Puts a gateway together: settings -> backends -> cache -> proxy -> server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import grpc.aio
from worldtree.gateway.v1.gateway_pb2_grpc import add_GatewayServicer_to_server
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.server import RunningServer, start_server
from worldtree_runtime.stores import RedisStore

from worldtree_gateway.backends import Backend
from worldtree_gateway.buckets import Buckets, LocalBuckets, SharedBuckets
from worldtree_gateway.cache import AnswerCache
from worldtree_gateway.cached_calls import CachedCalls
from worldtree_gateway.canary import Canary
from worldtree_gateway.channelz import SERVICE_NAME as CHANNELZ_SERVICE
from worldtree_gateway.channelz import add_channelz
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.digests import ModelDigests
from worldtree_gateway.discovery import Discovery
from worldtree_gateway.domain import GATEWAY, SERVICES, Service
from worldtree_gateway.doors import Doors
from worldtree_gateway.flights import Flights
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.oip import SERVICE_NAME as INFERENCE_SERVICE
from worldtree_gateway.oip import InferenceEndpoint
from worldtree_gateway.openings import LocalOpenings, SharedOpenings
from worldtree_gateway.openpi import serve_openpi
from worldtree_gateway.outliers import Standing
from worldtree_gateway.play_failover import PlayFailover
from worldtree_gateway.proxy import Proxy
from worldtree_gateway.purges import Purges
from worldtree_gateway.quotas import Limits, Quotas
from worldtree_gateway.rate import Rate
from worldtree_gateway.relay import Relay
from worldtree_gateway.replays import Replays
from worldtree_gateway.rest import serve_rest
from worldtree_gateway.retry_budget import RetryBudget
from worldtree_gateway.routing import Router
from worldtree_gateway.security import open_security
from worldtree_gateway.servicer import GatewayAdmin
from worldtree_gateway.session_quota import SessionQuota
from worldtree_gateway.shared_answers import SharedAnswers
from worldtree_gateway.shared_flights import SharedFlights
from worldtree_gateway.shared_redis import SharedRedis
from worldtree_gateway.shares import to_shares
from worldtree_gateway.sharing import Sharing

_log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"  # where a worker shows its metrics: to the process that started it
_WINDOW_BYTES = 4 * 1024 * 1024  # of a stream too large for the cache, between its fastest and its slower callers


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """What a process, or a test, holds of a gateway while it runs. `openpi_address` and `rest_address`: None where that
    is not served.
    """

    server: RunningServer
    routers: tuple[Router, ...]
    cache: AnswerCache
    flights: Flights
    quotas: Quotas
    watching: tuple[asyncio.Task[None], ...]
    openpi_address: str | None = None
    rest_address: str | None = None

    @property
    def ready(self) -> bool:
        """Whether each configured service has a backend that takes calls."""
        return _ready(self.routers)

    async def wait_ready(self) -> None:
        """Returns when each configured service has had a backend that takes calls; the log tells the progress."""
        for router in self.routers:
            await self._watched(router.wait_ready())

    async def wait_closed(self) -> None:
        """Returns when the server has stopped."""
        await self._watched(self.server.wait_closed())

    async def _watched(self, waiting: Coroutine[None, None, None]) -> None:
        """A watcher never ends by itself, so the bug that ended one is raised rather than waited out."""
        task = asyncio.create_task(waiting)
        try:
            done, _ = await asyncio.wait((task, *self.watching), return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            task.cancel()


@asynccontextmanager
async def start_gateway(
    settings: GatewaySettings, *, services: tuple[Service, ...] = SERVICES, worker: int | None = None
) -> AsyncIterator[RunningGateway]:
    """Serves from here to the end of the block; calls that come before a backend answered get UNAVAILABLE.

    `worker`: the number of this process among those that share the port; None: it is alone. The first one alone speaks
    openpi and HTTP, whose ports are not shared: an episode of a robot is remembered by one process.
    """
    first = not worker
    async with AsyncExitStack() as stack:
        registry = process_registry()
        metrics = GatewayMetrics(registry)
        opening = open_security(settings, services, metrics, shares_port=worker is not None)
        security = await stack.enter_async_context(opening)
        cache = AnswerCache(settings.cache_bytes, stale_s=settings.cache_stale_s)
        replays = Replays(cache, settings.flight_bytes)
        flights = Flights(
            flight_bytes=min(settings.cache_entry_bytes, settings.flight_bytes),
            total_bytes=settings.flight_bytes,
            window_bytes=_WINDOW_BYTES,
        )
        redis = SharedRedis.of(settings)
        if redis is not None:
            stack.push_async_callback(redis.close)
        shared = _open_shared(settings, redis, metrics)
        if shared is not None:
            stack.push_async_callback(shared.close)
        purges = Purges(
            cache, redis.small.writes if redis is not None and settings.cache else None, look_s=settings.purge_look_s
        )
        sharing = Sharing(settings.cache_shared_models, settings.cache_shared_tenants)
        shared_flights = _open_shared_flights(settings, redis, metrics)
        if shared_flights is not None:
            stack.push_async_callback(shared_flights.close)
        metrics.watch_cache(lambda: cache.byte_count, lambda: shared is not None and shared.up)

        quotas = _open_quotas(settings, redis, metrics)
        stack.push_async_callback(quotas.close)

        relays: dict[str, Relay] = {}
        cached_calls: dict[str, CachedCalls] = {}
        plays: dict[str, PlayFailover] = {}
        routers: list[Router] = []
        for service in services:
            if not settings.backends(service.section):
                continue
            router = _open_router(service, settings, metrics)
            stack.push_async_callback(router.close)
            relay = Relay(
                router,
                metrics,
                quotas,
                RetryBudget(ratio=settings.retry_ratio, per_s=settings.retries_per_s),
                unary_timeout_s=settings.unary_timeout_s,
                rehome_timeout_s=settings.rehome_timeout_s,
                hedge_after_s=settings.hedge_after_s,
            )
            routers.append(router)
            relays[service.section] = relay
            plays[service.section] = PlayFailover(
                relay, log_bytes=settings.play_log_bytes, drain_s=settings.drain_timeout_s, left=metrics.plays_left.inc
            )
            if settings.cache:
                digests = _open_digests(service, relay, settings)
                cached_calls[service.section] = CachedCalls(
                    relay,
                    cache,
                    replays,
                    shared,
                    flights,
                    shared_flights,
                    digests,
                    sharing,
                    metrics,
                    ttl_max_s=settings.cache_ttl_max_s,
                )
                stack.push_async_callback(cached_calls[service.section].close)

        inference = InferenceEndpoint(settings, list(relays), ready=lambda: _ready(routers))
        metrics.watch_sequences(lambda: inference.sequence_count)

        doors = Doors()

        async def drain() -> None:
            for play in plays.values():
                play.begin_drain()
            await doors.close()  # what came in by them is still answered here
            await asyncio.gather(*(play.drain() for play in plays.values()))

        def register(server: grpc.aio.Server) -> Sequence[str]:
            sessions = _open_session_quota(settings, relays, redis, metrics)
            proxy = Proxy(services, relays, cached_calls, plays, Canary(to_shares(settings.canary)), sessions)
            server.add_generic_rpc_handlers((proxy, inference.handlers))
            add_GatewayServicer_to_server(GatewayAdmin(purges, sharing), server)
            names = [*(each.full_name for each in services if each.section in relays), INFERENCE_SERVICE]
            if settings.channelz:
                add_channelz(server)
                names.append(CHANNELZ_SERVICE)
            return [*names, GATEWAY.full_name]

        watching = [asyncio.create_task(router.watch(), name=f"watch {router.section}") for router in routers]
        watching.append(asyncio.create_task(quotas.run(), name="settle quotas"))
        if purges.reaches_all:
            watching.append(asyncio.create_task(purges.run(), name="hear of purges"))
        stack.push_async_callback(_end, watching)  # where the start fails
        if worker is not None:
            # others answer on this port already: it takes no share of their connections before it knows a backend
            await _wait_ready(routers, settings.probe_timeout_s)
        server = await stack.enter_async_context(
            start_server(
                settings,
                service="gateway",
                register=register,
                ready=lambda: _ready(routers),
                on_drain=drain if settings.drain_timeout_s else None,  # with no time for it, calls are cut
                registry=registry,
                interceptors=security.interceptors,
                credentials=None if security.certificates is None else security.certificates.credentials(),
                options=(*security.options, ("grpc.so_reuseport", int(worker is not None))),
                metrics_host=None if worker is None else _LOOPBACK,
                inside=security.inside,
                believes=False,  # a caller is whom the guard finds it to be
            )
        )
        if not settings.drain_timeout_s:
            stack.push_async_callback(doors.close)
        await doors.open(inference.serving(server.inside_address))
        rest_address = None
        if settings.http_port is not None and first:
            rest = serve_rest(settings, settings.http_port, server.inside_address, security, services, metrics)
            rest_address = await doors.open(rest)
        openpi_address = None
        if "navigator" in relays and first:
            openpi_address = await doors.open(serve_openpi(settings, server.inside_address, metrics, security))
        stack.push_async_callback(_end, watching)  # first of all: a drain needs nobody who looks for new backends
        yield RunningGateway(
            server, tuple(routers), cache, flights, quotas, tuple(watching), openpi_address, rest_address
        )


async def serve_gateway(settings: GatewaySettings, *, worker: int | None = None) -> None:
    """Until cancelled. The ready line comes once each configured service has a backend."""
    async with start_gateway(settings, worker=worker) as gateway:
        _log.info("waiting for a backend of each of: %s", ", ".join(each.section for each in gateway.routers))
        await gateway.wait_ready()
        also = {"openpi": gateway.openpi_address, "rest": gateway.rest_address}
        gateway.server.announce(**{name: address for name, address in also.items() if address})
        await gateway.wait_closed()


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _wait_ready(routers: Sequence[Router], within_s: float) -> None:
    """Returns when each has a backend, or after so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(router.wait_ready() for router in routers))


def _ready(routers: Sequence[Router]) -> bool:
    return all(router.ready for router in routers)


def _open_router(service: Service, settings: GatewaySettings, metrics: GatewayMetrics) -> Router:
    def make(address: str) -> Backend:
        backend = Backend(
            service,
            address,
            max_message_bytes=settings.max_message_bytes,
            probe_timeout_s=settings.probe_timeout_s,
            probe_interval_s=settings.probe_interval_s,
            standing=Standing(failure_limit=settings.ejection_failures, base_s=settings.ejection_s),
            ramp_s=settings.slow_start_s,
        )
        metrics.watch_backend(service.section, backend)
        return backend

    return Router(
        service.section,
        Discovery(settings.backends(service.section)),
        make,
        partial(metrics.forget_backend, service.section),
        placed=partial(metrics.placed, service.section),
        start_load_factor=settings.start_load_factor,
        retry_after_s=settings.retry_after_s,
        moved_limit=settings.moved_sessions,
        look_interval_s=settings.look_interval_s,
    )


def _open_quotas(settings: GatewaySettings, redis: SharedRedis | None, metrics: GatewayMetrics) -> Quotas:
    limits = Limits(
        calls=_rate(settings.calls_per_s, settings.calls_burst),
        frames=_rate(settings.frames_per_s, settings.frames_burst),
        streams=settings.streams_per_key or None,
    )
    buckets: Buckets = LocalBuckets()
    if redis is not None and (limits.calls or limits.frames):
        buckets = SharedBuckets(redis.small.reads, redis.small.breaker, metrics)
    return Quotas(buckets, limits, metrics)


def _open_session_quota(
    settings: GatewaySettings, relays: Mapping[str, Relay], redis: SharedRedis | None, metrics: GatewayMetrics
) -> SessionQuota | None:
    video = relays.get("video")
    if video is None or not settings.sessions_per_tenant:
        return None
    openings = LocalOpenings() if redis is None else SharedOpenings(redis.small.reads, redis.small.breaker, metrics)
    limit = settings.sessions_per_tenant
    return SessionQuota(video.router, openings, limit, metrics, timeout_s=settings.probe_timeout_s)


def _rate(per_s: float, burst: float) -> Rate | None:
    return Rate(per_s, burst or max(1.0, per_s)) if per_s else None


def _open_digests(service: Service, relay: Relay, settings: GatewaySettings) -> ModelDigests | None:
    describe = service.describe
    if describe is None:
        return None
    ask = partial(relay.ask, describe.method, metadata=(), timeout_s=settings.probe_timeout_s)
    return ModelDigests(describe, ask, ttl_s=settings.digest_ttl_s)


def _open_shared_flights(
    settings: GatewaySettings, redis: SharedRedis | None, metrics: GatewayMetrics
) -> SharedFlights | None:
    if redis is None or not settings.cache:
        return None
    return SharedFlights(
        redis.large.reads,
        redis.large.writes,
        redis.large.breaker,
        metrics,
        ttl_s=settings.flight_ttl_s,
        recording_bytes=min(settings.cache_entry_bytes, settings.flight_bytes),
    )


def _open_shared(settings: GatewaySettings, redis: SharedRedis | None, metrics: GatewayMetrics) -> SharedAnswers | None:
    if redis is None or not settings.cache:
        return None
    return SharedAnswers(
        RedisStore(redis.large.reads),
        RedisStore(redis.large.writes),
        redis.large.breaker,
        metrics,
        byte_limit=2 * settings.cache_entry_bytes,
    )
