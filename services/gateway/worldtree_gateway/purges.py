"""Answers that are to be forgotten: here, in Redis, and by all gateways that share it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from worldtree_runtime.stores import RedisConnection, StoreUnavailable
from worldtree_runtime.stores.redis_client import Client
from worldtree_runtime.stores.redis_cluster import ClusterClient

from worldtree_gateway.cache import AnswerCache
from worldtree_gateway.keys import KeyPattern
from worldtree_gateway.shared_answers import ANSWERS
from worldtree_gateway.shared_flights import FLIGHTS

_TOLD, _PATTERN = "worldtree:purges", b"pattern"  # a stream, and what each entry of it has
_TOLD_COUNT_MAX = 1000
_BATCH = 500
_SCAN_COUNT = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Purged:
    """How many answers were forgotten: of this process, and in Redis."""

    local_count: int
    shared_count: int


class Purges:
    """`redis`: None where gateways share nothing. `run` hears what the others purge, each `look_s`, for as long as the
    gateway serves.
    """

    def __init__(self, cache: AnswerCache, redis: RedisConnection | None, *, look_s: float) -> None:
        self._cache, self._redis, self._look_s = cache, redis, look_s
        self._heard = "0-0"  # the number of the last one that was heard of

    @property
    def reaches_all(self) -> bool:
        """Whether other gateways hear of a purge."""
        return self._redis is not None

    async def purge(self, pattern: KeyPattern) -> Purged:
        """Raises StoreUnavailable, when it is done here and may not be elsewhere."""
        local_count = self._cache.purge(pattern)
        if self._redis is None:
            return Purged(local_count, 0)
        shared_count = 0
        # Twice: what is being recorded, or read from Redis, while the others have yet to hear of it goes at the second
        # time. By then they have heard, what they were writing has come or was given up, and nobody puts back what is
        # older than the first.
        for _ in range(2):
            shared_count += await self._delete(pattern, self._redis)
            await self._tell(pattern, self._redis)
            local_count += self._cache.purge(pattern)
            await asyncio.sleep(2 * self._look_s + self._redis.timeout_s)
        return Purged(local_count, shared_count)

    async def run(self) -> None:
        """Forgets what other gateways were told to forget, and once more what this one was."""
        while self._redis is not None:
            try:
                await self._hear(self._redis)
            except StoreUnavailable as error:
                _log.debug("purges of other gateways can't be heard", extra={"reason": str(error)})
            await asyncio.sleep(self._look_s)

    async def _tell(self, pattern: KeyPattern, redis: RedisConnection) -> None:
        fields: dict[Any, Any] = {_PATTERN: pattern.glob}
        await redis.call(lambda: redis.redis.xadd(_TOLD, fields, maxlen=_TOLD_COUNT_MAX))

    async def _hear(self, redis: RedisConnection) -> None:
        for number, fields in await redis.call(lambda: redis.redis.xrange(_TOLD, f"({self._heard}", "+")):
            self._heard = number.decode()
            try:
                self._cache.purge(KeyPattern.parse(fields[_PATTERN].decode()))
            except (KeyError, ValueError) as error:
                _log.warning("a purge can't be read", extra={"reason": str(error)})

    async def _delete(self, pattern: KeyPattern, redis: RedisConnection) -> int:
        count = 0
        async for names in _found(redis, f"{ANSWERS}{pattern.glob}"):
            count += await _unlink(redis, names)
        async for names in _found(redis, f"{FLIGHTS}{{{pattern.glob}}}*"):  # what is recorded for all right now
            await _unlink(redis, names)
        return count


async def _found(redis: RedisConnection, pattern: str) -> AsyncIterator[Sequence[bytes]]:
    """Names in batches. Each look at Redis has its own timeout and sees some names, found or not, of one node: so there
    may be any number.
    """
    for where in await redis.call(partial(_nodes, redis.redis)):
        cursor = 0
        while True:
            look = partial(redis.redis.scan, cursor, match=pattern, count=_SCAN_COUNT, **where)
            after, names = await redis.call(look)
            for first in range(0, len(names), _BATCH):
                yield names[first : first + _BATCH]
            cursor = next(iter(after.values())) if where else after
            if not cursor:
                break


async def _nodes(client: Client) -> list[dict[str, Any]]:
    """How to ask each that has names of its own; of a cluster that is known."""
    return [{"target_nodes": node} for node in client.get_primaries()] if isinstance(client, ClusterClient) else [{}]


async def _unlink(redis: RedisConnection, names: Sequence[bytes]) -> int:
    pipeline = redis.redis.pipeline(transaction=False)
    for name in names:
        # one at a time, as in a cluster they are on several nodes; whose pipeline has no working `unlink`
        pipeline.execute_command("UNLINK", name)
    return sum(await redis.call(pipeline.execute))
