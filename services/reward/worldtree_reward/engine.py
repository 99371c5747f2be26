"""The loop of one judge, in a thread of its own: a batch, one frame of each clip, the answers to those at their end."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from worldtree_runtime.batch_engine import BatchEngine
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.futures import deliver

from worldtree_reward.domain import Actions, Evidence, Frames, Spent
from worldtree_reward.errors import EngineStopped, PoisonedScore
from worldtree_reward.judge import Judge, Track
from worldtree_reward.metrics import RewardMetrics
from worldtree_reward.scheduler import Scheduler, Waiting

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Request(Waiting):
    track: Track = field(kw_only=True)
    frames: Frames = field(kw_only=True)
    actions: Actions = field(kw_only=True)
    answer: "asyncio.Future[tuple[Evidence, Spent]]" = field(kw_only=True)
    arrived_s: float = field(kw_only=True)
    begun_s: float | None = None
    run_s: float = 0.0
    batch_sizes: list[int] = field(default_factory=list)


class Engine(BatchEngine[_Request]):
    """Looks at clips, all that wait together. `look` is for event loops, everything else for the owner."""

    def __init__(self, judge: Judge, metrics: RewardMetrics, *, name: str, max_batch: int, max_waiting: int) -> None:
        super().__init__(f"engine {name}")
        self.judge = judge
        self._metrics = metrics
        self._name = name
        self._scheduler = Scheduler(max_batch=max_batch, max_waiting=max_waiting)

    async def look(self, clips: Sequence[tuple[Track, Frames, Actions]]) -> list[tuple[Evidence, Spent]]:
        """Each clip goes on by frames [n, height, width, 3] and the actions [n] that led to them; n is 1 or more.

        Raises TooManyWaiting, before anything is run, and PoisonedScore. A track whose look failed or was cancelled is
        of no use any more. One track must be looked at once at a time.
        """
        loop, now_s = asyncio.get_running_loop(), time.perf_counter()
        requests = [
            _Request(
                len(frames),
                track=track,
                frames=frames,
                actions=actions,
                answer=loop.create_future(),
                arrived_s=now_s,
            )
            for track, frames, actions in clips
        ]
        with self._wake:
            if self._stopping:
                raise EngineStopped
            self._scheduler.add(list(requests))
            self._metrics.waiting_frames.labels(self._name).set(self._scheduler.waiting_frames)
            self._wake.notify()
        try:
            return list(await asyncio.gather(*(request.answer for request in requests)))
        finally:
            for request in requests:
                request.cancelled = True

    def check_integrity(self) -> None:
        """For tests, between runs."""
        with self._wake:
            self._scheduler.check_integrity()

    def _serve(self, batch: Sequence[_Request]) -> None:
        try:
            through = self._step(batch)
        except Exception as error:  # the batch fails, and no other
            if not isinstance(error, WorldtreeError):
                log.exception("a run failed", extra={"model": self._name})
            with self._wake:
                self._scheduler.drop(list(batch))
            for request in batch:
                deliver(request.answer, error)
            return
        try:
            self._answer(through)
        except Exception as error:
            log.exception("an answer failed", extra={"model": self._name})
            for request in through:
                deliver(request.answer, error)

    def _take(self) -> list[_Request]:
        batch = [request for request in self._scheduler.next_batch() if isinstance(request, _Request)]
        self._metrics.waiting_frames.labels(self._name).set(self._scheduler.waiting_frames)
        return batch

    def _step(self, batch: Sequence[_Request]) -> list[_Request]:
        begun_s = time.perf_counter()
        frames = np.stack([request.frames[request.done_count] for request in batch])
        actions = np.array([request.actions[request.done_count] for request in batch], np.int64)
        self.judge.step([request.track for request in batch], frames, actions)
        run_s = time.perf_counter() - begun_s
        self._metrics.run_seconds.labels(self._name).observe(run_s)
        self._metrics.batch_size.labels(self._name).observe(len(batch))
        for request in batch:
            request.begun_s = request.begun_s or begun_s
            request.run_s += run_s
            request.batch_sizes.append(len(batch))
        with self._wake:
            through = [request for request in self._scheduler.ran(list(batch)) if isinstance(request, _Request)]
            self._metrics.waiting_frames.labels(self._name).set(self._scheduler.waiting_frames)
        return through

    def _answer(self, through: list[_Request]) -> None:
        if not through:
            return
        for request, evidence in zip(through, self.judge.evidence([each.track for each in through]), strict=True):
            opinions = zip(self.judge.dimensions, evidence.dimensions, strict=True)
            broken = next((each.name for each, opinion in opinions if not _finite(opinion.mean)), None)
            if broken is not None:
                deliver(request.answer, PoisonedScore(self._name, broken))
                continue
            queue_s = (request.begun_s or request.arrived_s) - request.arrived_s
            deliver(request.answer, (evidence, Spent(queue_s, request.run_s, tuple(request.batch_sizes))))


def _finite(value: float) -> bool:
    return bool(np.isfinite(value))
