"""Which requests share the next run: those of one merge, of the one that has waited longest. It never sees an image."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from worldtree_multitask.errors import TooManyWaiting


@dataclass(eq=False)
class Waiting:
    """One request: `key` names its merge. One that is `cancelled` is dropped before its run."""

    key: str
    image_count: int
    cancelled: bool = field(default=False, compare=False)


class Scheduler:
    """Requests by merge. Merges take turns in the order in which their oldest request came; no run waits for more."""

    def __init__(self, *, max_batch: int, max_waiting: int) -> None:
        """`max_batch`: images of a run; one request larger than that is a run of its own."""
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queues: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self.waiting_images = 0

    def add(self, request: Waiting) -> None:
        """Raises TooManyWaiting, unless nothing waits at all."""
        if self.waiting_images and self.waiting_images + request.image_count > self._max_waiting:
            raise TooManyWaiting(self.waiting_images, self._max_waiting)
        self._queues.setdefault(request.key, deque()).append(request)
        self.waiting_images += request.image_count

    def next_batch(self) -> list[Waiting]:
        """The members of the next run, all of one merge. Empty: nothing waits."""
        while self._queues:
            key, queue = next(iter(self._queues.items()))
            batch: list[Waiting] = []
            image_count = 0
            while queue and (not batch or image_count + queue[0].image_count <= self._max_batch):
                request = queue.popleft()
                self.waiting_images -= request.image_count
                if not request.cancelled:
                    batch.append(request)
                    image_count += request.image_count
            # What is left goes to the back: a merge that is asked for a lot must not keep the others waiting.
            if queue:
                self._queues.move_to_end(key)
            else:
                del self._queues[key]
            if batch:
                return batch
        return []

    def check_integrity(self) -> None:
        """Recounts. Raises AssertionError with both numbers."""
        counted = sum(request.image_count for queue in self._queues.values() for request in queue)
        assert counted == self.waiting_images, f"{counted} images wait, {self.waiting_images} are counted"
        assert all(self._queues.values()), "a merge without requests is in the queue"
