"""Calls of cacheable methods: answered from the cache, from a call under way, or by a backend and recorded."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import grpc
import grpc.aio
from worldtree.common.v1 import common_pb2
from worldtree_runtime.call_notes import note_cache
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.tracing import current_span

from worldtree_gateway import cache_control
from worldtree_gateway.answers import Answer
from worldtree_gateway.cache import AnswerCache
from worldtree_gateway.digests import ModelDigests
from worldtree_gateway.domain import Method
from worldtree_gateway.flights import Flights, LeftBehind, Rider
from worldtree_gateway.identity import current_caller
from worldtree_gateway.keys import RequestReader
from worldtree_gateway.metadata import Context, Metadata, forwarded
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.relay import Relay
from worldtree_gateway.replays import Replays
from worldtree_gateway.shared_answers import SharedAnswers
from worldtree_gateway.shared_flights import SharedFlights
from worldtree_gateway.sharing import Sharing
from worldtree_gateway.verdicts import error_info

CACHE_KEY = "worldtree-cache"

_RENEWAL_S = 60.0
_RENEWAL_COUNT_MAX = 64  # under way at once; an answer that finds no place is asked for when its time is over for good

_log = logging.getLogger(__name__)

_Write = Callable[[bytes], Awaitable[None]]


class _Asked(NamedTuple):
    """A request with a key. `pinned` is the reference that we gave a digest, if we did."""

    method: Method
    key: bytes
    canonical: bytes
    ttl_s: float
    age_max_s: float | None
    purge_count: int  # at its beginning
    pinned: common_pb2.ModelRef | None
    names_merge: bool

    @property
    def flight_key(self) -> bytes:
        """Who wants a young answer flies with those who want the same, as what another gateway has recorded may be old;
        and nobody with those who asked before the last purge.
        """
        return self.key + b"%d:%d" % (self.purge_count, self.age_max_s or 0)


class CachedCalls:
    """Over one service's relay. `shared` and `shared_flights` are None without Redis, `digests` where the service has
    no models.
    """

    def __init__(
        self,
        relay: Relay,
        cache: AnswerCache,
        replays: Replays,
        shared: SharedAnswers | None,
        flights: Flights,
        shared_flights: SharedFlights | None,
        digests: ModelDigests | None,
        sharing: Sharing,
        metrics: GatewayMetrics,
        *,
        ttl_max_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._relay = relay
        self._cache = cache
        self._replays = replays
        self._shared = shared
        self._flights = flights
        self._shared_flights = shared_flights
        self._digests = digests
        self._sharing = sharing
        self._requests = RequestReader()
        self._metrics = metrics
        self._ttl_max_s = ttl_max_s
        self._clock = clock
        self._renewals: dict[bytes, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Ends what nobody waits for."""
        for task in self._renewals.values():
            task.cancel()
        await asyncio.gather(*self._renewals.values(), return_exceptions=True)

    async def unary_unary(self, method: Method, request: bytes, context: Context) -> bytes:
        asked = await self._asked(method, request, context)
        held = await self._found(asked, context)
        if held is not None:
            return held.messages[0]
        responses: list[bytes] = []

        async def keep(message: bytes) -> None:
            responses.append(message)

        if await self._flown(asked, context, keep):
            return responses[0]
        response = await self._relay.unary_unary(method, request, context)
        _tell(context, "bypass")
        return response

    async def unary_stream(self, method: Method, request: bytes, context: Context) -> None:
        asked = await self._asked(method, request, context)
        held = await self._found(asked, context)
        if asked is not None and held is not None:
            with self._replays.reading(asked.key, held):
                for message in held.messages:
                    await context.write(message)
        elif not await self._flown(asked, context, context.write):
            await self._relay.unary_stream(method, request, context)
            _tell(context, "bypass")

    async def _found(self, asked: _Asked | None, context: Context) -> Answer | None:
        """What is recorded already, here or in the store that gateways share; the caller is told. As good as nothing is
        a stream for which slow readers of others have left no room.
        """
        if asked is None or asked.age_max_s == 0 or not self._has_room(asked):
            return None
        answer = self._held(asked, context)
        if answer is None and not self._flights.under_way(asked.flight_key):
            answer = await self._look_up(asked)
            if not self._has_room(asked):
                return None
            if answer is not None:
                self._hit(context, "hit")
            else:
                answer = self._held(asked, context)  # it may have come meanwhile
        return answer

    def _has_room(self, asked: _Asked) -> bool:
        return not asked.method.server_streaming or self._replays.has_room

    def _held(self, asked: _Asked, context: Context) -> Answer | None:
        """What this process has in its own cache. One whose time is over is asked for anew meanwhile."""
        answer = self._cache.get(asked.key, age_max_s=asked.age_max_s)
        if answer is not None:
            fresh = answer.fresh(self._clock())
            if not fresh:
                if asked.names_merge:
                    return None  # its name may stand for another merge by now
                self._renew_later(asked, forwarded(context, asked.method))
            self._hit(context, "hit" if fresh else "stale")
        return answer

    def _hit(self, context: Context, result: str) -> None:
        self._metrics.cache_requests[result].inc()
        _tell(context, result)

    def _renew_later(self, asked: _Asked, metadata: Metadata) -> None:
        if asked.key in self._renewals or len(self._renewals) >= _RENEWAL_COUNT_MAX:
            return
        task = asyncio.create_task(self._renew(asked, metadata), name="renew an answer")
        self._renewals[asked.key] = task
        task.add_done_callback(lambda _: self._renewals.pop(asked.key, None))

    async def _renew(self, asked: _Asked, metadata: Metadata) -> None:
        """Who asks meanwhile and takes nothing old rides along. A failure is nobody's: the old answer has its time."""
        if await self._look_up(asked) is not None:
            return  # another gateway was faster
        try:
            with self._ride(asked, metadata, _RENEWAL_S) as rider:
                async for _ in rider.messages():
                    pass
        except LeftBehind:
            pass  # too large to be kept
        except grpc.aio.AioRpcError as error:
            self._is_refused(asked, error)
            _log.debug("an answer was not renewed: %s", error.details(), extra={"method": asked.method.path})
        except WorldtreeError as error:
            _log.debug("an answer was not renewed: %s", error, extra={"method": asked.method.path})

    async def _flown(self, asked: _Asked | None, context: Context, write: _Write) -> bool:
        """Whether the call was answered here; else nothing was written, and the backend should be asked as usual."""
        if asked is not None and await self._fly(asked, context, write):
            return True
        self._metrics.cache_requests["bypass"].inc()
        return False

    async def _asked(self, method: Method, request: bytes, context: Context) -> _Asked | None:
        """None: this call has nothing to do with the cache."""
        rule = method.cache
        assert rule is not None
        control = cache_control.read(context.invocation_metadata() or ())
        read = self._requests.read(method, rule, request) if control.store and rule.ttl_s > 0 else None
        if read is None:
            return None
        digest = None
        if read.unpinned is not None:
            digest = await self._digests.resolve(read.unpinned) if self._digests else None
            if digest is None:
                return None
        key, canonical = read.keyed(digest, self._sharing.owner_of(read, current_caller().tenant))
        return _Asked(
            method,
            key,
            canonical,
            ttl_s=min(rule.ttl_s, self._ttl_max_s),
            age_max_s=control.age_max_s,
            purge_count=self._cache.purge_count,
            pinned=read.unpinned,
            names_merge=read.names_merge,
        )

    async def _fly(self, asked: _Asked, context: Context, write: _Write) -> bool:
        """False: the digest we filled in was refused before anything was written."""
        metadata = forwarded(context, asked.method)
        streams = asked.method.server_streaming
        timeout_s = context.time_remaining() if streams else self._relay.unary_left_s(context)
        with self._ride(asked, metadata, timeout_s) as rider:
            span = current_span()
            if span is not None and not rider.leads and rider.flight.trace is not None:
                span.link(rider.flight.trace)  # below that one is the call that this one waits for
            try:
                try:
                    async for message in rider.messages():
                        await write(message)
                except LeftBehind as behind:
                    again = self._relay.messages(asked.method, asked.canonical, metadata, rider.left_s)
                    await self._catch_up(again, behind.position, write)
            except grpc.aio.AioRpcError as error:
                if rider.position == 0 and self._is_refused(asked, error):
                    return False
                self._count(rider)
                await self._relay.fail(error, None, context, timeout_s)
            self._count(rider)
            _tell(context, "miss" if rider.leads else "hit")
            return True

    def _ride(self, asked: _Asked, metadata: Metadata, timeout_s: float | None) -> AbstractContextManager[Rider]:
        """A seat on the call that brings this answer, ours or one under way."""

        def call(timeout_s: float | None) -> AsyncGenerator[bytes]:
            return self._relay.messages(asked.method, asked.canonical, metadata, timeout_s)

        def source(timeout_s: float | None) -> AsyncIterator[bytes]:
            # what another gateway has recorded may be older than this caller wants
            if self._shared_flights is None or asked.age_max_s is not None:
                return call(timeout_s)
            return self._shared_flights.messages(asked.key, call, timeout_s)

        def landed(messages: tuple[bytes, ...]) -> None:
            self._keep(asked, messages)

        join = asked.age_max_s != 0
        return self._flights.ride(asked.flight_key, source, landed, timeout_s=timeout_s, join=join)

    def _is_refused(self, asked: _Asked, error: grpc.aio.AioRpcError) -> bool:
        """Whether the backend may have refused the digest, as the model changed since it was resolved."""
        if self._digests is None or asked.pinned is None or not _is_reason(error, "MODEL_NOT_FOUND"):
            return False
        self._digests.forget(asked.pinned)
        return True

    @staticmethod
    async def _catch_up(messages: AsyncIterator[bytes], skip_count: int, write: _Write) -> None:
        async for message in messages:
            if skip_count:
                skip_count -= 1
            else:
                await write(message)

    async def _look_up(self, asked: _Asked) -> Answer | None:
        """What the store has."""
        if self._shared is None:
            return None
        answer = await self._shared.get(asked.key, purge_count=asked.purge_count, alone=asked.method.server_streaming)
        if answer is None or not answer.fresh(self._clock(), age_max_s=asked.age_max_s):
            return None
        if self._is_current(asked):
            self._cache.put(asked.key, answer)
        return answer

    def _keep(self, asked: _Asked, messages: tuple[bytes, ...]) -> None:
        if not self._is_current(asked):
            return  # it may be what was to be forgotten
        now_s = self._clock()
        answer = Answer(messages, stored_time_s=now_s, expire_time_s=now_s + asked.ttl_s)
        self._cache.put(asked.key, answer)
        if self._shared is not None:
            self._shared.put_later(asked.key, answer, current=lambda: self._is_current(asked))

    def _is_current(self, asked: _Asked) -> bool:
        """Whether there was no purge since."""
        return asked.purge_count == self._cache.purge_count

    def _count(self, rider: Rider) -> None:
        self._metrics.cache_requests["miss" if rider.leads else "joined"].inc()


def _tell(context: Context, result: str) -> None:
    note_cache(result)
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), (CACHE_KEY, result)))


def _is_reason(error: grpc.aio.AioRpcError, reason: str) -> bool:
    info = error_info(error)
    return info is not None and info.reason == reason
