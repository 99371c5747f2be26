"""The loop of one model, in a thread of its own: a batch of one merge, its weights, one run, the answers."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from worldtree_runtime.batch_engine import BatchEngine
from worldtree_runtime.futures import deliver

from worldtree_multitask.domain import Answer, Blend
from worldtree_multitask.errors import EngineStopped, PoisonedAnswer
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.model import Model, Weights
from worldtree_multitask.package import Images
from worldtree_multitask.scheduler import Scheduler, Waiting
from worldtree_multitask.shelf import Shelf

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Request(Waiting):
    blend: Blend = field(kw_only=True)
    images: Images = field(kw_only=True)
    tasks: tuple[str, ...] = field(kw_only=True)
    answer: "asyncio.Future[Answer]" = field(kw_only=True)
    arrived_s: float = field(kw_only=True)


class Engine(BatchEngine[_Request]):
    """Answers requests, those of one merge together. `predict` is for event loops, everything else for the owner."""

    def __init__(
        self,
        model: Model,
        metrics: MultitaskMetrics,
        *,
        name: str,
        shelf_bytes: int,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        super().__init__(f"engine {name}")
        self.model = model
        self.shelf: Shelf[Weights] = Shelf(shelf_bytes)
        self._metrics = metrics
        self._name = name
        self._scheduler = Scheduler(max_batch=max_batch, max_waiting=max_waiting)

    async def predict(self, blend: Blend, images: Images, tasks: Sequence[str]) -> Answer:
        """Probabilities of `tasks` for `images` [n, height, width, 3] uint8.

        Raises TooManyWaiting, PoisonedAnswer where the weights answer with NaN, and EngineStopped. One who is cancelled
        is dropped.
        """
        request = _Request(
            blend.digest,
            len(images),
            blend=blend,
            images=images,
            tasks=tuple(tasks),
            answer=asyncio.get_running_loop().create_future(),
            arrived_s=time.perf_counter(),
        )
        with self._wake:
            if self._stopping:
                raise EngineStopped
            self._scheduler.add(request)
            self._metrics.waiting_images.labels(self._name).set(self._scheduler.waiting_images)
            self._wake.notify()
        try:
            return await request.answer
        finally:
            request.cancelled = True

    def check_integrity(self) -> None:
        """For tests, between runs."""
        with self._wake:
            self._scheduler.check_integrity()
            self.shelf.check_integrity()

    def _serve(self, batch: Sequence[_Request]) -> None:
        try:
            self._answer(batch)
        except Exception as error:  # the batch fails, and no other
            log.exception("a run failed", extra={"model": self._name})
            for request in batch:
                deliver(request.answer, error)

    def _next_batch(self) -> Sequence[_Request]:
        with self._wake:
            if batch := self._take():
                return batch
        self._prepare()  # not under the lock: whoever asks now must not wait for it in the event loop
        return super()._next_batch()

    def _take(self) -> list[_Request]:
        batch = [request for request in self._scheduler.next_batch() if isinstance(request, _Request)]
        self._metrics.waiting_images.labels(self._name).set(self._scheduler.waiting_images)
        return batch

    def _prepare(self) -> None:
        try:
            self.model.prepare()
        except Exception:  # the next merge has to bind its own memory, and fails alone if it cannot
            log.exception("no memory was prepared", extra={"model": self._name})

    def _answer(self, batch: Sequence[_Request]) -> None:
        begun_s = time.perf_counter()
        weights = self._weights(batch[0].blend)
        made_s = time.perf_counter()
        images = batch[0].images if len(batch) == 1 else np.concatenate([request.images for request in batch])
        wanted = {task for request in batch for task in request.tasks}
        tasks = [task for task in self.model.task_names if task in wanted]
        logits = self.model.predict(weights, images, tasks)
        run_s = time.perf_counter() - made_s
        self._metrics.run_seconds.labels(self._name).observe(run_s)
        self._metrics.batch_size.labels(self._name).observe(len(images))
        first = 0
        for request in batch:
            rows = slice(first, first + request.image_count)
            first += request.image_count
            own = {task: logits[task][rows] for task in request.tasks}
            broken = next((task for task, each in own.items() if not np.isfinite(each).all()), None)
            if broken is not None:
                deliver(request.answer, PoisonedAnswer(request.key, broken))
                continue
            deliver(
                request.answer,
                Answer(
                    {task: _softmax(each) for task, each in own.items()},
                    queue_s=begun_s - request.arrived_s,
                    merge_s=made_s - begun_s,
                    run_s=run_s,
                    batch_size=len(images),
                ),
            )

    def _weights(self, blend: Blend) -> Weights:
        found = self.shelf.get(blend.digest)
        self._metrics.weights.labels(self._name, "hit" if found else "made").inc()
        if found is None:
            found = self.model.make(blend)
            with self._wake:
                self.shelf.put(blend.digest, found, found.byte_count)
            self._metrics.shelf_bytes.labels(self._name).set(self.shelf.byte_count)
            self._metrics.shelf_merges.labels(self._name).set(len(self.shelf))
        return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32)
