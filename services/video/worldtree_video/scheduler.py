"""Who runs in the next tick, and in which blocks. Plain Python: no tensor, no transport, no thread.

A *run* grows one branch chunk by chunk. Its life here:

    parked --wake--> timed --its time comes--> ready --block allocated--> pending --last evaluation--> committed
       ^                                                                                                   |
       +---------------------------- due() is None -------- deliver() <-----------------------------------+
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from worldtree_video.branch import Branch
from worldtree_video.domain import Chunk, Made, Priority, Record, Storage, Timing
from worldtree_video.errors import KvCacheFull, KvWindowFull
from worldtree_video.kv_cache import BlockPool


class Run(Protocol):
    """Grows one branch. Only the scheduler calls `next_record`, `deliver`, `fail`, always under the engine's lock."""

    branch: Branch
    priority: Priority

    @property
    def over(self) -> bool:
        """Whether it will never be due again."""

    def due(self, now: float) -> float | None:
        """When its next chunk may start (at once when not after `now`); None: parked until it is woken."""

    def next_record(self) -> Record:
        """Takes the next chunk's record. Only when `due`."""

    def deliver(self, chunk: Chunk, now: float) -> None:
        """Its branch has grown by this chunk."""

    def fail(self, error: Exception) -> None:
        """Its chunk could not be made; the run is over."""


@dataclass(slots=True, eq=False)
class PendingChunk:
    """A chunk being made: `step` evaluations are done; the commit will write `block_id` of `pool`."""

    run: Run
    record: Record
    pool: BlockPool
    block_id: int
    context: tuple[int, ...]
    given: bytes | None
    started_s: float
    step: int = 0
    timing: Timing = field(default_factory=Timing)
    cancelled: bool = False
    error: Exception | None = None

    @property
    def storage(self) -> Storage:
        """The format of its block and of its context."""
        return self.pool.storage

    @property
    def denoised(self) -> bool:
        return self.step >= self.record.nfe


@dataclass(slots=True)
class Batch:
    """The members of one tick."""

    members: list[PendingChunk]

    def __bool__(self) -> bool:
        return bool(self.members)

    @property
    def denoising(self) -> list[PendingChunk]:
        """Members with evaluations left."""
        return [member for member in self.members if not member.denoised and member.error is None]

    @property
    def committing(self) -> list[PendingChunk]:
        """Members that have had their last evaluation."""
        return [member for member in self.members if member.denoised and member.error is None]


@dataclass(slots=True, eq=False)
class _Entry:
    run: Run
    order: tuple[int, int]  # (virtual deadline in ticks, arrival): lower goes first
    ready_since_s: float = 0.0
    pending: PendingChunk | None = None
    timed_s: float | None = None  # its earliest timer


