"""Sequences of the inference protocol: which session each one is, whose turn it is, and which are given up."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from worldtree_runtime.errors import Aborted, Exhausted, FailedPrecondition

from worldtree_gateway.oip_calls import Asker
from worldtree_gateway.oip_models import Model
from worldtree_gateway.openpi_observation import Course
from worldtree_gateway.openpi_robot import Robot


class Key(NamedTuple):
    """Sequences of two callers, or of two models, never meet. `sequence`: as the client named it, with its type."""

    owner: str
    model: str
    sequence: int | str


@dataclass(slots=True)
class Sequence:
    """One sequence, from the request that starts it: a session of a world (empty: none), or a robot that is steered."""

    key: Key
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: list[object] = field(default_factory=list)  # of the requests that run or wait for their turn
    touched_s: float = 0.0
    session: str = ""
    robot: Robot | None = None
    course: Course | None = None  # that it is steered on
    model: Model | None = None
    asker: Asker = field(default_factory=Asker)  # who deletes it, should it be given up

    @property
    def open(self) -> bool:
        return bool(self.session) or self.robot is not None


class Sequences:
    """Bookkeeping only: who takes a session out of here gives it back to its service.

    `limit`: of sequences at a time. `idle_s`: how long one may wait for its next request.
    """

    def __init__(self, *, limit: int, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.idle_s = idle_s
        self._limit = limit
        self._clock = clock
        self._sequences: dict[Key, Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    @asynccontextmanager
    async def turn(self, key: Key, *, start: bool, call: object) -> AsyncIterator[Sequence]:
        """The sequence, for one request of it: its requests come one after the other, in the order that they ask here.

        Raises FailedPrecondition where none was started, Exhausted where too many are, and Aborted where those of
        another `call` take too long: two streams that share sequences could wait for one another for ever. One that
        is not open at the end is forgotten.
        """
        sequence = self._sequences.get(key)
        if sequence is None:
            if not start:
                raise self._not_started(key)
            if len(self._sequences) >= self._limit:
                raise Exhausted(
                    "SEQUENCES_FULL",
                    f"{self._limit} sequences are open, the most there may be (setting gateway.oip_sequences)",
                    retry_after_s=1.0,
                    limit=self._limit,
                )
            sequence = self._sequences[key] = Sequence(key)
        shared = any(each is not call for each in sequence.calls)
        sequence.calls.append(call)
        try:
            await self._acquire(sequence, self.idle_s if shared else None)
            try:
                if not start and not sequence.open:  # the one before has ended it, or could not start it
                    raise self._not_started(key)
                yield sequence
            finally:
                sequence.lock.release()
        finally:
            sequence.calls.remove(call)
            sequence.touched_s = self._clock()
            if not sequence.open and not sequence.calls:
                self._forget(sequence)

    def expired(self) -> list[Sequence]:
        """Takes out those that nobody has asked anything of for too long."""
        before_s = self._clock() - self.idle_s
        idle = [each for each in self._sequences.values() if not each.calls and each.touched_s <= before_s]
        for each in idle:
            self._forget(each)
        return idle

    def all(self) -> list[Sequence]:
        """Takes out all."""
        every = list(self._sequences.values())
        self._sequences.clear()
        return every

    async def _acquire(self, sequence: Sequence, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await sequence.lock.acquire()
        except TimeoutError:
            shown = str(sequence.key.sequence)[:80]
            raise Aborted(
                "SEQUENCE_BUSY",
                f'sequence "{shown}" of model {sequence.key.model} has been busy with other calls for {timeout_s:g} s',
                sequence_id=shown,
                timeout_s=timeout_s,
            ) from None

    def _forget(self, sequence: Sequence) -> None:
        if self._sequences.get(sequence.key) is sequence:
            del self._sequences[sequence.key]

    def _not_started(self, key: Key) -> FailedPrecondition:
        shown = str(key.sequence)[:80]
        return FailedPrecondition(
            "SEQUENCE_NOT_STARTED",
            f'sequence "{shown}" of model {key.model} is not open: its first request must say sequence_start, and the '
            f"next come within {self.idle_s:g} s of one another",
            subject=shown,
            sequence_id=shown,
            idle_s=f"{self.idle_s:g}",
        )
