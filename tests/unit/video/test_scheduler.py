"""Who runs next, with real runs and a model that only counts its evaluations."""

from collections.abc import Callable
from typing import Any

import pytest
from worldtree_runtime.errors import WorldtreeError
from worldtree_video.branch import Branch
from worldtree_video.cost import CostModel
from worldtree_video.domain import Action, Chunk, KvPolicy, Made, Origin, PolicyKind, Priority, Record, Storage
from worldtree_video.errors import FpsUnavailable, KvCacheFull, KvWindowFull, NotFinite
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.play import Play, Played
from worldtree_video.rollout import Rollout, build_trie
from worldtree_video.scheduler import Batch, PendingChunk, Run, Scheduler
from worldtree_video.sequence import Planned, Sequence

POISON = Action(99)


class Box:
    """A sink that keeps what comes."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.closed = 0
        self.error: Exception | None = None

    def put(self, item: Chunk) -> None:
        self.chunks.append(item)

    def close(self, error: Exception | None = None) -> None:
        self.closed += 1
        self.error = error


class PlayBox:
    """The same for a play."""

    def __init__(self) -> None:
        self.played: list[Played] = []
        self.error: Exception | None = None
        self.taken: Callable[[], None] = lambda: None

    def put(self, item: Played) -> None:
        self.played.append(item)
        self.taken()

    def close(self, error: Exception | None = None) -> None:
        self.error = error


class Machine:
    """A scheduler, its pool, and ticks whose model writes the action's number as pixels."""

    def __init__(
        self, *, block_count: int = 64, max_batch: int = 4, prefix_cache: bool = False, member_s: float = 0.0
    ) -> None:
        self.member_s = member_s  # what a member adds to the time of a tick, and its commit again
        self.pool = BlockPool(block_count, prefix_cache=prefix_cache)
        self.now = 0.0
        self.reserves: list[BlockTable] = []
        self.pictures: dict[tuple[BlockPool, int], bytes] = {}
        self.forgotten: list[PendingChunk] = []
        self.during: Callable[[Batch], None] = lambda batch: None
        self.scheduler = Scheduler(
            max_batch=max_batch,
            reclaim=self._reclaim,
            forget=self.forgotten.append,
            recall=self._recall,
            cost=CostModel({1: member_s, 2: 2 * member_s}),
        )

    def branch(
        self, *, start: int = 1, nfe: int = 2, policy: KvPolicy | None = None, reserve_chunks: int = 0
    ) -> Branch:
        """A branch whose start is still to be committed."""
        policy = policy or KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)
        origin = Origin(tuple(bytes([index]) for index in range(start)), (Action(0),) * (start - 1))
        return Branch(origin, b"root", 7, nfe, BlockTable(self.pool, policy, reserve_chunks=reserve_chunks))

    def started(self, *, chunks: int = 0, nfe: int = 2, **options: object) -> Branch:
        """A branch with its start, and so many chunks more."""
        branch = self.branch(nfe=nfe, **options)  # type: ignore[arg-type]
        self.add(branch, *[0] * chunks)
        self.run()
        return branch

    def add(self, branch: Branch, *actions: int, priority: Priority = Priority.STEP) -> tuple[Sequence, Box]:
        box = Box()
        sequence = Sequence(branch, [Planned(Action(action)) for action in actions], priority=priority, sink=box)
        self.scheduler.add(sequence, self.now)
        return sequence, box

    def play(
        self,
        branch: Branch,
        *actions: int,
        fps: float,
        repeat: bool = False,
        degrade_to: tuple[int, ...] = (),
        lookahead_chunks: int = 1,
        session: str = "",
    ) -> tuple[Play, PlayBox]:
        """A play whose reader takes each chunk at once."""
        box = PlayBox()
        play = Play(
            branch,
            period_s=1 / fps if fps else 0.0,
            lookahead_chunks=lookahead_chunks,
            repeat=repeat,
            sink=box,
            now=self.now,
            degrade_to=degrade_to,
            session=session,
        )
        box.taken = play.taken
        self.scheduler.add(play, self.now)
        play.act([Action(action) for action in actions], self.now)
        self.scheduler.wake(play, self.now)
        return play, box

    def run_until(self, end_s: float) -> None:
        """Ticks, and from one due time to the next where there is nothing to do."""
        while self.now < end_s:
            if not self.tick():
                due = self.scheduler.next_due()
                self.now = end_s if due is None else max(due, self.now + 1e-9)

    def tick(self) -> list[Run]:
        batch = self.scheduler.next_batch(self.now)
        batch.denoised_count = len(batch.denoising)
        for member in batch.denoising:
            if member.record.action == POISON:
                member.error = NotFinite(member.record.chunk_index)
            else:
                member.step += 1
        chunks = {member: Made(_pixels(member)) for member in batch.committing}
        for member, made in chunks.items():
            self.pictures[member.pool, member.block_id] = made.frames
        batch.committed_count = len(chunks)
        batch.denoise_s, batch.commit_s = batch.denoised_count * self.member_s, len(chunks) * self.member_s
        self.now += batch.denoise_s + batch.commit_s
        self.during(batch)
        self.scheduler.complete(batch, chunks, self.now)
        self.check()
        return [member.run for member in batch.members]

    def run(self, limit: int = 1000) -> int:
        for count in range(limit):
            if not self.tick():
                return count
        raise AssertionError(f"still at work after {limit} ticks")

    def check(self) -> None:
        self.pool.check_integrity()
        assert len(self.scheduler.in_flight(self.pool)) == self.pool.in_flight_count

    def _reclaim(self, pool: BlockPool) -> bool:
        return any(table.drop_reserve() for table in self.reserves if table.pool is pool)

    def _recall(self, pool: BlockPool, block_id: int) -> bytes:
        return self.pictures[pool, block_id]


