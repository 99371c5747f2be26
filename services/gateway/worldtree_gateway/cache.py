"""Recorded answers: those of this process (L1) and, where there is a Redis, those of all gateways (L2)."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from worldtree_runtime.stores import Store, StoreUnavailable

from worldtree_gateway.answers import Answer, CorruptAnswerError
from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.keys import KeyPattern
from worldtree_gateway.metrics import GatewayMetrics

_INLINE_BYTES = 64 * 1024  # more is unpacked beside the event loop: regular pictures grow a hundredfold
_WRITE_COUNT_MAX = 16  # each holds an encoded copy of its answer

ANSWERS = "worldtree:answer:"  # what the names of answers in a store begin with

_log = logging.getLogger(__name__)


class AnswerCache:
    """Least recently used answers leave first; together they never take more than `byte_limit`."""

    def __init__(self, byte_limit: int, *, stale_s: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        """`stale_s`: for so long after its time an answer is still given, to whoever names no age."""
        self.byte_limit = byte_limit
        self.byte_count = 0
        self._stale_s = stale_s
        self.purge_count = 0  # what was asked for before the last purge may be what it was to forget
        self._clock = clock
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def get(self, key: bytes, *, age_max_s: float | None = None) -> Answer | None:
        answer = self._answers.get(key)
        if answer is None:
            return None
        now_s = self._clock()
        if now_s >= answer.expire_time_s + self._stale_s:
            self._drop(key)
            return None
        if age_max_s is not None and not answer.fresh(now_s, age_max_s=age_max_s):
            return None  # too old for this caller, but not for the next
        self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        if key in self._answers:
            self._drop(key)
        if answer.byte_count > self.byte_limit:
            return
        self._answers[key] = answer
        self.byte_count += answer.byte_count
        while self.byte_count > self.byte_limit:
            self._drop(next(iter(self._answers)))

    def purge(self, pattern: KeyPattern) -> int:
        """How many answers are forgotten."""
        self.purge_count += 1
        found = [key for key in self._answers if pattern.matches(key)]
        for key in found:
            self._drop(key)
        return len(found)

    def check_integrity(self) -> None:
        """Recounts. Tests call it at their end."""
        counted = sum(answer.byte_count for answer in self._answers.values())
        assert counted == self.byte_count, f"counted {counted} bytes, booked {self.byte_count}"
        assert self.byte_count <= self.byte_limit, f"{self.byte_count} bytes held, limit {self.byte_limit}"

    def _drop(self, key: bytes) -> None:
        self.byte_count -= self._answers.pop(key).byte_count


class SharedAnswers:
    """The answers in a store that all gateways share. Its trouble is counted and logged, and never a caller's.

    Two stores over one Redis: a look-up may cost a request only so much, a write goes on after the answer is out.
    """

    def __init__(
        self,
        reads: Store,
        writes: Store,
        breaker: CircuitBreaker,
        metrics: GatewayMetrics,
        *,
        byte_limit: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`byte_limit`: of one answer's messages, with what lies between them."""
        self._byte_limit = byte_limit
        self._reads = reads
        self._writes = writes
        self._breaker = breaker
        self._metrics = metrics
        self._clock = clock
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> bool:
        return self._breaker.up

    async def get(self, key: bytes) -> Answer | None:
        if not self._breaker.allows():
            return None
        try:
            data = await self._reads.get(_name(key))
        except StoreUnavailable as error:
            self._failed("get", error)
            return None
        self._breaker.succeeded()
        if data is None:
            return None
        try:
            decode = partial(Answer.decode, data, byte_limit=self._byte_limit)
            return await asyncio.to_thread(decode) if len(data) > _INLINE_BYTES else decode()
        except CorruptAnswerError as error:
            self._metrics.store_errors.labels("decode", "other").inc()
            _log.warning("the shared cache holds an answer that can't be read", extra={"reason": str(error)})
            return None

    def put_later(self, key: bytes, answer: Answer, *, current: Callable[[], bool]) -> None:
        """Writes in the background, unless it is no longer `current` by then. With too many writes under way this one
        is left out: a miss later costs less.
        """
        if len(self._writing) >= _WRITE_COUNT_MAX:
            self._metrics.store_errors.labels("skipped", "other").inc()
            return
        task = asyncio.create_task(self._put(key, answer, current), name="write shared answer")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Waits for the writes under way, which have their own timeout."""
        await asyncio.gather(*self._writing)
        await self._reads.close()
        await self._writes.close()

    async def _put(self, key: bytes, answer: Answer, current: Callable[[], bool]) -> None:
        ttl_s = answer.expire_time_s - self._clock()
        if ttl_s <= 0 or not self._breaker.allows():
            return
        try:
            encoded = await asyncio.to_thread(answer.encode)  # compressing takes milliseconds a megabyte
            if not current():
                return
            await self._writes.set(_name(key), encoded, ttl_s)
        except StoreUnavailable as error:
            self._failed("set", error)
        else:
            self._breaker.succeeded()

    def _failed(self, operation: str, error: StoreUnavailable) -> None:
        self._metrics.store_errors.labels(operation, error.fault).inc()
        self._breaker.failed(error)


def _name(key: bytes) -> str:
    return f"{ANSWERS}{key.hex()}"
