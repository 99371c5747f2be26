"""Recorded answers of all gateways, in a store that they share (L2)."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeAlias

from worldtree_runtime.stores import Store, StoreUnavailable

from worldtree_gateway.answers import Answer, CorruptAnswerError
from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.metrics import GatewayMetrics

_INLINE_BYTES = 64 * 1024  # more is unpacked beside the event loop: regular pictures grow a hundredfold
_WRITE_COUNT_MAX = 16  # each holds an encoded copy of its answer
_SLOW_S = 60.0  # what did not come in time is left where it is for so long
_SLOW_COUNT_MAX = 1024
_TOGETHER_MAX = 32  # look-ups in one round trip, which has no more time than one

ANSWERS = "worldtree:answer:"  # what the names of answers in a store begin with

_log = logging.getLogger(__name__)

_Asked: TypeAlias = tuple[bytes, int]  # a key, and the purges before


class SharedAnswers:
    """The store's trouble is counted and logged, and never a caller's.

    A key is looked up once for all who ask for it meanwhile, and the keys of one moment in one round trip: to speak to
    the store costs more than the answer.

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
        self._looked_up: dict[_Asked, asyncio.Future[Answer | None]] = {}
        self._next: list[_Asked] = []  # in the next round trip
        self._slow_until_s: dict[bytes, float] = {}  # by key, the oldest first
        self._looking: set[asyncio.Task[None]] = set()
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> bool:
        return self._breaker.up

    async def get(self, key: bytes, *, purge_count: int = 0, alone: bool = False) -> Answer | None:
        """`purge_count`: of purges so far; who asks after one waits for nothing that was read before it.
        `alone`: in a round trip of its own, as it may be large, and others would wait for it.
        """
        asked = key, purge_count
        found = self._looked_up.get(asked)
        if found is None:
            if self._is_slow(key) or not self._breaker.allows():
                return None
            loop = asyncio.get_running_loop()
            found = self._looked_up[asked] = loop.create_future()
            if alone:
                _start(self._look([asked]), self._looking, "look up an answer")
            else:
                if not self._next:
                    loop.call_soon(self._look_together)
                self._next.append(asked)
        return await asyncio.shield(found)  # who leaves takes nothing from the others

    def put_later(self, key: bytes, answer: Answer, *, current: Callable[[], bool]) -> None:
        """Writes in the background, unless it is no longer `current` by then. With too many writes under way this one
        is left out: a miss later costs less.
        """
        if len(self._writing) >= _WRITE_COUNT_MAX:
            self._metrics.store_errors.labels("skipped", "other").inc()
            return
        _start(self._put(key, answer, current), self._writing, "write shared answer")

    async def close(self) -> None:
        """Waits for what is under way, which has its own timeouts."""
        await asyncio.gather(*self._looking, *self._writing)
        await self._reads.close()
        await self._writes.close()

    def check_integrity(self) -> None:
        """For the end of a test, when nobody waits."""
        assert not self._looked_up, f"{len(self._looked_up)} look-ups were left"
        assert not self._next, f"{len(self._next)} of them without a round trip"

    def _look_together(self) -> None:
        asked, self._next = self._next, []
        for first in range(0, len(asked), _TOGETHER_MAX):
            _start(self._look(asked[first : first + _TOGETHER_MAX]), self._looking, "look up answers")

    async def _look(self, asked: Sequence[_Asked]) -> None:
        try:
            for each, data in zip(asked, await self._read([key for key, _ in asked]), strict=True):
                if data is not None and len(data) > _INLINE_BYTES:
                    _start(self._unpack(each, data), self._looking, "unpack an answer")
                else:
                    self._tell(each, None if data is None else self._decoded(data))
        except BaseException:
            for each in asked:
                self._tell(each, None)  # they ask the backend
            raise

    async def _read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        names = [_name(key) for key in keys]
        try:
            found = [await self._reads.get(names[0])] if len(names) == 1 else await self._reads.get_many(names)
        except StoreUnavailable as error:
            self._failed("get", error)
            if len(keys) == 1 and error.fault == "timeout":
                self._note_slow(keys[0])
            return [None] * len(keys)
        self._breaker.succeeded()
        return found

    async def _unpack(self, asked: _Asked, data: bytes) -> None:
        answer = None
        try:
            answer = await asyncio.to_thread(self._decoded, data)
        finally:
            self._tell(asked, answer)

    def _decoded(self, data: bytes) -> Answer | None:
        try:
            return Answer.decode(data, byte_limit=self._byte_limit)
        except CorruptAnswerError as error:
            self._metrics.store_errors.labels("decode", "other").inc()
            _log.warning("the shared cache holds an answer that can't be read", extra={"reason": str(error)})
            return None

    def _tell(self, asked: _Asked, answer: Answer | None) -> None:
        found = self._looked_up.pop(asked, None)
        if found is not None:
            found.set_result(answer)

    async def _put(self, key: bytes, answer: Answer, current: Callable[[], bool]) -> None:
        ttl_s = answer.expire_time_s - self._clock()
        if ttl_s <= 0 or self._is_slow(key) or not self._breaker.allows():
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

    def _note_slow(self, key: bytes) -> None:
        self._slow_until_s.pop(key, None)
        self._slow_until_s[key] = self._clock() + _SLOW_S
        if len(self._slow_until_s) > _SLOW_COUNT_MAX:
            del self._slow_until_s[next(iter(self._slow_until_s))]

    def _is_slow(self, key: bytes) -> bool:
        return self._clock() < self._slow_until_s.get(key, 0.0)

    def _failed(self, operation: str, error: StoreUnavailable) -> None:
        self._metrics.store_errors.labels(operation, error.fault).inc()
        self._breaker.failed(error)


def _start(work: Coroutine[object, object, None], running: "set[asyncio.Task[None]]", name: str) -> None:
    task = asyncio.create_task(work, name=name)
    running.add(task)
    task.add_done_callback(running.discard)


def _name(key: bytes) -> str:
    return f"{ANSWERS}{key.hex()}"