def _pixels(member: PendingChunk) -> bytes:
    return member.given if member.given is not None else str(member.record.action).encode()


def test_a_chunk_takes_as_many_ticks_as_it_has_evaluations_and_a_given_one_takes_one() -> None:
    machine = Machine()
    _, box = machine.add(machine.branch(start=2, nfe=2), 5)
    assert machine.run() == 2 + 2
    assert [chunk.record.chunk_index for chunk in box.chunks] == [-2, -1, 0]
    assert [chunk.frames for chunk in box.chunks[:2]] == [b"\0", b"\1"]
    assert (box.closed, box.error, machine.scheduler.run_count) == (1, None, 0)


def test_members_at_different_noise_levels_share_a_tick() -> None:
    machine = Machine()
    first, _ = machine.add(machine.started(nfe=4), 1)
    assert machine.tick() == [first]
    late, _ = machine.add(machine.branch(nfe=1), 1)
    assert machine.tick() == [first, late]
    assert machine.run() > 0


def test_a_tick_never_holds_more_than_max_batch_and_everybody_gets_a_turn() -> None:
    machine = Machine(max_batch=3)
    boxes = [machine.add(machine.started(), *range(4))[1] for _ in range(7)]
    while any(not box.closed for box in boxes):
        assert len(machine.tick()) <= 3
    assert all([chunk.record.action for chunk in box.chunks] == [Action(n) for n in range(4)] for box in boxes)


def test_a_play_goes_before_a_step_and_a_step_before_bulk() -> None:
    machine = Machine(max_batch=1)
    branches = [machine.started(nfe=1) for _ in range(4)]
    bulk, _ = machine.add(branches[0], 1, priority=Priority.BULK)
    step, _ = machine.add(branches[1], 1, priority=Priority.STEP)
    free, _ = machine.play(branches[2], 1, fps=0)  # without a clock, so after the step that came before it
    play, _ = machine.play(branches[3], 1, fps=10)
    assert [machine.tick() for _ in range(4)] == [[play], [step], [free], [bulk]]


def test_plays_go_by_their_deadlines() -> None:
    machine = Machine(max_batch=1)
    branches = [machine.started(nfe=1) for _ in range(3)]
    late, early, middle = (
        machine.play(branch, 1, fps=fps)[0] for branch, fps in zip(branches, (1, 30, 5), strict=True)
    )
    assert [machine.tick() for _ in range(3)] == [[early], [middle], [late]]


def test_bulk_work_and_steps_go_on_beside_as_many_plays_as_are_admitted() -> None:
    machine = Machine(block_count=400, max_batch=4, member_s=0.005)
    machine.scheduler.play_load_max = 0.9
    branches = [machine.started(nfe=2) for _ in range(8)]
    boxes = [machine.play(branch, 1, fps=10, repeat=True)[1] for branch in branches[2:]]  # 6 x 15 ms in 100
    _, step = machine.add(branches[0], *[1] * 50)
    _, bulk = machine.add(branches[1], *[1] * 50, priority=Priority.BULK)
    machine.run_until(machine.now + 8)
    assert all(len(box.played) >= 78 for box in boxes)
    assert sum(played.late_s > 0 for box in boxes for played in box.played) <= 2  # all of them start at once
    assert len(step.chunks) == 50
    assert len(bulk.chunks) > 3


