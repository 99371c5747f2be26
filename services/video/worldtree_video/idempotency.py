"""A repeat of a call with the same request_id gets the first call's answer (AIP-155), where it is asked for at the
same replica.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

Answer = TypeVar("Answer")


class Idempotency:
    """Remembers answers, not failures, for `ttl_s`. Used from one event loop."""

    def __init__(self, *, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._calls: dict[tuple[str, str], tuple[float, asyncio.Future[object]]] = {}

    async def once(self, method: str, request_id: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of the first call with this request_id, which a repeat may be waiting for too."""
        if not request_id:
            return await call()
        self._forget_old()
        key = (method, request_id)
        known = self._calls.get(key)
        if known is None:
            # A task of its own: the first caller may vanish and come back with the same request_id.
            task: asyncio.Future[object] = asyncio.ensure_future(call())
            self._calls[key] = (self._clock() + self._ttl_s, task)
            task.add_done_callback(lambda done: self._forget_failed(key, done))
        else:
            task = known[1]
        return cast("Answer", await asyncio.shield(task))

    def _forget_failed(self, key: tuple[str, str], done: "asyncio.Future[object]") -> None:
        known = self._calls.get(key)
        if (done.cancelled() or done.exception()) and known and known[1] is done:
            del self._calls[key]

    def _forget_old(self) -> None:
        # All are kept equally long, so the first came first: what is still to be kept is not looked at.
        now = self._clock()
        while self._calls:
            key, (ends, _) = next(iter(self._calls.items()))
            if ends > now:
                return
            del self._calls[key]
