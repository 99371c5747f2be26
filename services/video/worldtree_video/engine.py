"""The loop: who runs next, one tick, what became of it. One thread, one model."""

import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TypeVar

from worldtree_video.cost import CostModel
from worldtree_video.domain import Made, Storage
from worldtree_video.errors import Draining, EngineBroken
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.metrics import Reading, VideoMetrics, block_counts
from worldtree_video.model import TickCost, VideoModel
from worldtree_video.scheduler import Batch, PendingChunk, Run, Scheduler
from worldtree_video.sessions import Sessions

Result = TypeVar("Result")
_LONGEST_WAIT_S = 3600.0  # a lock refuses to wait for centuries, which is when a play at a tiny fps is due
log = logging.getLogger(__name__)


class Engine:
    """Runs ticks in its own thread. All bookkeeping happens under `lock`, which is never held while a model runs.

    So a fork or a rewind takes microseconds in the caller's thread, in the middle of a tick of others.
    """

    def __init__(
        self,
        model: VideoModel,
        *,
        max_batch: int,
        home: str,
        metrics: VideoMetrics,
        cost: TickCost | None = None,
        play_load_max: float = 0.75,
        prefix_cache: bool = True,
        low_blocks: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.name = model.package.name
        self.clock = clock
        self.lock = threading.RLock()
        timed = cost or TickCost({})  # at load; empty: not timed
        self.pools = {
            storage: BlockPool(count, storage, prefix_cache=prefix_cache)
            for storage, count in model.block_counts.items()
        }
        self.sessions = Sessions(home)
        # Weakly: the pools of an engine that was stopped go with whoever held it last, not when a collector comes.
        reclaim = weakref.WeakMethod(self._reclaim)
        self.scheduler = Scheduler(
            max_batch=max_batch,
            reclaim=lambda pool: (known := reclaim()) is not None and known(pool),
            forget=model.forget,
            recall=lambda pool, block_id: model.frames(pool.storage, block_id),
            cost=CostModel(timed.seconds, commit_s=timed.commit_s or None),
            play_load_max=play_load_max,
        )
        # Moves an idle session's blocks out of a pool; True when some became free. Whoever knows the tiers sets it.
        self.spill: Callable[[BlockPool], bool] = _spill_nothing
        self._low_blocks = low_blocks
        self._metrics = metrics
        self._errands: deque[Callable[[], None]] = deque()
        self._work = threading.Condition(self.lock)
        self._stopping = False
        self.known_count = 0  # chunks that took no tick, because they were known
        self.broken = False  # by a bug: no chunk will be made any more
        self._thread = threading.Thread(target=self._loop, name=f"engine-{self.name}", daemon=True)

    @property
    def play_load(self) -> float:
        """Share of the engine's time that plays are promised, by what chunks cost now."""
        with self.lock:
            return self.scheduler.play_load

    @property
    def pool(self) -> BlockPool:
        """The blocks in the model's own type."""
        return self.pools[Storage.FP32]

    def step(self) -> bool:
        """One tick; False when there was nothing to do."""
        batch = self._next_batch()
        chunks = self._run(batch)
        self._complete(batch, chunks)
        return bool(batch)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the tick it is in."""
        with self._work:
            self._stopping = True
            self._work.notify()
        self._thread.join()
        self.spill = _spill_nothing  # what does spill refers to this engine

    def submit(self, run: Run) -> None:
        """Takes on a run; its chunks go to its own sink."""
        with self._work:
            self._check_running()
            self.scheduler.add(run, self.clock())
            self._work.notify()

    def step_wait_s(self, evaluations: int, commits: int) -> tuple[float, float]:
        """Estimated seconds that a step waits for those before it, and for itself."""
        with self.lock:
            return self.scheduler.step_wait_s(evaluations, commits)

    def wake(self, run: Run) -> None:
        """Something changed: looks again at when a run is due."""
        with self._work:
            self.scheduler.wake(run, self.clock())
            self._work.notify()

    def cancel(self, run: Run) -> None:
        """Drops a run and the chunk it was making; its branch stays its owner's."""
        with self.lock:
            self.scheduler.remove(run)

    def break_off(self, run: Run) -> None:
        """Drops a play that its client goes on with elsewhere: what it was promised is kept for it for a moment."""
        with self.lock:
            self.scheduler.break_off(run, self.clock())

    def between_ticks(self, errand: Callable[[], Result]) -> "Future[Result]":
        """Runs something in the engine's thread, where no graph is reading or writing the pool."""
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(errand())
                except BaseException as error:  # whatever it was, it belongs to the one who waits
                    future.set_exception(error)

        with self._work:
            self._check_running()
            self._errands.append(run)
            self._work.notify()
        return future

    def has_room(self, block_count: int, storage: Storage = Storage.FP32) -> bool:
        """Whether so many blocks of a format can be had, idle sessions spilled if need be. Changes nothing."""
        pool = self.pools[storage]
        with self.lock:
            if pool.free_count >= block_count:
                return True
            idle = Counter(block for table in self._tables(pool, idle=True) for block in table.blocks.values())
            spillable = sum(1 for block, count in idle.items() if count == pool.references(block))
            return pool.free_count + spillable >= block_count

    def refilled(self, table: BlockTable, keys: Mapping[int, bytes]) -> dict[int, int] | None:
        """`BlockTable.refill`, with room made for it; None: there is none. An errand: in the engine's thread."""
        while (fresh := table.refill(keys)) is None:
            if not self._reclaim(table.pool):
                return None
        return fresh

    def chunk_s(self, nfe: int) -> float:
        """Estimated seconds of making one chunk with nobody else in the tick; 0 evaluations: of its commit."""
        return self.scheduler.cost.chunk_s(nfe)

    def check_integrity(self) -> None:
        """Recounts every block. Raises AssertionError with the numbers when one is lost."""
        with self.lock:
            for pool in self.pools.values():
                pool.check_integrity()
                in_flight = self.scheduler.in_flight(pool)
                assert len(in_flight) == pool.in_flight_count, (
                    f"{pool.in_flight_count} {pool.storage.value} blocks are in flight, "
                    f"{len(in_flight)} chunks are being made"
                )

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or holds a block."""
        with self.lock:
            pools = self.pools.values()
            return bool(
                self.scheduler.run_count
                or self._errands
                or any(pool.held_count or pool.in_flight_count for pool in pools)
            )

    def reading(self) -> Reading:
        """What the gauges show of it."""
        with self.lock:
            busy, spilled = self.sessions.busy_count, self.sessions.spilled_count
            return Reading(
                play_load=self.scheduler.play_load,
                blocks=Counter(block_counts(self.pools.values())),
                shared_block_count=sum(pool.shared_count() for pool in self.pools.values()),
                sessions=Counter(idle=len(self.sessions) - busy - spilled, spilled=spilled, busy=busy),
            )

    def _next_batch(self) -> Batch:
        with self.lock:
            batch = self.scheduler.next_batch(self.clock())
        self.known_count += batch.known_count
        self._metrics.prefix_hits.labels(self.name).inc(batch.known_count)
        return batch

    def _run(self, batch: Batch) -> dict[PendingChunk, Made]:
        try:
            denoising = batch.denoising
            self.model.denoise(denoising)
            denoised_s = self.clock()
            committing = batch.committing
            chunks = self.model.commit(committing)
        except Exception as error:  # a tick that breaks ends its members, never the thread
            log.exception("a tick failed", extra={"model": self.name, "batch_size": len(batch.members)})
            for member in batch.members:
                member.error = error
            return {}
        if batch:
            batch.denoised_count, batch.committed_count = len(denoising), len(committing)
            # With what led to it: a tick costs all the time in which no other runs.
            batch.denoise_s, batch.commit_s = denoised_s - batch.begun_s, self.clock() - denoised_s
            self._metrics.observe_tick(self.name, batch, list(chunks), batch.denoise_s + batch.commit_s)
        return chunks

    def _complete(self, batch: Batch, chunks: dict[PendingChunk, Made]) -> None:
        with self.lock:
            self.scheduler.complete(batch, chunks, self.clock())
            for pool in self.pools.values():
                # Before it is dry, one session a tick: nobody waits for more than that.
                if pool.free_count < self._low_blocks:
                    self.spill(pool)

    def _loop(self) -> None:
        try:
            while self._wait():
                self.step()
        except Exception:  # our own bookkeeping is wrong; nobody may wait for a thread that is gone
            log.exception("the engine has ended by a bug", extra={"model": self.name})
            with self.lock:
                self.broken = True
                self.scheduler.fail_all(EngineBroken(self.name))
                while self._errands:
                    self._errands.popleft()()

    def _check_running(self) -> None:
        if self.broken:
            raise EngineBroken(self.name)
        if self._stopping:  # nobody would ever take it on
            raise Draining

    def _wait(self) -> bool:
        """Runs errands and waits for work; False when the engine is to stop."""
        with self._work:
            while True:
                while self._errands:  # also the last ones: somebody waits for each
                    self._errands.popleft()()
                if self._stopping:
                    return False
                if self.scheduler.has_work:
                    return True
                due = self.scheduler.next_due()
                if due is not None and due <= self.clock():
                    return True
                self._work.wait(None if due is None else min(due - self.clock(), _LONGEST_WAIT_S))

    def _reclaim(self, pool: BlockPool) -> bool:
        """Frees blocks: the reserve of the session left alone longest, then all that an idle one has.

        False when there is neither. In the engine's thread, between ticks, under its lock.
        """
        return any(table.drop_reserve() for table in self._tables(pool)) or self.spill(pool)

    def _tables(self, pool: BlockPool, *, idle: bool = False) -> Iterator[BlockTable]:
        """Of the sessions in a pool, the one left alone longest first."""
        for session in self.sessions.holding(pool):
            if session.idle or not idle:
                yield session.branch.table


def _spill_nothing(pool: BlockPool) -> bool:
    """Until somebody knows where to."""
    del pool
    return False
