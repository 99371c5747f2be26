"""Who runs in the next tick, and in which blocks. Plain Python: no tensor, no transport, no thread.

A *run* grows one branch chunk by chunk. Its life here:

    parked --wake--> timed --its time comes--> ready --block allocated--> pending --last evaluation--> committed
       ^                                         |                                                         |
       |                                         +------- its key is known: a block is shared --------+    |
       +---------------------------- due() is None -------- deliver() <-------------------------------+----+

A chunk whose key is known takes no tick and no place in one: its block is shared and its pixels are recalled. One that
another run is making now is waited for. Should that run be cancelled or fail, the one that waited makes it.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from worldtree_video.branch import Branch
from worldtree_video.domain import Chunk, Made, Priority, Record, Storage, Summary, Timing
from worldtree_video.errors import KvCacheFull, KvWindowFull, PolicyBroken
from worldtree_video.kv_cache import BlockPool

# Known chunks shared in one tick: recalling their pixels takes some 10 us each, and others wait for the tick.
_KNOWN_PER_TICK = 32


class Run(Protocol):
    """Grows one branch. Only the scheduler calls `next_record`, `deliver`, `fail`, always under the engine's lock.

    `given`: pixels of the record that was taken last, where they are known: only its block is made then.
    `steered`: whether somebody may change its next chunk until that is begun, so that its record is taken no earlier.
    """

    branch: Branch
    priority: Priority

    @property
    def given(self) -> bytes | None:
        """Pixels of the record that was taken last."""

    @property
    def steered(self) -> bool:
        """Whether its next chunk is open until it is begun."""

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
    """A chunk being made: `step` evaluations are done; the commit will write `block_id` of `pool`.

    `given`: its pixels, where they are known; then no evaluation is run. `parent_summary`: of the chunk before it.
    `wants_summary`: whether its policy `compares`, so that the commit makes one.
    """

    run: Run
    record: Record
    pool: BlockPool
    block_id: int
    context: tuple[int, ...]
    given: bytes | None
    started_s: float
    parent_summary: Summary | None = None
    wants_summary: bool = False
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
        return self.given is not None or self.step >= self.record.nfe


@dataclass(slots=True)
class Batch:
    """The members of one tick. `known_count`: chunks that were known and needed none."""

    members: list[PendingChunk]
    known_count: int = 0

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
    record: Record | None = None  # of its next chunk, once taken
    given: bytes | None = None  # that chunk's pixels, if known
    shared: tuple[BlockPool, bytes] | None = None  # by what others may have that chunk too, if they may
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
        self._making: dict[tuple[BlockPool, bytes], _Entry] = {}  # by what others would share
        self._unseen: deque[_Entry] = deque()  # ready since this tick began
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
        self._unseen.append(entry)

    def remove(self, run: Run) -> None:
        """Drops a run and the chunk it was making. Harmless for one that is over."""
        known = self._entries.pop(run, None)
        if known and known.timed_s is not None:
            # A timer may be hours away, and would hold the run and its history until then.
            self._timers = [timer for timer in self._timers if timer[2] is not run]
            heapq.heapify(self._timers)
        entry = self._active.pop(run, None)
        if entry:
            self._drop(entry)

    def restart(self, run: Run, now: float) -> None:
        """Drops the chunk that a run was making and looks again at when it is due."""
        entry = self._active.pop(run, None)
        if entry:
            self._drop(entry)
        self.wake(run, now)

    def next_due(self) -> float | None:
        """When a timed run becomes due; None: no run is timed."""
        return self._timers[0][0] if self._timers else None

    def next_batch(self, now: float) -> Batch:
        """The members of the next tick: earliest virtual deadline first, at most `max_batch`.

        Before that, chunks that are known are delivered, at most so many in a tick.
        """
        self.tick += 1
        self._wake_timed(now)
        known_count = self._share_known(now)
        chosen: list[PendingChunk] = []
        waiting = [(entry.order, entry) for entry in self._active.values()]
        heapq.heapify(waiting)
        while waiting and len(chosen) < self.max_batch:
            _, entry = heapq.heappop(waiting)
            # One that could not start may have taken others of its rollout down with it.
            if self._active.get(entry.run) is not entry:
                continue
            if entry.pending is None:
                if not self._take_record(entry, now) or self._joins(entry):
                    continue
                if self._is_known(entry):
                    if entry.run.steered:  # the others were looked at before, and this one is over their number
                        known_count += self._deliver_known(entry, now)
                    continue
                self._start(entry, now)
            if entry.pending:
                chosen.append(entry.pending)
        members = [member for member in chosen if not member.cancelled]
        self._running.update(members)
        return Batch(members, known_count)

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

    def _share_known(self, now: float) -> int:
        """Delivers chunks that are known, of all runs whose next chunk is certain; returns how many."""
        count = 0
        self._unseen = deque(sorted(self._active.values(), key=lambda entry: entry.order))
        while self._unseen and count < _KNOWN_PER_TICK:
            entry = self._unseen.popleft()
            if self._active.get(entry.run) is not entry or entry.pending or entry.run.steered:
                continue
            # Those whose record was taken in vain keep it: it is looked for again in every tick.
            if entry.run.branch.table.pool.prefix_cache and self._take_record(entry, now) and self._is_known(entry):
                count += self._deliver_known(entry, now)
        self._unseen.clear()
        return count

    def _take_record(self, entry: _Entry, now: float) -> bool:
        """Decides what an entry's next chunk is; False when it is not due, or can have none."""
        if entry.record:
            return True
        run, table = entry.run, entry.run.branch.table
        due = run.due(now)
        if due is None or due > now:
            # A pause, a stop or a rewind came between its waking and this tick.
            del self._active[run]
            self.wake(run, now)
            return False
        try:
            if not table.can_grow:
                raise KvWindowFull(table.policy.window_chunks)
        except (KvWindowFull, PolicyBroken) as error:
            self._fail(run, error)
            return False
        entry.record = run.next_record()
        entry.given = run.given
        entry.shared = (table.pool, entry.record.key) if table.trusted and table.pool.prefix_cache else None
        return True

    def _is_known(self, entry: _Entry) -> bool:
        assert entry.record, "its record was not taken yet"
        return entry.run.branch.table.pool.find(entry.record.key) is not None

    def _joins(self, entry: _Entry) -> bool:
        """Whether another is making its chunk. That one gets its place, or a play might wait for bulk work."""
        maker = self._making.get(entry.shared) if entry.shared else None
        if maker is None:
            return False
        maker.order = min(maker.order, (entry.order[0], maker.order[1]))
        return True

    def _deliver_known(self, entry: _Entry, now: float) -> bool:
        """Gives a run the chunk that is in the pool; False when it failed."""
        run, record, given = entry.run, entry.record, entry.given
        assert record, "its record was not taken yet"
        table = run.branch.table
        try:
            shared = run.branch.share_known(record)
        except PolicyBroken as error:
            self._fail(run, error)
            return False
        assert shared, f"chunk {record.chunk_index} was known a moment ago"
        frames = self._recall(table.pool, table.last) if given is None else given
        self._finish(entry, Chunk(record, frames, Timing(queue_s=now - entry.ready_since_s)), now)
        return True

    def _start(self, entry: _Entry, now: float) -> None:
        """Finds an entry's chunk a block to be made in; it has none afterwards if its run failed."""
        run, record, table = entry.run, entry.record, entry.run.branch.table
        assert record, "its record was not taken yet"
        try:
            context = table.context()
        except PolicyBroken as error:
            self._fail(run, error)
            return
        pool = table.pool
        block_id = pool.allocate()
        while block_id is None and (self._reclaim(pool) or table.drop_reserve()):
            block_id = pool.allocate()
        if block_id is None:
            self._fail(run, KvCacheFull(pool.block_count))
            return
        entry.pending = PendingChunk(
            run,
            record,
            pool,
            block_id,
            context,
            entry.given,
            now,
            parent_summary=table.summary(len(table) - 1),
            wants_summary=table.policy.compares,
        )
        entry.pending.timing.queue_s = now - entry.ready_since_s
        if entry.shared:
            self._making[entry.shared] = entry

    def _commit(self, member: PendingChunk, made: Made, now: float) -> None:
        run = member.run
        try:
            run.branch.append(member.record, member.block_id, made.summary)
        except PolicyBroken as error:
            self._give_back(member)
            self._fail(run, error)
            return
        self._finish(self._active[run], Chunk(member.record, made.frames, member.timing), now)

    def _finish(self, entry: _Entry, chunk: Chunk, now: float) -> None:
        """An entry's branch has grown by its chunk: on to the next."""
        run = entry.run
        del self._active[run]
        self._clear(entry)
        run.deliver(chunk, now)
        self.wake(run, now)
        if run.over:
            self._entries.pop(run, None)

    def _clear(self, entry: _Entry) -> None:
        """Forgets an entry's chunk: made, failed or dropped. Who waited for it looks again in the next tick."""
        if entry.shared and self._making.get(entry.shared) is entry:
            del self._making[entry.shared]
        entry.record = entry.given = entry.shared = entry.pending = None

    def _fail(self, run: Run, error: Exception) -> None:
        self._entries.pop(run, None)
        entry = self._active.pop(run, None)
        if entry:
            self._clear(entry)
        run.fail(error)

    def _drop(self, entry: _Entry) -> None:
        pending = entry.pending
        self._clear(entry)
        if pending is None:
            return
        # A chunk inside the running tick still writes its block: it is given back when the tick ends.
        pending.cancelled = True
        if pending not in self._running:
            self._give_back(pending)

    def _give_back(self, pending: PendingChunk) -> None:
        pending.pool.abandon(pending.block_id)
        self._forget(pending)
