"""The store that replicas share. Whatever goes wrong with Redis is StoreUnavailable here, within `timeout_s`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worldtree_runtime.stores.store import StoreUnavailable, ttl_milliseconds

CONNECTION_COUNT_MAX = 64

# after this many unanswered calls in a row, the next ones fail at once for a while: a request that could do without
# the store shouldn't wait `timeout_s` for each look at one that hangs
TIMEOUT_COUNT_MAX = 3
REST_S = 1.0


class RedisStore:
    """Connects at its first use and again after an outage, without being told.

    `timeout_s` bounds each call as a whole, a new connection included. Raises ValueError for an URL that isn't Redis's.
    """

    def __init__(self, url: str, timeout_s: float = 0.5, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._timeout_count = 0  # since the last answer
        self._rests_until_s = float("-inf")
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
            retry_on_error=[RedisConnectionError],
            decode_responses=False,
        )
        self._redis: Redis = Redis.from_pool(pool)

    async def get(self, key: str) -> bytes | None:
        return cast("bytes | None", await self._call(lambda: self._redis.get(key)))

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        ttl_ms = ttl_milliseconds(ttl_s)
        await self._call(lambda: self._redis.set(key, value, px=ttl_ms))

    async def delete(self, key: str) -> None:
        await self._call(lambda: self._redis.delete(key))

    async def set_if_absent(self, key: str, value: bytes, ttl_s: float) -> bool:
        """False may also mean us: when a connection breaks after the write, the second try finds our own value."""
        ttl_ms = ttl_milliseconds(ttl_s)
        return bool(await self._call(lambda: self._redis.set(key, value, px=ttl_ms, nx=True)))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _call(self, start: Callable[[], Awaitable[Any]]) -> Any:
        left_s = self._rests_until_s - self._clock()
        if left_s > 0:
            message = f"redis at {self._address} did not answer {self._timeout_count} times in a row"
            raise StoreUnavailable(message, retry_after_s=left_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await start()
        except (TimeoutError, RedisTimeoutError) as error:
            self._timeout_count += 1
            if self._timeout_count >= TIMEOUT_COUNT_MAX:
                self._rests_until_s = self._clock() + REST_S
            raise StoreUnavailable(f"redis at {self._address} did not answer within {self._timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            # refused connections fail at once, so asking again costs nothing
            raise StoreUnavailable(f"redis at {self._address}: {error}") from error
        self._timeout_count = 0
        return answer


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