class Scheduler:
    """Chooses, tick by tick, among all runs. Nobody starves: a run's place is its arrival plus its priority's handicap.

    Blocks come from the pool of a run's own table. `reclaim` is asked to free some when that is dry; `forget` drops
    what the model holds of an unfinished chunk; `recall` gives the pixels of a committed block.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        reclaim: Callable[[BlockPool], bool],
        forget: Callable[[PendingChunk], None],
        recall: Callable[[BlockPool, int], bytes],
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be 1 or more, got {max_batch}")
        self.max_batch = max_batch
        self.tick = 0
        self._reclaim = reclaim
        self._forget = forget
        self._recall = recall
        self._entries: dict[Run, _Entry] = {}  # every run that is not over
        self._active: dict[Run, _Entry] = {}  # of these, ready or pending
        self._timers: list[tuple[float, int, Run]] = []
        self._running: set[PendingChunk] = set()
        self._arrivals = itertools.count()

    @property
    def run_count(self) -> int:
        return len(self._entries)

    @property
    def has_work(self) -> bool:
        """Whether a run is ready or pending."""
        return bool(self._active)

    def add(self, run: Run, now: float) -> None:
        """Takes on a run."""
        self._entries[run] = _Entry(run, (0, 0))
        self.wake(run, now)

    def wake(self, run: Run, now: float) -> None:
        """Looks again at when a run is due. Harmless for one that is over, ready or pending."""
        entry = self._entries.get(run)
        if entry is None or run in self._active:
            return
        due = run.due(now)
        if due is None:
            return
        if due > now:
            # One timer will do: whatever changed meanwhile is looked at when it comes.
            if entry.timed_s is None or due < entry.timed_s:
                entry.timed_s = due
                heapq.heappush(self._timers, (due, next(self._arrivals), run))
            return
        entry.order = (self.tick + run.priority, next(self._arrivals))
        entry.ready_since_s = now
        self._active[run] = entry

    def remove(self, run: Run) -> None:
        """Drops a run and the chunk it was making. Harmless for one that is over."""
        known = self._entries.pop(run, None)
        if known and known.timed_s is not None:
            # A timer may be hours away, and would hold the run and its history until then.
            self._timers = [timer for timer in self._timers if timer[2] is not run]
            heapq.heapify(self._timers)
        entry = self._active.pop(run, None)
        if entry and entry.pending:
            self._drop(entry.pending)

    def restart(self, run: Run, now: float) -> None:
        """Drops the chunk that a run was making and looks again at when it is due."""
        entry = self._active.pop(run, None)
        if entry and entry.pending:
            self._drop(entry.pending)
            entry.pending = None
        self.wake(run, now)

    def next_due(self) -> float | None:
        """When a timed run becomes due; None: no run is timed."""
        return self._timers[0][0] if self._timers else None

    def next_batch(self, now: float) -> Batch:
        """The members of the next tick: earliest virtual deadline first, at most `max_batch`."""
        self.tick += 1
        self._wake_timed(now)
        chosen = []
        for entry in heapq.nsmallest(self.max_batch, self._active.values(), key=lambda entry: entry.order):
            # One that could not start may have taken others of its rollout down with it.
            if entry.run in self._active:
                pending = entry.pending or self._start(entry, now)
                if pending:
                    chosen.append(pending)
        members = [member for member in chosen if not member.cancelled]
        self._running.update(members)
        return Batch(members)

    def complete(self, batch: Batch, chunks: dict[PendingChunk, Made], now: float) -> None:
        """Ends a tick: `chunks` holds those that were committed."""
        for member in batch.members:
            if member.cancelled:
                continue
            if member.error:
                self._give_back(member)
                self._fail(member.run, member.error)
            elif member in chunks:
                self._commit(member, chunks[member], now)
        # Only now: a failing member may have taken others of its rollout down with it.
        self._running.clear()
        for member in batch.members:
            if member.cancelled:
                self._give_back(member)

    def fail_all(self, error: Exception) -> None:
        """Ends every run. Blocks of unfinished chunks stay lost: for an engine that makes no more."""
        for run in list(self._entries):
            # The end of one may have ended others, of its rollout.
            if run in self._entries:
                self._fail(run, error)

    def in_flight(self, pool: BlockPool) -> set[int]:
        """Ids of the pool's blocks that unfinished chunks will write, for integrity checks."""
        dropped = [member for member in self._running if member.cancelled]
        pending = [entry.pending for entry in self._active.values() if entry.pending]
        return {member.block_id for member in (*dropped, *pending) if member.pool is pool}

    def _wake_timed(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, _, run = heapq.heappop(self._timers)
            entry = self._entries.get(run)
            if entry:
                entry.timed_s = None
            self.wake(run, now)

    def _start(self, entry: _Entry, now: float) -> PendingChunk | None:
        run = entry.run
        branch = run.branch
        due = run.due(now)
        if due is None or due > now:
            # A pause, a stop or a rewind came between its waking and this tick.
            del self._active[run]
            self.wake(run, now)
            return None
        if not branch.table.policy.can_grow(len(branch.table)):
            self._fail(run, KvWindowFull(branch.table.policy.window_chunks))
            return None
        pool = branch.table.pool
        block_id = pool.allocate()
        while block_id is None and (self._reclaim(pool) or branch.table.drop_reserve()):
            block_id = pool.allocate()
        if block_id is None:
            self._fail(run, KvCacheFull(pool.block_count))
            return None
        record = run.next_record()
        given = branch.origin.chunks[len(branch.records)] if record.given else None
        entry.pending = PendingChunk(run, record, pool, block_id, branch.table.context(), given, now)
        entry.pending.timing.queue_s = now - entry.ready_since_s
        return entry.pending

    def _commit(self, member: PendingChunk, made: Made, now: float) -> None:
        run = member.run
        self._active.pop(run)
        self._entries[run].pending = None
        run.branch.append(member.record, member.block_id)
        run.deliver(Chunk(member.record, made.frames, member.timing), now)
        self.wake(run, now)
        if run.over:
            self._entries.pop(run, None)

    def _fail(self, run: Run, error: Exception) -> None:
        self._entries.pop(run, None)
        self._active.pop(run, None)
        run.fail(error)

    def _drop(self, pending: PendingChunk) -> None:
        # A chunk inside the running tick still writes its block: it is given back when the tick ends.
        pending.cancelled = True
        if pending not in self._running:
            self._give_back(pending)

    def _give_back(self, pending: PendingChunk) -> None:
        pending.pool.abandon(pending.block_id)
        self._forget(pending)