def test_the_promise_of_a_play_that_broke_off_is_its_sessions_until_its_time_has_passed() -> None:
    machine = Machine(block_count=200, member_s=0.010)
    branches = [machine.started(nfe=2) for _ in range(7)]
    plays = [machine.play(branch, 1, fps=5, session=f"s{i}")[0] for i, branch in enumerate(branches[:5])]
    machine.scheduler.break_off(plays[0], machine.now)
    with pytest.raises(FpsUnavailable):
        machine.play(branches[5], 1, fps=5, session="other")
    with pytest.raises(FpsUnavailable):
        machine.play(branches[0], 1, fps=10, session="s0")
    again, _ = machine.play(branches[0], 1, fps=5, session="s0")
    assert machine.scheduler.play_load == pytest.approx(0.75)
    machine.scheduler.break_off(again, machine.now)
    machine.now += machine.scheduler.promises.kept_s
    machine.play(branches[5], 1, fps=5, session="other")
    with pytest.raises(FpsUnavailable):
        machine.play(branches[0], 1, fps=5, session="s0")


def test_a_play_that_would_be_too_much_is_refused_and_takes_no_place() -> None:
    machine = Machine(block_count=200, member_s=0.010)
    branches = [machine.started(nfe=2) for _ in range(7)]
    plays = [machine.play(branch, 1, fps=5)[0] for branch in branches[:5]]  # 30 ms in 200
    assert machine.scheduler.play_load == pytest.approx(0.75)
    count = machine.scheduler.run_count
    with pytest.raises(FpsUnavailable):
        machine.play(branches[5], 1, fps=5)
    assert machine.scheduler.run_count == count
    machine.scheduler.remove(plays[0])
    plays[1].fail(RuntimeError("its reader has gone"))
    assert machine.scheduler.play_load == pytest.approx(0.45)
    machine.play(branches[6], 1, fps=5)


def test_a_step_waits_for_those_before_it_in_the_time_that_plays_leave() -> None:
    machine = Machine(block_count=200, max_batch=1, member_s=0.010)
    branches = [machine.started(nfe=2) for _ in range(3)]
    assert machine.scheduler.step_wait_s(8, 4) == (0.0, pytest.approx(0.120))
    machine.add(branches[0], *[1] * 4)
    assert machine.scheduler.step_wait_s(8, 4) == (pytest.approx(0.120), pytest.approx(0.120))
    play, _ = machine.play(branches[1], fps=10)  # 30 ms in 100
    assert machine.scheduler.step_wait_s(8, 4)[0] == pytest.approx(0.120 / 0.7)
    machine.scheduler.remove(play)
    machine.add(branches[2], *[1] * 4, priority=Priority.BULK)  # steps go before it, but for what it is owed
    assert machine.scheduler.step_wait_s(8, 4)[0] == pytest.approx(0.120 / 0.875)


@pytest.mark.parametrize("max_batch", [1, 2, 4, 8])
@pytest.mark.parametrize("others", [(1,), (12,), (3, 3, 3), (1, 12, 5), (2,) * 9, (12,) * 9])
@pytest.mark.parametrize("own", [1, 4])
def test_a_step_takes_as_long_as_was_foretold(max_batch: int, others: tuple[int, ...], own: int) -> None:
    machine = Machine(block_count=400, max_batch=max_batch, member_s=0.010)
    branch, *rest = [machine.started(nfe=2) for _ in range(1 + len(others))]
    for other, count in zip(rest, others, strict=True):
        machine.add(other, *[1] * count)
    ahead_s, own_s = machine.scheduler.step_wait_s(2 * own, own)
    assert ahead_s == 0.0 or len(others) >= max_batch, "who finds a place does not wait"
    begun_s = machine.now
    run, _ = machine.add(branch, *[1] * own)
    while not run.over:
        machine.tick()
    took_s = machine.now - begun_s
    # Company that ends on the way makes it faster; a chunk that was begun, and the last round, slower.
    round_s = 3 * 0.010 * (1 + len(others))
    assert took_s - round_s <= ahead_s + own_s <= 3 * took_s


def test_known_pixels_are_only_committed_in_what_a_step_waits_for() -> None:
    machine = Machine(block_count=200, max_batch=1, member_s=0.010)
    branch = machine.started(nfe=2)
    known = [Planned(Action(1), frames=b"a"), Planned(Action(2))]
    machine.scheduler.add(Sequence(branch, known, priority=Priority.STEP, sink=Box()), machine.now)
    assert machine.scheduler.step_wait_s(4, 2)[0] == pytest.approx(2 * 0.010 + 2 * 0.010)


def test_a_play_that_may_degrade_is_made_with_fewer_evaluations_rather_than_late() -> None:
    machine = Machine(block_count=200, member_s=0.010)
    machine.scheduler.play_load_max = 9.0
    options = {"fps": 5, "repeat": True, "degrade_to": (1, 2, 4)}
    branches = [machine.started(nfe=4) for _ in range(6)]
    boxes = [machine.play(branch, 1, **options)[1] for branch in branches]  # type: ignore[arg-type]
    machine.run_until(machine.now + 6)  # 6 x 50 ms in 200
    made = [played.chunk.record.nfe for box in boxes for played in box.played]
    assert {1, 2} & set(made)
    late = sum(played.late_s > 0 for box in boxes for played in box.played)
    assert late / len(made) < 0.1
    assert len(made) >= 6 * 28
    assert all(box.played[-1].degraded == (box.played[-1].chunk.record.nfe < 4) for box in boxes)


