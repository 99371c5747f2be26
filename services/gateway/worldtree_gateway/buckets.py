"""Who has used up how much, by name: in Redis for all gateways together; here, while it is away or where none is."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Protocol, cast

from worldtree_runtime.stores import StoreUnavailable
from worldtree_runtime.stores.redis_connection import RedisConnection

from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.rate import Rate

_SCRIPT = resources.files("worldtree_gateway").joinpath("bucket.lua").read_text()
_NAMES_MAX = 100_000  # in this process; who was not seen for longest is forgotten, and begins with a whole burst


@dataclass(frozen=True, slots=True)
class Use:
    """Of a bucket: `units` of a rate. `owner`: whose it is; Redis keeps all buckets of one on one node."""

    owner: str
    name: str
    rate: Rate
    units: float

    @property
    def key(self) -> str:
        return f"worldtree:bucket:{{{self.owner}}}:{self.name}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The use that went too far, and the seconds after which it would not."""

    use: Use
    wait_s: float


class Buckets(Protocol):
    """Counts what is used of the buckets of one owner."""

    async def use(self, uses: Sequence[Use], *, owed: bool = False) -> Refusal | None: ...
    async def close(self) -> None: ...


class LocalBuckets:
    """Of this process alone."""

    def __init__(self, *, clock: Callable[[], float] = time.time, names_max: int = _NAMES_MAX) -> None:
        self._clock, self._names_max = clock, names_max
        self._arrivals_s: OrderedDict[str, float] = OrderedDict()

    async def close(self) -> None:
        """Nothing is held."""

    async def use(self, uses: Sequence[Use], *, owed: bool = False) -> Refusal | None:
        """All of them or none; of several that go too far, the one with the longest wait. `owed`: they are used up
        already, so they are counted whatever is left.
        """
        now_s = self._clock()
        found = [use.rate.used(self._arrivals_s.get(use.key, 0.0), now_s, use.units) for use in uses]
        refused = max(zip(uses, found, strict=True), key=lambda pair: pair[1][1], default=None)
        refusal = Refusal(refused[0], refused[1][1]) if refused and refused[1][1] > 0 else None
        if refusal is None or owed:
            for use, (arrival_s, _) in zip(uses, found, strict=True):
                self._arrivals_s[use.key] = arrival_s
                self._arrivals_s.move_to_end(use.key)
            while len(self._arrivals_s) > self._names_max:
                self._arrivals_s.popitem(last=False)
        return refusal


class SharedBuckets:
    """Of all gateways that share a Redis. A call that Redis does not answer in time is counted here instead."""

    def __init__(self, redis: RedisConnection, breaker: CircuitBreaker, metrics: GatewayMetrics) -> None:
        self._redis, self._breaker, self._metrics = redis, breaker, metrics
        self._script = redis.redis.register_script(_SCRIPT)
        self._local = LocalBuckets()

    async def use(self, uses: Sequence[Use], *, owed: bool = False) -> Refusal | None:
        """As LocalBuckets. The uses have one owner."""
        if not uses:
            return None
        if not self._breaker.allows():
            return await self._local.use(uses, owed=owed)
        try:
            number, wait_us = await self._redis.call(lambda: self._run(uses, owed))
        except StoreUnavailable as error:
            self._metrics.limit_store_errors.labels(error.fault).inc()
            self._breaker.failed(error)
            return await self._local.use(uses, owed=owed)
        self._breaker.succeeded()
        return Refusal(uses[number - 1], wait_us / 1e6) if number else None

    async def close(self) -> None:
        await self._redis.close()

    async def _run(self, uses: Sequence[Use], owed: bool) -> tuple[int, int]:
        arguments = ["1" if owed else "0"]
        for use in uses:
            arguments += [repr(1e6 * use.rate.unit_s), repr(1e6 * use.rate.burst_s), repr(use.units)]
        found = await self._script(keys=[use.key for use in uses], args=arguments)
        return cast("tuple[int, int]", tuple(found))
