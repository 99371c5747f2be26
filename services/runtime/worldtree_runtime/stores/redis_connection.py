"""Calls of one Redis. Whatever goes wrong with it is StoreUnavailable, within `timeout_s`."""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self
from urllib.parse import urlsplit

from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worldtree_runtime.stores.redis_client import open_client
from worldtree_runtime.stores.redis_cluster import ClusterClient
from worldtree_runtime.stores.store import Fault, StoreUnavailable

CALL_COUNT_MAX = 64

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
        # beyond this many at once, calls wait for a turn; the client would fail them. It may have twice as many
        # connections, as one whose call was left takes a moment to come back
        self._turns = asyncio.Semaphore(CALL_COUNT_MAX)
        self._lent = False
        self.redis = open_client(url, timeout_s, connections=2 * CALL_COUNT_MAX)

    def within(self, timeout_s: float) -> Self:
        """The same connections for calls that have less time; to be closed with this one."""
        view = copy.copy(self)
        view.timeout_s, view._lent = timeout_s, True
        return view

    async def call(self, start: Callable[[], Awaitable[Any]]) -> Any:
        """What `start` is answered. Raises StoreUnavailable, at once while a Redis that hangs has its rest."""
        left_s = self._rests_until_s - self._clock()
        if left_s > 0:
            message = f"redis at {self.address} did not answer {self._timeout_count} times in a row"
            raise StoreUnavailable(message, retry_after_s=left_s, fault="timeout")
        try:
            async with asyncio.timeout(self.timeout_s), self._turns:
                await self.redis.initialize()  # a cluster's client that does not know it yet asks any node
                answer = await start()
        except (TimeoutError, RedisTimeoutError) as error:
            self._timeout_count += 1
            if isinstance(self.redis, ClusterClient):
                self.redis.look_again()  # a replica may have taken over from a node that hangs
            if self._timeout_count >= TIMEOUT_COUNT_MAX:
                self._rests_until_s = self._clock() + REST_S
            message = f"redis at {self.address} did not answer within {self.timeout_s:g} s"
            raise StoreUnavailable(message, fault="timeout") from error
        except (RedisError, RedisClusterException, OSError) as error:
            # refused connections fail at once, so asking again costs nothing
            raise StoreUnavailable(f"redis at {self.address}: {error}", fault=_fault_of(error)) from error
        self._timeout_count = 0
        return answer

    async def close(self) -> None:
        if not self._lent:
            await (self.redis.end() if isinstance(self.redis, ClusterClient) else self.redis.aclose())


def _fault_of(error: Exception) -> Fault:
    match error:
        case AuthenticationError() | NoPermissionError():
            return "denied"
        case OutOfMemoryError():
            return "full"
        case RedisConnectionError() | RedisClusterException() | OSError():
            return "unreachable"
    return "other"


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
