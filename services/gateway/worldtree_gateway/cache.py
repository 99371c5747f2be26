"""Recorded answers: those of this process (L1) and, where there is a Redis, those of all gateways (L2)."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from worldtree_runtime.stores import Store, StoreUnavailable

from worldtree_gateway.answers import Answer, CorruptAnswerError
from worldtree_gateway.metrics import GatewayMetrics

_WRITE_COUNT_MAX = 16  # each holds an encoded copy of its answer

_log = logging.getLogger(__name__)


class AnswerCache:
    """Least recently used answers leave first; together they never take more than `byte_limit`."""

    def __init__(self, byte_limit: int, *, clock: Callable[[], float] = time.time) -> None:
        self.byte_limit = byte_limit
        self.byte_count = 0
        self._clock = clock
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def get(self, key: bytes, *, age_max_s: float | None = None) -> Answer | None:
        answer = self._answers.get(key)
        if answer is None:
            return None
        now_s = self._clock()
        if not answer.fresh(now_s):
            self._drop(key)
            return None
        if not answer.fresh(now_s, age_max_s=age_max_s):
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

    def check_integrity(self) -> None:
        """Recounts. Tests call it at their end."""
        counted = sum(answer.byte_count for answer in self._answers.values())
        assert counted == self.byte_count, f"counted {counted} bytes, booked {self.byte_count}"
        assert self.byte_count <= self.byte_limit, f"{self.byte_count} bytes held, limit {self.byte_limit}"

    def _drop(self, key: bytes) -> None:
        self.byte_count -= self._answers.pop(key).byte_count


class CircuitBreaker:
    """Leaves a failing thing alone for a while, then lets one call try it."""

    def __init__(self, *, failure_count: int, retry_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failure_limit = failure_count
        self._retry_s = retry_s
        self._clock = clock
        self._failures = 0
        self._closed_until_s = 0.0

    @property
    def up(self) -> bool:
        return self._failures < self._failure_limit

    def allows(self) -> bool:
        """Whether a call may be made now; after a while of failures, yes to one caller each `retry_s`."""
        if self.up:
            return True
        now_s = self._clock()
        if now_s < self._closed_until_s:
            return False
        self._closed_until_s = now_s + self._retry_s
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        self._closed_until_s = self._clock() + self._retry_s


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
        clock: Callable[[], float] = time.time,
    ) -> None:
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
        self._succeeded()
        if data is None:
            return None
        try:
            return Answer.decode(data)
        except CorruptAnswerError as error:
            self._metrics.store_errors.labels("decode").inc()
            _log.warning("the shared cache holds an answer that can't be read", extra={"reason": str(error)})
            return None

    def put_later(self, key: bytes, answer: Answer) -> None:
        """Writes in the background. With too many writes under way this one is left out: a miss later costs less."""
        if len(self._writing) >= _WRITE_COUNT_MAX:
            self._metrics.store_errors.labels("skipped").inc()
            return
        task = asyncio.create_task(self._put(key, answer), name="write shared answer")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Waits for the writes under way, which have their own timeout."""
        await asyncio.gather(*self._writing)
        await self._reads.close()
        await self._writes.close()

    async def _put(self, key: bytes, answer: Answer) -> None:
        ttl_s = answer.expire_time_s - self._clock()
        if ttl_s <= 0 or not self._breaker.allows():
            return
        try:
            await self._writes.set(_name(key), answer.encode(), ttl_s)
        except StoreUnavailable as error:
            self._failed("set", error)
        else:
            self._succeeded()

    def _failed(self, operation: str, error: StoreUnavailable) -> None:
        was_up = self._breaker.up
        self._breaker.failed()
        self._metrics.store_errors.labels(operation).inc()
        if was_up and not self._breaker.up:
            _log.warning("the shared cache is left alone for now", extra={"reason": str(error)})

    def _succeeded(self) -> None:
        if not self._breaker.up:
            _log.info("the shared cache is back")
        self._breaker.succeeded()


def _name(key: bytes) -> str:
    return f"worldtree:answer:{key.hex()}"
