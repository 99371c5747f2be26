"""A run with its chunks planned ahead: a start, a step, a clip, a replay."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from worldtree_video.branch import Branch
from worldtree_video.domain import Action, Chunk, Priority, Record


class Sink(Protocol):
    """Where chunks go. Called under the engine's lock, from its thread: must not block."""

    def put(self, item: Chunk) -> None:
        """One more chunk."""

    def close(self, error: Exception | None = None) -> None:
        """No more will come."""


class Planned(NamedTuple):
    """A chunk to make. None: under the branch's own seed and nfe."""

    action: Action
    seed: int | None = None
    nfe: int | None = None


class Sequence:
    """First the chunks that the branch's start still lacks, then the planned ones, as fast as the engine goes."""

    def __init__(self, branch: Branch, planned: Iterable[Planned], *, priority: Priority, sink: Sink) -> None:
        self.branch = branch
        self.priority = priority
        self._given_count = max(0, -branch.chunk_index)
        self._planned = deque(planned)
        self._left = self._given_count + len(self._planned)
        self._sink = sink

    @property
    def over(self) -> bool:
        return self._left == 0

    def due(self, now: float) -> float | None:
        return None if self.over else now

    def next_record(self) -> Record:
        if self.branch.chunk_index < 0:
            return self.branch.given_record()
        action, seed, nfe = self._planned.popleft()
        return self.branch.next_record(action, seed=seed, nfe=nfe)

    def deliver(self, chunk: Chunk, now: float) -> None:
        del now
        self._left -= 1
        self._sink.put(chunk)
        if self.over:
            self._sink.close()

    def fail(self, error: Exception) -> None:
        self._left = 0
        self._sink.close(error)
