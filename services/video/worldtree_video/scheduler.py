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
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from worldtree_video.admission import Paced, admit, play_load
from worldtree_video.agenda import LONGEST_OTHER, Agenda
from worldtree_video.branch import Branch
from worldtree_video.cost import CostModel, Overhead
from worldtree_video.domain import Chunk, Made, Priority, Record, Storage, Summary, Tick, Timing
from worldtree_video.errors import KvCacheFull, KvWindowFull, PolicyBroken
from worldtree_video.introspection import TICKS_KEPT, TickRecord
from worldtree_video.kv_cache import BlockPool, Seen
from worldtree_video.promises import Promises
from worldtree_video.stagger import start_delay_s

# Known chunks shared in one tick: recalling their pixels takes some 10 us each, and others wait for the tick.
_KNOWN_PER_TICK = 32


class Run(Protocol):
    """Grows one branch. Only the scheduler calls `next_record`, `deliver`, `fail`, always under the engine's lock.

    `given`: pixels of the record that was taken last, where they are known: only its block is made then.
    `steered`: whether somebody may change its next chunk until that is begun, so that its record is taken no earlier.
    """

    branch: Branch

    @property
    def priority(self) -> Priority:
        """Its class: whom it goes before."""

    @property
    def tenant(self) -> str:
        """Who asked for it."""

    @property
    def paced(self) -> Paced | None:
        """Its clock; None: it has no deadline."""

    @property
    def given(self) -> bytes | None:
        """Pixels of the record that was taken last."""

    @property
    def steered(self) -> bool:
        """Whether its next chunk is open until it is begun."""

    @property
    def over(self) -> bool:
        """Whether it will never be due again."""

    @property
    def left(self) -> tuple[int, int]:
        """Evaluations and commits until it is over, as far as that is known."""

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
    context: tuple[Seen, ...]
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
    """The members of one tick. `known_count`: chunks that were known and needed none.

    And how it went: when it began, how many were denoised and how long that took, and the same of the commits.
    """

    members: list[PendingChunk]
    known_count: int = 0
    begun_s: float = 0.0
    denoised_count: int = 0
    denoise_s: float = 0.0
    committed_count: int = 0
    commit_s: float = 0.0

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
    """A run and what became of it here; the agenda's candidate."""

    run: Run
    arrival: int = 0  # among all that became ready
    ready_since_s: float = 0.0
    record: Record | None = None  # of its next chunk, once taken
    given: bytes | None = None  # that chunk's pixels, if known
    shared: tuple[BlockPool, bytes] | None = None  # by what others may have that chunk too, if they may
    pending: PendingChunk | None = None
    lifted_by: Run | None = None  # a more urgent run that waits for its chunk
    timed_s: float | None = None  # its earliest timer

    @property
    def priority(self) -> Priority:
        return (self.lifted_by or self.run).priority

    @property
    def tenant(self) -> str:
        return self.run.tenant

    @property
    def paced(self) -> Paced | None:
        return (self.lifted_by or self.run).paced

    @property
    def urgency(self) -> tuple[Priority, float]:
        """Whose chunk is wanted first: the lesser."""
        return self.priority, self.paced.deadline_s if self.paced else math.inf

    @property
    def begun(self) -> bool:
        return self.pending is not None

    @property
    def evaluations_left(self) -> int:
        if self.pending:
            return 0 if self.pending.denoised else self.pending.record.nfe - self.pending.step
        if self.record:
            return 0 if self.given is not None else self.record.nfe
        return self.run.branch.nfe if self.run.branch.chunk_index >= 0 else 0


