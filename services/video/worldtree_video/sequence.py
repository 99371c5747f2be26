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
    """A chunk to make. None: under the branch's own seed and nfe.

    `frames`: its pixels, where they are known from when it was made before: then only its block is made again. They
    must be the ones that this history led to, because its block is shared by its key.
    """

    action: Action
    seed: int | None = None
    nfe: int | None = None
    frames: bytes | None = None


class Sequence:
    """First the chunks that the branch's start still lacks, then the planned ones, as fast as the engine goes.

    With `ahead_chunks`, no faster than they are `taken`: so many may wait for a slow reader.
    """

    steered = False
    paced = None

    def __init__(
        self,
        branch: Branch,
        planned: Iterable[Planned],
        *,
        priority: Priority,
        sink: Sink,
        ahead_chunks: int | None = None,
        tenant: str = "anonymous",
    ) -> None:
        self.branch = branch
        self.priority = priority
        self.tenant = tenant
        self._given_count = max(0, -branch.chunk_index)
        self._planned = deque(planned)
        self._left = self._given_count + len(self._planned)
        self._sink = sink
        self._ahead_chunks = ahead_chunks
        self._untaken_count = 0
        self.given: bytes | None = None

    @property
    def over(self) -> bool:
        return self._left == 0

    @property
    def left(self) -> tuple[int, int]:
        """Evaluations and commits until it is over: what is known is committed only."""
        nfe = self.branch.nfe
        making = self._left - len(self._planned) - max(0, -self.branch.chunk_index)
        evaluations = nfe * max(0, making) if self.given is None else 0
        for planned in self._planned:
            evaluations += 0 if planned.frames is not None else planned.nfe or nfe
        return evaluations, self._left

    def due(self, now: float) -> float | None:
        crowded = self._ahead_chunks is not None and self._untaken_count >= self._ahead_chunks
        return None if self.over or crowded else now

    def next_record(self) -> Record:
        if self.branch.chunk_index < 0:
            self.given = self.branch.origin.chunks[len(self.branch.records)]
            return self.branch.given_record()
        action, seed, nfe, self.given = self._planned.popleft()
        return self.branch.next_record(action, seed=seed, nfe=nfe)

    def deliver(self, chunk: Chunk, now: float) -> None:
        del now
        self._left -= 1
        self._untaken_count += 1
        self._sink.put(chunk)
        if self.over:
            self._sink.close()

    def taken(self) -> None:
        """The reader has taken a chunk: there may be room for another. The owner wakes the run."""
        self._untaken_count -= 1

    def fail(self, error: Exception) -> None:
        self._left = 0
        self._sink.close(error)
