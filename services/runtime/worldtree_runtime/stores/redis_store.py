"""The store that replicas share. Whatever goes wrong with Redis is StoreUnavailable here, within `timeout_s`."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from worldtree_runtime.stores.store import StoreUnavailable, ttl_milliseconds

CONNECTION_COUNT_MAX = 64

_Answer = TypeVar("_Answer")


class RedisStore:
    """Connects at its first use and again after an outage, without being told.

    `timeout_s` bounds each call as a whole, a new connection included. Raises ValueError for an URL that isn't Redis's.
    """

    def __init__(self, url: str, timeout_s: float = 0.5) -> None:
        self._timeout_s = timeout_s
        self._address = _without_password(url)
        pool = BlockingConnectionPool.from_url(
            url,
            # beyond this many at once, calls wait for a connection; a plain pool would fail them
            max_connections=CONNECTION_COUNT_MAX,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # once more on a fresh connection, because pooled ones are dead after a restart of Redis; the library's
            # own default waits up to seconds between its tries
            retry=Retry(NoBackoff(), 1),
            decode_responses=False,
        )
        self._redis: Redis = Redis.from_pool(pool)

    async def get(self, key: str) -> bytes | None:
        return cast("bytes | None", await self._call(self._redis.get(key)))

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        await self._call(self._redis.set(key, value, px=ttl_milliseconds(ttl_s)))

    async def delete(self, key: str) -> None:
        await self._call(self._redis.delete(key))

    async def set_if_absent(self, key: str, value: bytes, ttl_s: float) -> bool:
        answer: Any = await self._call(self._redis.set(key, value, px=ttl_milliseconds(ttl_s), nx=True))
        return bool(answer)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _call(self, answer: Awaitable[_Answer]) -> _Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError as error:
            raise StoreUnavailable(f"redis at {self._address} did not answer within {self._timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"redis at {self._address}: {error}") from error


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
