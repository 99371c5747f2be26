"""The loop of one policy, in a thread of its own: whoever is due first shares the next round."""

import asyncio
import heapq
import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from worldtree_runtime.batch_engine import BatchEngine
from worldtree_runtime.futures import deliver

from worldtree_navigator.errors import PoisonedPlan, PolicyStopped, RoundFailed
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.policy import Draft, Policy

log = logging.getLogger(__name__)

_SOME_TIME_S = 10.0  # nobody waits longer for those who are in a hurry
_NICE = -10


@dataclass(frozen=True, slots=True)
class Took:
    """Where a draft's time went: waiting for rounds, and in them (shared with the other drafts of each)."""

    queue_s: float
    run_s: float


@dataclass(order=True)
class _Request:
    due_s: float
    number: int  # of two that are due at once, who came first
    draft: Draft = field(compare=False)
    answer: "asyncio.Future[Took]" = field(compare=False)
    arrived_s: float = field(compare=False)
    run_s: float = field(default=0.0, compare=False)


class PolicyEngine(BatchEngine[_Request]):
    """Brings drafts to their ends, all that wait together. `finish` is for event loops, everything else for the owner.

    A draft joins at the next round, whatever round the others are in: nobody waits for another's end.
    """

    def __init__(self, policy: Policy, metrics: NavigatorMetrics, *, name: str, max_batch: int) -> None:
        super().__init__(f"policy {name}")
        self._policy, self._metrics, self._name, self._max_batch = policy, metrics, name, max_batch
        self._waiting: list[_Request] = []
        self._count = 0

    async def finish(self, draft: Draft, *, due_s: float | None = None) -> Took:
        """Round after round until `draft` is done. `due_s`: when it is wanted, by time.monotonic; None: some time.

        A caller that is cancelled leaves before the next round. Raises PoisonedPlan, RoundFailed and PolicyStopped.
        """
        now_s = time.monotonic()
        answer: asyncio.Future[Took] = asyncio.get_running_loop().create_future()
        with self._wake:
            if self._stopping:
                raise PolicyStopped(self._name)
            self._count += 1
            due_s = now_s + _SOME_TIME_S if due_s is None else due_s
            heapq.heappush(self._waiting, _Request(due_s, self._count, draft, answer, now_s))
            self._wake.notify()
        return await answer

    def _run(self) -> None:
        # A robot waits for this thread, and nobody for the chunks of a long plan, which are made on the same cores
        # where one machine has all services. Where the system lets us: it takes CAP_SYS_NICE.
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        super()._run()

    def _serve(self, batch: Sequence[_Request]) -> None:
        begun_s = time.monotonic()
        try:
            self._policy.step([request.draft for request in batch])
        except Exception as error:  # the batch fails, and no other
            log.exception("a round failed", extra={"model": self._name})
            failed = RoundFailed(self._name)
            failed.__cause__ = error
            for request in batch:
                deliver(request.answer, failed)
            return
        took_s = time.monotonic() - begun_s
        self._metrics.round_seconds.labels(self._name).observe(took_s)
        self._metrics.round_batch_size.labels(self._name).observe(len(batch))
        self._settle(batch, took_s)

    def _take(self) -> list[_Request]:
        """Whoever is due first, first."""
        batch: list[_Request] = []
        while self._waiting and len(batch) < self._max_batch:
            request = heapq.heappop(self._waiting)
            if not request.answer.cancelled():
                batch.append(request)
        return batch

    def _settle(self, batch: Sequence[_Request], took_s: float) -> None:
        now_s = time.monotonic()
        with self._wake:
            for request in batch:
                request.run_s += took_s
                if request.draft.is_broken:
                    deliver(request.answer, PoisonedPlan(self._name))
                elif request.draft.is_done:
                    deliver(request.answer, Took(now_s - request.arrived_s - request.run_s, request.run_s))
                else:
                    heapq.heappush(self._waiting, request)
