"""A pool of connections to one Redis. Whatever goes wrong with it is StoreUnavailable, within `timeout_s`."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worldtree_runtime.stores.store import StoreUnavailable

CONNECTION_COUNT_MAX = 64

# after this many unanswered calls in a row, the next ones fail at once for a while: a request that could do without
# the store shouldn't wait `timeout_s` for each look at one that hangs
TIMEOUT_COUNT_MAX = 3
REST_S = 1.0


class RedisConnection:
    """Connects at its first use and again after an outage, without being told.

    `timeout_s` bounds each call as a whole, a new connection included. A call whose connection broke is sent once more,
    so a command may arrive twice. Raises ValueError for an URL that isn't Redis's.
    """

    def __init__(self, url: str, timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s = timeout_s
        self.address = _without_password(url)
        self._clock = clock
        self._timeout_count = 0  # since the last answer
        self._rests_until_s = float("-inf")
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
        self.redis: Redis = Redis.from_pool(pool)

    async def call(self, start: Callable[[], Awaitable[Any]]) -> Any:
        """What `start` is answered. Raises StoreUnavailable, at once while a Redis that hangs has its rest."""
        left_s = self._rests_until_s - self._clock()
        if left_s > 0:
            message = f"redis at {self.address} did not answer {self._timeout_count} times in a row"
            raise StoreUnavailable(message, retry_after_s=left_s)
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await start()
        except (TimeoutError, RedisTimeoutError) as error:
            self._timeout_count += 1
            if self._timeout_count >= TIMEOUT_COUNT_MAX:
                self._rests_until_s = self._clock() + REST_S
            raise StoreUnavailable(f"redis at {self.address} did not answer within {self.timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            # refused connections fail at once, so asking again costs nothing
            raise StoreUnavailable(f"redis at {self.address}: {error}") from error
        self._timeout_count = 0
        return answer

    async def close(self) -> None:
        await self.redis.aclose()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
