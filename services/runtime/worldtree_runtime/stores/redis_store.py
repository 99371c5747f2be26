"""The store that replicas share. Whatever goes wrong with Redis is StoreUnavailable here, within `timeout_s`."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from worldtree_runtime.stores.redis_connection import RedisConnection
from worldtree_runtime.stores.store import ttl_milliseconds

# One call stays small enough to be answered within its timeout, and to let others in between.
READ_KEY_COUNT_MAX = 32
WRITE_BYTES_MAX = 4 << 20


class RedisStore:
    """Connects at its first use and again after an outage, without being told.

    `timeout_s` bounds each call as a whole, a new connection included; `get_many` and `set_many` make one call for each
    few megabytes. Raises ValueError for an URL that isn't Redis's.
    """

    def __init__(
        self, redis: str | RedisConnection, timeout_s: float = 0.5, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`redis`: its URL, or a connection, which has a timeout of its own."""
        self._connection = RedisConnection(redis, timeout_s, clock=clock) if isinstance(redis, str) else redis
        self._redis = self._connection.redis
        self._call = self._connection.call

    async def get(self, key: str) -> bytes | None:
        return cast("bytes | None", await self._call(lambda: self._redis.get(key)))

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = []
        for first in range(0, len(keys), READ_KEY_COUNT_MAX):
            values += await self._get_part(keys[first : first + READ_KEY_COUNT_MAX])
        return values

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        ttl_ms = ttl_milliseconds(ttl_s)
        await self._call(lambda: self._redis.set(key, value, px=ttl_ms))

    async def set_many(self, items: Mapping[str, bytes], ttl_s: float) -> None:
        ttl_ms = ttl_milliseconds(ttl_s)
        part: dict[str, bytes] = {}
        part_bytes = 0
        for key, value in items.items():
            if part and part_bytes + len(value) > WRITE_BYTES_MAX:
                await self._set_part(part, ttl_ms)
                part, part_bytes = {}, 0
            part[key] = value
            part_bytes += len(value)
        if part:
            await self._set_part(part, ttl_ms)

    async def delete(self, key: str) -> None:
        await self._call(lambda: self._redis.delete(key))

    async def set_if_absent(self, key: str, value: bytes, ttl_s: float) -> bool:
        """False may also mean us: when a connection breaks after the write, the second try finds our own value."""
        ttl_ms = ttl_milliseconds(ttl_s)
        return bool(await self._call(lambda: self._redis.set(key, value, px=ttl_ms, nx=True)))

    async def close(self) -> None:
        await self._connection.close()

    async def _get_part(self, keys: Sequence[str]) -> list[bytes | None]:
        pipeline = self._redis.pipeline(transaction=False)  # no MGET: in a cluster the keys are on several nodes
        for key in keys:
            pipeline.get(key)
        return cast("list[bytes | None]", await self._call(pipeline.execute))

    async def _set_part(self, part: Mapping[str, bytes], ttl_ms: int) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for key, value in part.items():
            pipeline.set(key, value, px=ttl_ms)
        await self._call(pipeline.execute)