def test_a_chunk_is_begun_anew_for_a_newer_action_and_loses_no_block() -> None:
    machine = Machine(member_s=0.010)
    play, box = machine.play(machine.started(nfe=4), 1, fps=5, repeat=True)
    for _ in range(3):
        machine.tick()
    assert machine.pool.in_flight_count == 1
    play.act([Action(9)], machine.now, replace=True)
    assert machine.scheduler.can_remake(play, machine.now)
    play.remake()
    machine.scheduler.restart(play, machine.now)
    assert machine.pool.in_flight_count == 0
    begun_s = machine.now
    while not box.played:
        machine.tick()
    assert machine.now == pytest.approx(begun_s + 0.050)
    (played,) = box.played
    assert (played.chunk.record.action, played.chunk.record.chunk_index, played.late_s) == (Action(9), 0, 0.0)
    assert machine.pool.in_flight_count == 0


def test_no_chunk_is_begun_anew_where_that_might_make_a_play_late() -> None:
    machine = Machine(block_count=200, member_s=0.010)
    branches = [machine.started(nfe=nfe) for nfe in (4, 1, 1)]
    play, _ = machine.play(branches[0], 1, fps=5, repeat=True)  # 50 ms in 200
    deadline_s = play.deadline_s
    assert machine.scheduler.can_remake(play, deadline_s - 0.063)  # 50 ms and a quarter
    assert not machine.scheduler.can_remake(play, deadline_s - 0.062)
    other, _ = machine.play(branches[1], 1, fps=10)  # 20 ms in 100
    assert machine.scheduler.can_remake(play, other.deadline_s - 0.088)
    assert not machine.scheduler.can_remake(play, other.deadline_s - 0.087)
    free, _ = machine.play(branches[2], 1, fps=0)
    assert not machine.scheduler.can_remake(free, machine.now), "it has no deadline that tells how much time there is"


def test_a_control_never_waits_behind_more_than_a_tenth_of_a_period_of_other_work() -> None:
    machine = Machine(block_count=200, max_batch=16, member_s=0.001)
    branches = [machine.started(nfe=2) for _ in range(17)]
    for branch in branches[1:]:
        machine.add(branch, *[1] * 100, priority=Priority.BULK)
    assert len(machine.tick()) == 16
    assert len(machine.tick()) == 16
    idle, _ = machine.play(branches[0], fps=10)  # it waits for its first action, which may come at any moment
    sizes, seconds = [], []
    for _ in range(20):
        begun_s = machine.now
        sizes.append(len(machine.tick()))
        seconds.append(machine.now - begun_s)
    assert max(seconds) <= 0.010 + 1e-9
    assert max(sizes) >= 8
    machine.scheduler.remove(idle)
    assert len(machine.tick()) == 16


def test_tenants_share_bulk_work_evenly_however_many_runs_each_has() -> None:
    machine = Machine(block_count=400, member_s=0.001)
    boxes: dict[str, list[Box]] = {"many": [], "one": []}
    for branch, tenant in zip([machine.started(nfe=2) for _ in range(6)], ["many"] * 5 + ["one"], strict=True):
        box = Box()
        run = Sequence(branch, [Planned(Action(1))] * 100, priority=Priority.BULK, sink=box, tenant=tenant)
        machine.scheduler.add(run, machine.now)
        boxes[tenant].append(box)
    machine.scheduler.agenda.max_batch = 1  # a single run cannot use two places of a tick
    for _ in range(200):
        machine.tick()
    made = {tenant: sum(len(box.chunks) for box in held) for tenant, held in boxes.items()}
    assert made["many"] == pytest.approx(made["one"], abs=3)
    shares = {share.tenant: share.chunk_count for share in machine.scheduler.agenda.shares.shares()}
    assert shares == made


def test_ticks_are_remembered_by_the_work_in_them() -> None:
    machine = Machine(block_count=200, member_s=0.001)
    branches = [machine.started(nfe=1) for _ in range(2)]
    machine.scheduler.ticks.clear()
    machine.add(branches[0], 1, priority=Priority.BULK)
    machine.add(branches[1], 1)
    machine.tick()
    (tick,) = machine.scheduler.ticks
    assert (tick.play_count, tick.step_count, tick.bulk_count, tick.commit_count) == (0, 1, 1, 2)
    assert (tick.end_s, tick.seconds) == (machine.now, pytest.approx(0.004))
    for _ in range(100):
        machine.started(nfe=1)
    assert len(machine.scheduler.ticks) == 64


