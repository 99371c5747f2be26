"""Which clips share the next run: those that wait longest, a frame of each. It never sees a frame."""

from collections import deque
from dataclasses import dataclass, field

from worldtree_reward.errors import TooManyWaiting


@dataclass(eq=False)
class Waiting:
    """Some frames of one clip. One that is `cancelled` leaves before its next run."""

    frame_count: int
    done_count: int = field(default=0, kw_only=True)
    cancelled: bool = field(default=False, kw_only=True)

    @property
    def left_count(self) -> int:
        return self.frame_count - self.done_count


class Scheduler:
    """Clips take turns, a frame each: a long one keeps no short one waiting."""

    def __init__(self, *, max_batch: int, max_waiting: int) -> None:
        """`max_waiting`: frames."""
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queue: deque[Waiting] = deque()
        self.waiting_frames = 0

    def add(self, requests: list[Waiting]) -> None:
        """All or none. Raises TooManyWaiting, unless nothing waits at all."""
        count = sum(request.left_count for request in requests)
        if self.waiting_frames and self.waiting_frames + count > self._max_waiting:
            raise TooManyWaiting(self.waiting_frames, self._max_waiting)
        self._queue.extend(requests)
        self.waiting_frames += count

    def next_batch(self) -> list[Waiting]:
        """The members of the next run. Empty: nothing waits."""
        batch: list[Waiting] = []
        while self._queue and len(batch) < self._max_batch:
            request = self._queue.popleft()
            if request.cancelled:
                self.waiting_frames -= request.left_count
                continue
            batch.append(request)
        return batch

    def ran(self, batch: list[Waiting]) -> list[Waiting]:
        """Books a frame of each; the others of a clip wait behind everyone. Those that are through are told."""
        through: list[Waiting] = []
        for request in batch:
            request.done_count += 1
            self.waiting_frames -= 1
            (self._queue if request.left_count else through).append(request)
        return through

    def drop(self, batch: list[Waiting]) -> None:
        """Books a run that failed: nothing more of its members is to be run."""
        self.waiting_frames -= sum(request.left_count for request in batch)

    def check_integrity(self) -> None:
        """Recounts, between runs. Raises AssertionError with both numbers."""
        counted = sum(request.left_count for request in self._queue)
        assert counted == self.waiting_frames, f"{counted} frames wait, {self.waiting_frames} are counted"
        assert all(request.left_count > 0 for request in self._queue), "a clip without frames is in the queue"
