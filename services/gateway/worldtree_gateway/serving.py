"""Puts a gateway together: settings -> backends -> cache -> proxy -> server."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpc.aio
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.server import RunningServer, start_server
from worldtree_runtime.stores import RedisStore

from worldtree_gateway.backends import Backend
from worldtree_gateway.cache import AnswerCache, CircuitBreaker, SharedAnswers
from worldtree_gateway.cached_calls import CachedCalls
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.digests import ModelDigests
from worldtree_gateway.domain import SERVICES, Service
from worldtree_gateway.flights import Flights
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.play_failover import PlayFailover
from worldtree_gateway.proxy import Proxy
from worldtree_gateway.relay import Relay
from worldtree_gateway.routing import Router

_WINDOW_BYTES = 4 * 1024 * 1024  # of a stream too large for the cache, between its fastest and its slower callers


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """What a process, or a test, holds of a gateway while it runs."""

    server: RunningServer
    routers: tuple[Router, ...]
    cache: AnswerCache
    flights: Flights
    watching: tuple[asyncio.Task[None], ...]

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
    settings: GatewaySettings, *, services: tuple[Service, ...] = SERVICES
) -> AsyncIterator[RunningGateway]:
    """Serves from here to the end of the block; calls that come before a backend answered get UNAVAILABLE."""
    async with AsyncExitStack() as stack:
        registry = process_registry()
        metrics = GatewayMetrics(registry)
        cache = AnswerCache(settings.cache_bytes)
        flights = Flights(
            flight_bytes=min(settings.cache_entry_bytes, settings.cache_bytes),
            total_bytes=settings.cache_bytes,
            window_bytes=_WINDOW_BYTES,
        )
        shared = _open_shared(settings, metrics)
        if shared is not None:
            stack.push_async_callback(shared.close)
        metrics.watch_cache(lambda: cache.byte_count, lambda: shared is not None and shared.up)

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
                unary_timeout_s=settings.unary_timeout_s,
                rehome_timeout_s=settings.rehome_timeout_s,
            )
            routers.append(router)
            relays[service.section] = relay
            plays[service.section] = PlayFailover(relay, log_bytes=settings.play_log_bytes)
            if settings.cache:
                digests = _open_digests(service, relay, settings)
                cached_calls[service.section] = CachedCalls(
                    relay, cache, shared, flights, digests, metrics, ttl_max_s=settings.cache_ttl_max_s
                )

        def register(server: grpc.aio.Server) -> Sequence[str]:
            server.add_generic_rpc_handlers((Proxy(services, relays, cached_calls, plays),))
            return [each.full_name for each in services if each.section in relays]

        server = await stack.enter_async_context(
            start_server(
                settings, service="gateway", register=register, ready=lambda: _ready(routers), registry=registry
            )
        )
        # started last, so that they end first: a drain needs nobody who looks for new backends
        watching = [asyncio.create_task(router.watch(), name=f"watch {router.section}") for router in routers]
        if watching:
            stack.push_async_callback(_end, watching)
        yield RunningGateway(server, tuple(routers), cache, flights, tuple(watching))


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _ready(routers: Sequence[Router]) -> bool:
    return all(router.ready for router in routers)


def _open_router(service: Service, settings: GatewaySettings, metrics: GatewayMetrics) -> Router:
    backends = [
        Backend(
            service,
            address,
            max_message_bytes=settings.max_message_bytes,
            probe_timeout_s=settings.probe_timeout_s,
            probe_interval_s=settings.probe_interval_s,
        )
        for address in settings.backends(service.section)
    ]
    for backend in backends:
        metrics.watch_backend(service.section, backend)
    return Router(service.section, backends, retry_after_s=settings.retry_after_s, moved_limit=settings.moved_sessions)


def _open_digests(service: Service, relay: Relay, settings: GatewaySettings) -> ModelDigests | None:
    describe = service.describe
    if describe is None:
        return None
    ask = partial(relay.ask, describe.method, metadata=(), timeout_s=settings.probe_timeout_s)
    return ModelDigests(describe, ask, ttl_s=settings.digest_ttl_s)


def _open_shared(settings: GatewaySettings, metrics: GatewayMetrics) -> SharedAnswers | None:
    if settings.redis_url is None or not settings.cache:
        return None
    return SharedAnswers(
        RedisStore(settings.redis_url, settings.redis_read_timeout_s),
        RedisStore(settings.redis_url, settings.redis_write_timeout_s),
        CircuitBreaker(failure_count=settings.redis_failure_count, retry_s=settings.redis_retry_s),
        metrics,
    )