def test_a_run_that_is_cancelled_inside_a_tick_gives_its_block_back_when_the_tick_ends() -> None:
    machine = Machine()
    branch, other = machine.started(), machine.started()
    held = machine.pool.held_count
    gone, box = machine.add(branch, 1, 2)
    stays, kept = machine.add(other, 1)

    def cancel(batch: Batch) -> None:
        machine.scheduler.remove(gone)
        assert machine.pool.in_flight_count == len(batch.members)  # the graph may still write it
        machine.during = lambda batch: None

    machine.during = cancel
    machine.run()
    assert box.chunks == []
    assert len(kept.chunks) == 1
    assert machine.pool.in_flight_count == 0
    assert branch.chunk_index == 0
    assert machine.pool.held_count == held + 1
    machine.scheduler.remove(stays)  # harmless: it is over


def test_a_run_that_is_cancelled_between_ticks_gives_its_block_back_at_once() -> None:
    machine = Machine()
    sequence, _ = machine.add(machine.started(), 1)
    machine.tick()
    assert machine.pool.in_flight_count == 1
    machine.scheduler.remove(sequence)
    assert machine.pool.in_flight_count == 0
    assert machine.forgotten[-1:] != []
    assert machine.run() == 0


def test_a_member_that_fails_takes_no_other_down() -> None:
    machine = Machine()
    bad_branch, good_branch = machine.started(), machine.started()
    _, bad = machine.add(bad_branch, 1, POISON.value, 1)  # type: ignore[arg-type]
    _, good = machine.add(good_branch, 1, 2, 3)
    machine.run()
    assert isinstance(bad.error, NotFinite)
    assert [chunk.record.action for chunk in bad.chunks] == [Action(1)]
    assert (len(good.chunks), good.error) == (3, None)
    assert machine.pool.in_flight_count == 0


def test_a_dry_pool_fails_the_run_that_wants_a_block_and_no_other() -> None:
    machine = Machine(block_count=6)
    first, second = machine.started(chunks=3), machine.started()
    assert machine.pool.free_count == 1
    _, one = machine.add(first, 1, 1, 1)
    _, two = machine.add(second, 1, 1, 1)
    machine.run()
    failed = [box for box in (one, two) if box.error]
    assert len(failed) == 1
    assert isinstance(failed[0].error, KvCacheFull)
    assert "all 6 blocks" in str(failed[0].error)


def test_reserves_are_taken_back_before_a_run_is_failed() -> None:
    machine = Machine(block_count=9)
    sleeper = machine.started(chunks=6, reserve_chunks=16)
    machine.reserves.append(sleeper.table)
    _, box = machine.add(machine.branch(), 1, 1)
    machine.run()
    assert (box.error, len(box.chunks)) == (None, 3)
    assert sleeper.table.held_count == 4
    assert sleeper.table.complete


def test_a_run_gives_up_its_own_reserve_before_it_fails() -> None:
    """A step works on a fork: what its session gives back, the fork still holds."""
    machine = Machine(block_count=8)
    session = machine.started(chunks=6, reserve_chunks=16)
    machine.reserves.append(session.table)
    fork = session.fork()
    _, box = machine.add(fork, 1, 1)
    machine.run()
    assert (box.error, len(box.chunks)) == (None, 2)


def test_a_full_window_fails_with_its_size() -> None:
    machine = Machine()
    branch = machine.started(policy=KvPolicy(PolicyKind.FULL, 3))
    _, box = machine.add(branch, 1, 1, 1)
    machine.run()
    assert len(box.chunks) == 2
    assert isinstance(box.error, KvWindowFull)
    assert box.error.metadata["window_chunks"] == "3"


class Clocked:
    """A run that is due when told, like a play."""

    priority = Priority.STEP
    tenant = "anonymous"
    paced = None
    given = None
    steered = True

    def __init__(self, branch: Branch, due_s: float | None) -> None:
        self.branch = branch
        self.due_s = due_s
        self.over = False
        self.made: list[int] = []

    def due(self, now: float) -> float | None:
        return self.due_s

    def next_record(self) -> Record:
        assert self.due_s is not None, "asked for a chunk while not due"
        return self.branch.next_record(Action(1))

    def deliver(self, chunk: Chunk, now: float) -> None:
        self.made.append(chunk.record.chunk_index)
        self.due_s = None

    def fail(self, error: Exception) -> None:
        raise error


def test_a_timed_run_waits_for_its_time_and_a_parked_one_for_its_waking() -> None:
    machine = Machine()
    timed = Clocked(machine.started(nfe=1), 5.0)
    machine.scheduler.add(timed, machine.now)
    assert machine.scheduler.next_due() == 5.0
    assert machine.tick() == []
    machine.now = 5.0
    assert machine.tick() == [timed]
    assert (machine.tick(), machine.scheduler.next_due()) == ([], None)
    timed.due_s = 5.0
    assert machine.tick() == []
    machine.scheduler.wake(timed, machine.now)
    assert machine.tick() == [timed]