class Scheduler:
    """Takes all runs from their arrival to their end, tick by tick. Who is in the next one, the agenda decides.

    A play that could not be held at its fps is refused: what plays are promised stays below `play_load_max` of the
    engine's time, by what a tick costs (`cost`).

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
        cost: CostModel | None = None,
        play_load_max: float = 0.75,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch must be 1 or more, got {max_batch}")
        self.max_batch = max_batch
        self.tick = 0
        self.play_load_max = play_load_max
        self.cost = cost or CostModel({})
        self.agenda: Agenda[_Entry] = Agenda(self.cost, max_batch=max_batch, play_load_max=play_load_max)
        self.ticks: deque[TickRecord] = deque(maxlen=TICKS_KEPT)
        self._reclaim = reclaim
        self._forget = forget
        self._recall = recall
        self._entries: dict[Run, _Entry] = {}  # every run that is not over
        self._active: dict[Run, _Entry] = {}  # of these, ready or pending
        self._timers: list[tuple[float, int, Run]] = []
        self._running: set[PendingChunk] = set()
        self._making: dict[tuple[BlockPool, bytes], _Entry] = {}  # by what others would share
        self._overhead = Overhead()
        self.promises = Promises()
        self._unseen: deque[_Entry] = deque()  # ready since this tick began
        self._arrivals = itertools.count()

    @property
    def run_count(self) -> int:
        return len(self._entries)

    @property
    def play_load(self) -> float:
        """Share of the engine's time that plays are promised, by what chunks cost now."""
        return play_load(self._paced(), self.cost, max_batch=self.max_batch)

    def step_wait_s(self, evaluations: int, commits: int) -> tuple[float, float]:
        """How long a step that comes now waits for others, and for itself, by what chunks cost now.

        Nobody waits while there is a place in each tick. Beyond that steps have their chunks made in turn: whoever has
        more of them than the newcomer is before it with as many as that has, in the time that plays leave.
        """
        waiting = [entry.run.left for entry in self._entries.values() if entry.priority is Priority.STEP]
        company = min(self.max_batch, len(waiting) + 1)
        denoise_s, commit_s = self.cost.denoise_s(company), self.cost.commit_s(company)
        own_s = evaluations * denoise_s + commits * commit_s
        ahead_s = 0.0
        if len(waiting) >= self.max_batch:
            before_s = sum(
                min(1.0, commits / left_commits) * (left * denoise_s + left_commits * commit_s)
                for left, left_commits in waiting
                if left_commits
            )
            ahead_s = max(0.0, (before_s + own_s) / company - own_s)
        bulk = any(entry.priority is Priority.BULK for entry in self._active.values())
        share = self.agenda.step_share(self.play_load, bulk=bulk)
        return self._overhead.stretched(ahead_s) / share, self._overhead.stretched(own_s) / share

    def start_delay_s(self, play: Paced, now: float) -> float:
        """How long the clock of a play should wait before it starts, so that its chunks do not meet those of others."""
        others = [(other.next_start_s, self._place_s(other)) for other in self._paced() if other is not play]
        return start_delay_s(now, play.period_s, self._place_s(play), others)

    @property
    def has_work(self) -> bool:
        """Whether a run is ready or pending."""
        return bool(self._active)

    def add(self, run: Run, now: float) -> None:
        """Takes on a run. Raises FpsUnavailable for a new play that cannot be held at its fps beside the others."""
        if run.paced:
            self._admit(run.paced, now)
        self._entries[run] = _Entry(run)
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
        entry.arrival = next(self._arrivals)
        entry.ready_since_s = now
        self._active[run] = entry
        self._unseen.append(entry)

    def break_off(self, run: Run, now: float) -> None:
        """Drops a play, and keeps what it was promised for a moment: its client goes on with it elsewhere."""
        if run.paced:
            self.promises.keep(run.paced, now)
        self.remove(run)

    def remove(self, run: Run) -> None:
        """Drops a run and the chunk it was making. Harmless for one that is over."""
        known = self._entries.pop(run, None)
        if known and known.timed_s is not None:
            # A timer may be hours away, and would hold the run and its history until then.
            self._timers = [timer for timer in self._timers if timer[2] is not run]
            heapq.heapify(self._timers)
        entry = self._active.pop(run, None)
        if entry:
            self._unlift(entry)
            self._drop(entry)

    def restart(self, run: Run, now: float) -> None:
        """Drops the chunk that a run was making and looks again at when it is due."""
        entry = self._active.pop(run, None)
        if entry:
            self._unlift(entry)
            self._drop(entry)
        self.wake(run, now)

    def can_remake(self, play: Run, now: float) -> bool:
        """Whether no play would be late if the chunk that this one is making were begun anew."""
        plays = [entry.run.paced for entry in self._active.values() if entry.run.paced]
        if play not in self._active or not play.paced:
            return False
        # As if they were made one after another, with a quarter to spare.
        needed_s = 1.25 * sum(self.cost.chunk_s(other.full_nfe) for other in plays)
        return now + needed_s <= min(other.deadline_s for other in plays)

    def next_due(self) -> float | None:
        """When a timed run becomes due; None: no run is timed."""
        return self._timers[0][0] if self._timers else None

    def next_batch(self, now: float) -> Batch:
        """The members of the next tick, at most `max_batch`, each with a block to write.

        Before that, chunks that are known are delivered, at most so many in a tick.
        """
        self.tick += 1
        self._wake_timed(now)
        known_count = self._share_known(now)
        placeless: set[_Entry] = set()  # known, or made by another: they need no place in the tick
        while True:
            # All of them at once: a crowd that waits for one chunk would else be gone through by a few a round.
            placeless.update(entry for entry in self._active.values() if not entry.begun and self._joins(entry))
            candidates = [entry for entry in self._active.values() if entry not in placeless]
            entries = self.agenda.choose(candidates, now, self._next_start_s(now))
            for entry in entries:
                # One that could not start may have taken others of its rollout down with it.
                if self._active.get(entry.run) is entry and entry.pending is None:
                    known_count += self._begin(entry, now, company=len(entries))
            if all(entry.pending for entry in entries):
                break
            placeless.update(entry for entry in entries if entry.pending is None)  # and others may have their places
        members = [entry.pending for entry in entries if entry.pending and not entry.pending.cancelled]
        self._running.update(members)
        return Batch(members, known_count, begun_s=now)

    def complete(self, batch: Batch, chunks: dict[PendingChunk, Made], now: float) -> None:
        """Ends a tick: `chunks` holds those that were committed."""
        self._account(batch, now)
        tick = Tick(batch.begun_s, now, len(batch.members))
        for member in batch.members:
            member.timing.ticks.append(tick)
            if member.cancelled:
                continue
            if member.error:
                self._give_back(member)
                self._fail(member.run, member.error)
            elif member in chunks:
                self._commit(member, chunks[member], now)
        self._overhead.after(now if self.has_work else None)
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

    def _begin(self, entry: _Entry, now: float, *, company: int) -> int:
        """Starts an entry's chunk, unless it needs no start of its own; how many chunks were delivered as known."""
        if not self._take_record(entry, now, company=company) or self._joins(entry):
            return 0
        if self._is_known(entry):
            # The others were looked at before: this one is over their number, and waits for the next tick.
            return self._deliver_known(entry, now) if entry.run.steered else 0
        self._start(entry, now)
        return 0

    def _next_start_s(self, now: float) -> float | None:
        """When a tick without a play should end; None: there is none to wait for it."""
        due = self.next_due()
        periods = [play.period_s for play in self._paced()]
        if not periods:
            return due
        limit = now + LONGEST_OTHER * min(periods)
        return limit if due is None else min(due, limit)

    def _place_s(self, play: Paced) -> float:
        # As wide as if plays filled the period as far as they may: so the last of them still finds a place.
        return self.cost.chunk_s(play.full_nfe) / self.play_load_max

    def _admit(self, play: Paced, now: float) -> None:
        if not play.admitted and not self.promises.cover(play, now):
            others = [*self._paced(), *self.promises.others(play.session, now)]
            admit(play, others, self.cost, max_batch=self.max_batch, load_max=self.play_load_max)
        self.promises.forget(play.session)

    def _paced(self) -> list[Paced]:
        return [run.paced for run in self._entries if run.paced and not run.over]

    def _account(self, batch: Batch, now: float) -> None:
        """Learns what the tick cost, and whom to charge for it."""
        if not batch:
            return
        self.cost.observe(
            denoised_count=batch.denoised_count,
            denoise_s=batch.denoise_s,
            committed_count=batch.committed_count,
            commit_s=batch.commit_s,
        )
        self._overhead.observe(batch.begun_s, now, batch.denoise_s + batch.commit_s)
        seconds = now - batch.begun_s
        entries = [self._entries[member.run] for member in batch.members if member.run in self._entries]
        self.agenda.charge(entries, seconds)
        counts = Counter(member.run.priority for member in batch.members)
        self.ticks.append(
            TickRecord(
                end_s=now,
                seconds=seconds,
                play_count=counts[Priority.PLAY],
                step_count=counts[Priority.STEP],
                bulk_count=counts[Priority.BULK],
                commit_count=batch.committed_count,
            )
        )

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
        self._unseen = deque(sorted(self._active.values(), key=lambda entry: (entry.priority, entry.arrival)))
        while self._unseen and count < _KNOWN_PER_TICK:
            entry = self._unseen.popleft()
            if self._active.get(entry.run) is not entry or entry.pending or entry.run.steered:
                continue
            # Those whose record was taken in vain keep it: it is looked for again in every tick.
            if not entry.run.branch.table.pool.prefix_cache:
                continue
            if self._take_record(entry, now, company=1) and self._is_known(entry):
                count += self._deliver_known(entry, now)
        self._unseen.clear()
        return count

    def _take_record(self, entry: _Entry, now: float, *, company: int) -> bool:
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
        if run.paced:
            run.paced.pace(run.paced.deadline_s - now, lambda nfe: self.cost.chunk_s(nfe, company))
        entry.record = run.next_record()
        entry.given = run.given
        entry.shared = (table.pool, entry.record.key) if table.trusted and table.pool.prefix_cache else None
        return True

    def _is_known(self, entry: _Entry) -> bool:
        assert entry.record, "its record was not taken yet"
        return entry.run.branch.table.pool.find(entry.record.key) is not None

    def _joins(self, entry: _Entry) -> bool:
        """Whether another is making its chunk. That one goes by its clock then, or a play would wait for bulk work."""
        maker = self._making.get(entry.shared) if entry.shared else None
        if maker is None:
            return False
        if entry.urgency < maker.urgency:
            maker.lifted_by = entry.run
        return True

    def _unlift(self, entry: _Entry) -> None:
        """It no longer waits for another's chunk; who else does lifts that again in the next tick."""
        maker = self._making.get(entry.shared) if entry.shared else None
        if maker and maker.lifted_by is entry.run:
            maker.lifted_by = None

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
        while block_id is None and (self._reclaim(pool) or table.drop_reserve() or self._gives_way(entry)):
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

    def _gives_way(self, entry: _Entry) -> bool:
        """Ends the newest bulk work with blocks of its own, for one that goes before it. False: there is none."""
        pool = entry.run.branch.table.pool
        for other in reversed(self._entries.values()):
            table = other.run.branch.table
            if not entry.priority < other.priority is Priority.BULK or table.pool is not pool:
                continue
            if other.pending or any(pool.references(block_id) == 1 for block_id in table.blocks.values()):
                self.remove(other.run)
                other.run.fail(KvCacheFull(pool.block_count))
                other.run.branch.close()  # now, not when its reader has learnt of it
                return True
        return False

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
        if run.priority is Priority.BULK:
            self.agenda.shares.made(run.tenant)
        run.deliver(chunk, now)
        self.wake(run, now)
        if run.over:
            self._entries.pop(run, None)

    def _clear(self, entry: _Entry) -> None:
        """Forgets an entry's chunk: made, failed or dropped. Who waited for it looks again in the next tick."""
        if entry.shared and self._making.get(entry.shared) is entry:
            del self._making[entry.shared]
        entry.record = entry.given = entry.shared = entry.pending = entry.lifted_by = None

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
