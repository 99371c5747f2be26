"""A second copy of a call whose answer is late, at another replica; the first answer wins, and the other is cancelled.

"The Tail at Scale" (Dean and Barroso, 2013), and gRPC's hedging (gRFC A6), but for one copy only, and paid out of the
budget of calls that are sent twice.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from worldtree_gateway.domain import Affinity, Method
from worldtree_gateway.errors import NoBackend
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.retry_budget import RetryBudget
from worldtree_gateway.routing import Route, Router

T = TypeVar("T")

_SAMPLE_COUNT = 256  # of each method: its last calls
_KNOWN_COUNT = 32  # with fewer, nobody knows what is late
_LATE_SHARE = 0.95
_DELAY_MIN_S = 0.002  # a copy of what takes no longer gains nothing

# what is no answer: the other copy may bring one
_NO_ANSWER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class Latencies:
    """How long the last calls of one method took."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_SAMPLE_COUNT)
        self._late_s: float | None = None
        self._news = 0

    def took(self, seconds: float) -> None:
        self._seconds.append(seconds)
        self._news += 1
        if self._news >= _KNOWN_COUNT:
            self._news = 0
            self._late_s = sorted(self._seconds)[int(_LATE_SHARE * len(self._seconds))]

    @property
    def late_s(self) -> float | None:
        """What one in twenty takes longer than. None: too few have come."""
        return self._late_s


class Hedging:
    """Of one service. `after_s`: when a copy is sent; 0: when the call takes longer than 19 of 20 of its method do;
    None: never.
    """

    def __init__(
        self,
        router: Router,
        budget: RetryBudget,
        metrics: GatewayMetrics,
        *,
        after_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router, self._budget, self._metrics = router, budget, metrics
        self._after_s, self._clock = after_s, clock
        self._latencies: dict[str, Latencies] = {}

    async def answer(
        self, method: Method, request: bytes, route: Route, send: Callable[[Route], Coroutine[Any, Any, T]]
    ) -> tuple[T, Route]:
        """What `send` returns, and of which route. Raises what it raises."""
        if self._after_s is None or not _is_pure(method):
            return await send(route), route
        begun_s = self._clock()
        found = await self._hedged(method, request, route, send)
        self._latencies.setdefault(method.path, Latencies()).took(self._clock() - begun_s)
        return found

    def _delay_s(self, method: Method) -> float | None:
        known = self._latencies.get(method.path)
        late_s = self._after_s or (None if known is None else known.late_s)
        return None if late_s is None else max(late_s, _DELAY_MIN_S)

    async def _hedged(
        self, method: Method, request: bytes, route: Route, send: Callable[[Route], Coroutine[Any, Any, T]]
    ) -> tuple[T, Route]:
        delay_s = self._delay_s(method)
        if delay_s is None or not self._router.others({route.backend.name}):
            return await send(route), route
        first = asyncio.create_task(send(route))
        copies = {first: route}
        try:
            done, _ = await asyncio.wait(copies, timeout=delay_s)
            if not done and (other := self._elsewhere(method, request, route)) is not None:
                copies[asyncio.create_task(send(other))] = other
            winner = await _first_answer(copies, first)
            if len(copies) > 1:
                self._count("lost" if winner is first else "won")
            return winner.result(), copies[winner]
        finally:
            for each in copies:
                each.cancel()
            await asyncio.gather(*copies, return_exceptions=True)

    def _elsewhere(self, method: Method, request: bytes, route: Route) -> Route | None:
        if not self._budget.spend():
            self._count("refused")
            return None
        try:
            return self._router.route(method, request, avoid={route.backend.name})
        except NoBackend:
            return None

    def _count(self, result: str) -> None:
        self._metrics.hedges.labels(self._router.section, result).inc()


async def _first_answer(copies: "dict[asyncio.Task[T], Route]", first: "asyncio.Task[T]") -> "asyncio.Task[T]":
    """The one that brings an answer, be it a refusal; where none does, the first."""
    waiting = set(copies)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in sorted(done, key=lambda copy: copy is not first):
            error = each.exception()
            if not isinstance(error, grpc.aio.AioRpcError) or error.code() not in _NO_ANSWER:
                return each
    return first


def _is_pure(method: Method) -> bool:
    """Whether a call is a function of its request, answered at once by any replica."""
    return method.cache is not None and not method.server_streaming and method.affinity is Affinity.ANY