def test_a_run_that_was_stopped_between_its_waking_and_the_tick_makes_no_chunk() -> None:
    """A pause, a stop or a rewind comes while the tick of others is running."""
    machine = Machine()
    run = Clocked(machine.started(nfe=1), 0.0)
    machine.scheduler.add(run, machine.now)
    assert machine.scheduler.has_work
    run.due_s = None
    assert machine.tick() == []
    assert not machine.scheduler.has_work
    run.due_s = 0.0
    machine.scheduler.wake(run, machine.now)
    machine.run()
    assert run.made == [0]


def test_many_wakings_before_its_time_leave_one_timer_and_a_cancel_leaves_none() -> None:
    machine = Machine()
    run = Clocked(machine.started(nfe=1), 1e30)
    machine.scheduler.add(run, machine.now)
    for _ in range(100):
        machine.scheduler.wake(run, machine.now)
    assert len(machine.scheduler._timers) == 1
    machine.scheduler.remove(run)
    assert machine.scheduler.next_due() is None


def test_a_run_that_is_restarted_inside_a_tick_makes_its_chunk_anew() -> None:
    machine = Machine()
    run = Clocked(machine.started(nfe=1), 0.0)
    machine.scheduler.add(run, machine.now)

    def restart(batch: Batch) -> None:
        machine.during = lambda batch: None
        machine.scheduler.restart(run, machine.now)

    machine.during = restart
    assert machine.tick() == [run]
    assert run.made == []
    assert machine.tick() == [run]
    assert run.made == [0]


def test_an_earlier_time_replaces_a_later_one() -> None:
    machine = Machine()
    run = Clocked(machine.started(nfe=1), 9.0)
    machine.scheduler.add(run, machine.now)
    run.due_s = 2.0
    machine.scheduler.wake(run, machine.now)
    assert machine.scheduler.next_due() == 2.0
    machine.now = 2.0
    assert machine.tick() == [run]
    machine.now = 9.0
    assert machine.tick() == []


@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_a_rollout_that_finds_the_pool_dry_in_the_middle_of_a_batch_gives_everything_back(free: int) -> None:
    """Some of its nodes have a block in the same tick, some have not, and all must go."""
    machine = Machine(block_count=16)
    parent = machine.started()
    box = Box()
    rollout = Rollout(
        parent,
        build_trie([[(Action(index), 7), (Action(0), 7)] for index in range(4)]),
        width=4,
        ahead_chunks=64,
        sink=box,  # type: ignore[arg-type]
        spawn=lambda run: machine.scheduler.add(run, machine.now),
        drop=machine.scheduler.remove,
    )
    taken = [machine.pool.allocate() for _ in range(machine.pool.free_count - free)]
    bystander, _ = machine.add(parent.fork(), 1, priority=Priority.BULK)
    rollout.begin()
    for _ in range(6):
        batch = machine.scheduler.next_batch(machine.now)
        for member in batch.denoising:
            member.step += 1
        machine.scheduler.complete(batch, dict.fromkeys(batch.committing, Made(b"")), machine.now)
        machine.pool.check_integrity()
    assert box.closed == 1
    assert isinstance(box.error, WorldtreeError)
    for block in taken:
        assert block is not None
        machine.pool.abandon(block)
    bystander.branch.close()
    machine.check()
    assert machine.pool.free_count == 16 - 1


def test_a_batch_of_no_members_is_refused() -> None:
    with pytest.raises(ValueError, match="max_batch must be 1 or more, got 0"):
        Machine(max_batch=0)


def sharing(**options: int) -> Machine:
    return Machine(prefix_cache=True, **options)  # type: ignore[arg-type]


def test_a_chunk_that_was_made_before_is_shared_without_a_tick() -> None:
    machine = sharing()
    _, first = machine.add(machine.branch(start=2), 1, 2, 3)
    machine.run()
    other = machine.branch(start=2)
    held = machine.pool.held_count
    _, second = machine.add(other, 1, 2, 3)
    assert machine.run() == 0
    assert [chunk.frames for chunk in second.chunks] == [chunk.frames for chunk in first.chunks]
    assert [chunk.record for chunk in second.chunks] == [chunk.record for chunk in first.chunks]
    assert all(chunk.timing.tick_count == 0 for chunk in second.chunks)
    assert (second.closed, machine.pool.held_count) == (1, held)


def test_what_was_made_is_known_after_its_session_is_gone_until_its_block_is_needed() -> None:
    machine = sharing(block_count=8)
    branch = machine.started(chunks=3)
    newest = branch.key
    branch.close()
    assert (machine.pool.held_count, machine.pool.cached_count, machine.pool.free_count) == (0, 4, 8)
    again = machine.branch()
    _, box = machine.add(again, 0, 0, 0)
    assert machine.run() == 0
    assert len(box.chunks) == 4
    again.close()
    others = machine.branch(nfe=4)
    machine.add(others, 5, 6, 7, 8, 9)
    machine.run()
    assert machine.pool.find(newest) is None
    assert machine.pool.find(others.records[0].key) is not None


def test_runs_that_want_the_same_chunk_at_once_make_it_once() -> None:
    machine = sharing()
    boxes = [machine.add(machine.branch(), 1, 2)[1] for _ in range(3)]
    sizes = []
    while members := machine.tick():
        sizes.append(len(members))
    assert sizes == [1] * (1 + 2 + 2)
    assert all(len(box.chunks) == 3 and box.closed == 1 for box in boxes)
    assert machine.pool.held_count == 3


@pytest.mark.parametrize("how", ["cancelled", "cancelled inside a tick"])
def test_a_run_whose_chunk_was_being_made_by_another_makes_it_when_that_one_goes(how: str) -> None:
    machine = sharing()
    first, second = machine.started(nfe=3), machine.started(nfe=3)
    gone, _ = machine.add(first, 1)
    _, box = machine.add(second, 1)
    assert machine.tick() == [gone]
    if how == "cancelled":
        machine.scheduler.remove(gone)
    else:

        def cancel(batch: Batch) -> None:
            machine.during = lambda batch: None
            machine.scheduler.remove(gone)

        machine.during = cancel
        machine.tick()
    machine.run()
    assert [chunk.record.chunk_index for chunk in box.chunks] == [0]
    assert box.chunks[0].timing is not None
    assert machine.pool.in_flight_count == 0


def test_a_poisoned_chunk_is_known_to_nobody_and_each_that_wants_it_fails() -> None:
    machine = sharing()
    boxes = [machine.add(machine.started(), POISON.value)[1] for _ in range(2)]  # type: ignore[arg-type]
    machine.run()
    assert all(isinstance(box.error, NotFinite) for box in boxes)
    assert machine.pool.find(machine.started().next_record(POISON).key) is None


def test_a_play_that_waits_for_bulk_work_gives_it_its_own_place() -> None:
    machine = sharing(max_batch=1)
    bulk, play, *others = [machine.started(nfe=nfe) for nfe in (3, 3, 4, 4)]
    slow, _ = machine.add(bulk, 1, priority=Priority.BULK)
    machine.tick()
    first, second = [machine.add(branch, number)[0] for number, branch in enumerate(others, 2)]
    assert machine.tick() == [first]
    machine.play(play, 1, fps=10)
    assert [machine.tick() for _ in range(2)] == [[slow], [slow]]
    assert second.over is False


def test_a_long_known_clip_lets_others_have_their_ticks() -> None:
    machine = sharing(block_count=200)
    machine.started(chunks=100, nfe=1, policy=KvPolicy(PolicyKind.SLIDING, 120))
    other, _ = machine.add(machine.started(nfe=4, policy=KvPolicy(PolicyKind.SLIDING, 120)), 9)
    _, box = machine.add(machine.branch(nfe=1, policy=KvPolicy(PolicyKind.SLIDING, 120)), *[0] * 100)
    sizes = []
    while box.closed == 0:
        before = len(box.chunks)
        assert machine.tick() in ([other], [])
        sizes.append(len(box.chunks) - before)
    assert max(sizes) <= 32
    assert sum(sizes) == 101


def test_a_slow_reader_of_known_chunks_gets_no_more_than_it_takes() -> None:
    machine = sharing()
    machine.started(chunks=9)
    box = Box()
    planned = [Planned(Action(0)) for _ in range(9)]
    sequence = Sequence(machine.branch(), planned, priority=Priority.BULK, sink=box, ahead_chunks=2)
    machine.scheduler.add(sequence, machine.now)
    assert machine.run() == 0
    assert len(box.chunks) == 2
    sequence.taken()
    machine.scheduler.wake(sequence, machine.now)
    machine.run()
    assert len(box.chunks) == 3


def test_a_steered_run_takes_its_next_record_only_when_it_gets_a_place() -> None:
    machine = sharing(max_batch=1)
    busy, branch = machine.started(nfe=4), machine.started(nfe=1)
    machine.add(busy, 1)
    machine.tick()
    run = Clocked(branch, 0.0)
    run.priority = Priority.BULK
    machine.scheduler.add(run, machine.now)
    machine.tick()
    assert machine.scheduler._active[run].record is None
    machine.run()
    assert run.made == [0]


def test_a_steered_run_shares_what_is_known_too() -> None:
    machine = sharing()
    machine.add(machine.started(nfe=1), 1)
    machine.run()
    run = Clocked(machine.started(nfe=1), 0.0)
    machine.scheduler.add(run, machine.now)
    assert machine.tick() == []
    assert run.made == [0]


def test_what_grows_from_a_strangers_blocks_is_shared_with_nobody() -> None:
    machine = sharing()
    honest = machine.started(chunks=2)
    forged = Branch(honest.origin, honest.root, honest.seed, honest.nfe, BlockTable(machine.pool, honest.table.policy))
    forged.records.extend(honest.records)
    forged.table.stand_at(len(honest.records))
    forged.table.trusted = False
    assert forged.table.refill({position: bytes([position]) for position in forged.table.needed()}) is not None
    assert not forged.trusted
    for branch in (forged, forged.fork(), forged.blank()):
        assert not branch.trusted
    _, box = machine.add(forged.fork(), 3)
    machine.run()
    assert machine.pool.find(box.chunks[0].record.key) is None
    _, real = machine.add(honest.fork(), 3)
    assert machine.run() == 2
    assert machine.pool.find(real.chunks[0].record.key) is not None


def test_a_chunk_whose_frames_are_known_is_only_committed_and_keeps_its_record() -> None:
    machine = Machine()
    branch = machine.started()
    box = Box()
    expected = branch.next_record(Action(1), seed=9, nfe=4)
    planned = [Planned(Action(1), 9, 4, b"pixels"), Planned(Action(2))]
    machine.scheduler.add(Sequence(branch, planned, priority=Priority.STEP, sink=box), machine.now)
    assert machine.run() == 1 + 2
    assert (box.chunks[0].record, box.chunks[0].frames) == (expected, b"pixels")
    assert box.chunks[1].frames != b"pixels"


def test_each_format_has_its_own_blocks_and_its_own_known_chunks() -> None:
    machine = sharing()
    half = BlockPool(8, Storage.FP16)
    one = machine.started(chunks=1)
    other = Branch(one.origin, one.root, 7, 2, BlockTable(half, one.table.policy))
    _, box = machine.add(other, 0)
    assert machine.run() == 1 + 2
    assert len(box.chunks) == 2
    assert (half.held_count, half.check_integrity()) == (2, None)


# ---- who gives way


def test_one_that_goes_before_takes_the_last_blocks_from_the_newest_bulk_work() -> None:
    machine = Machine(block_count=13)
    session, older, newer = [machine.started(chunks=2) for _ in range(3)]
    _, oldest = machine.add(older, *[1] * 8, priority=Priority.BULK)
    _, newest = machine.add(newer, *[1] * 8, priority=Priority.BULK)
    while machine.pool.free_count:
        machine.tick()
    assert (oldest.error, newest.error) == (None, None)
    _, step = machine.add(session, 1)
    machine.run()
    assert (len(step.chunks), step.error) == (1, None)
    assert isinstance(newest.error, KvCacheFull)
    assert not newer.table.blocks
    assert (len(oldest.chunks), oldest.error) == (8, None)


def test_bulk_work_takes_no_blocks_from_other_bulk_work() -> None:
    machine = Machine(block_count=7)
    first, second = [machine.started(chunks=2) for _ in range(2)]
    _, one = machine.add(first, 1, priority=Priority.BULK)
    machine.tick()
    _, other = machine.add(second, 1, priority=Priority.BULK)
    machine.run()
    assert (len(one.chunks), one.error) == (1, None)
    assert isinstance(other.error, KvCacheFull)


def test_a_crowd_that_waits_for_one_chunk_is_gone_through_once_a_tick() -> None:
    machine = sharing(block_count=256)
    boxes = [machine.add(machine.started(nfe=4), 1)[1] for _ in range(100)]
    rounds = []
    choose = machine.scheduler.agenda.choose

    def counted(*arguments: Any) -> Any:
        rounds.append(machine.scheduler.tick)
        return choose(*arguments)

    machine.scheduler.agenda.choose = counted  # type: ignore[method-assign]
    ticks = machine.run()
    assert all(len(box.chunks) == 1 for box in boxes)
    assert len(rounds) <= 3 * (ticks + 1)


def test_a_play_lifts_the_maker_of_its_chunk_where_that_has_more_time_and_no_longer_than_it_waits() -> None:
    machine = sharing(member_s=0.01)
    idle, slow, quick = [machine.started(nfe=4) for _ in range(3)]
    maker, _ = machine.play(slow, 1, fps=1)
    machine.tick()
    waits, _ = machine.play(quick, 1, fps=13)  # it has no time for both
    machine.add(idle, 2)
    entry = machine.scheduler._active[maker]
    assert entry.begun
    machine.tick()
    assert entry.paced is waits
    machine.scheduler.remove(waits)
    assert entry.paced is maker
    machine.run_until(5.0)
