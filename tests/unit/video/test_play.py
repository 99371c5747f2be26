"""The clock of a play, told by a fake one."""

import pytest
from worldtree_video.branch import Branch
from worldtree_video.domain import Action, Chunk, KvPolicy, Origin, PolicyKind, Priority
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.play import Play, Played

PERIOD_S = 0.1


class Stage:
    """A play, its clock, and an engine that takes `making_s` for a chunk."""

    def __init__(
        self,
        *,
        lookahead_chunks: int = 1,
        repeat: bool = False,
        period_s: float = PERIOD_S,
        making_s: float = 0.0,
        nfe: int = 1,
        degrade_to: tuple[int, ...] = (),
    ) -> None:
        self.now = 100.0
        self.making_s = making_s
        self.played: list[Played] = []
        self.times: list[float] = []
        self.ends: list[Exception | None] = []
        pool = BlockPool(64)
        self.branch = Branch(
            Origin((b"start",), ()), b"root", 7, nfe, BlockTable(pool, KvPolicy(PolicyKind.SLIDING, 4))
        )
        self._grow(self.branch.given_record())
        self.play = Play(
            self.branch,
            period_s=period_s,
            lookahead_chunks=lookahead_chunks,
            repeat=repeat,
            sink=self,
            now=self.now,
            degrade_to=degrade_to,
        )

    def put(self, item: Played) -> None:
        self.played.append(item)
        self.times.append(round(self.now - 100.0, 6))

    def close(self, error: Exception | None = None) -> None:
        self.ends.append(error)

    def _grow(self, record: object) -> None:
        block = self.branch.table.pool.allocate()
        assert block is not None
        self.branch.append(record, block)  # type: ignore[arg-type]

    def act(self, *actions: int, replace: bool = False) -> None:
        self.play.act([Action(action) for action in actions], self.now, replace=replace)

    def make(self, *, taken: bool = True) -> None:
        """One chunk, begun now and there `making_s` later."""
        record = self.play.next_record()
        self.now += self.making_s
        self._grow(record)
        self.play.deliver(Chunk(record, b"frames"), self.now)
        if taken:
            self.play.taken()

    def run_until(self, end_s: float, *, taken: bool = True) -> None:
        """All chunks that fall due in the meantime."""
        while True:
            due = self.play.due(self.now)
            if due is None or max(due, self.now) > 100.0 + end_s:
                break
            self.now = max(self.now, due)
            self.make(taken=taken)
        self.now = max(self.now, 100.0 + end_s)

    @property
    def actions(self) -> list[int | tuple[float, ...]]:
        return [played.chunk.record.action.value for played in self.played if played.chunk.record.action]


def test_a_play_without_actions_waits() -> None:
    stage = Stage()
    assert stage.play.due(stage.now) is None
    assert Stage(repeat=True).play.due(stage.now) is None  # nothing to repeat yet


def test_chunks_come_one_a_period() -> None:
    stage = Stage()
    stage.act(*range(5))
    stage.run_until(1.0)
    assert stage.times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert all(played.late_s == 0 for played in stage.played)


def test_the_look_ahead_is_made_at_once_and_then_one_a_period() -> None:
    stage = Stage(lookahead_chunks=3)
    stage.act(*range(6))
    stage.run_until(1.0)
    assert stage.times == pytest.approx([0.0, 0.0, 0.0, 0.1, 0.2, 0.3])


def test_a_client_that_does_not_read_gets_no_more_than_the_look_ahead_made() -> None:
    stage = Stage(lookahead_chunks=3, repeat=True)
    stage.act(1)
    stage.run_until(50.0, taken=False)
    assert len(stage.played) == 3
    assert stage.play.due(stage.now) is None
    stage.play.taken()
    assert stage.play.due(stage.now) is not None


def test_without_fps_chunks_come_as_fast_as_they_are_taken() -> None:
    stage = Stage(period_s=0.0, making_s=0.01)
    stage.act(*range(5))
    stage.run_until(0.06)
    assert stage.times == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    assert all(played.late_s == 0 for played in stage.played)


def test_a_slow_model_is_late_by_what_it_took_too_long_and_never_catches_up_in_a_burst() -> None:
    stage = Stage(making_s=0.25, repeat=True)
    stage.act(1)
    stage.run_until(1.5)
    assert all(played.late_s == pytest.approx(0.15) for played in stage.played)
    stage.making_s = 0.0
    begun = stage.now
    count = len(stage.played)
    stage.run_until(begun - 100.0 + 0.55)
    assert len(stage.played) - count <= 7
    assert all(played.late_s == 0 for played in stage.played[count + 1 :])


def test_a_model_that_takes_most_of_a_period_keeps_the_pace() -> None:
    stage = Stage(making_s=0.09, repeat=True)
    stage.act(1)
    stage.run_until(1.0)
    assert len(stage.played) == pytest.approx(10, abs=1)
    assert all(played.late_s == 0 for played in stage.played)


def test_time_lost_to_a_person_is_not_made_up_for() -> None:
    stage = Stage()
    stage.act(1)
    stage.run_until(10.0)
    stage.act(2, 3, 4)
    stage.run_until(20.0)
    assert stage.times == pytest.approx([0.0, 10.0, 10.1, 10.2])
    assert all(played.late_s == 0 for played in stage.played)


def test_an_action_that_comes_in_time_does_not_move_the_clock() -> None:
    stage = Stage()
    stage.act(1)
    stage.run_until(0.05)
    stage.act(2)
    stage.run_until(1.0)
    assert stage.times == pytest.approx([0.0, 0.1])


def test_a_repeating_play_goes_on_with_its_last_action_and_says_that_no_control_made_it() -> None:
    stage = Stage(repeat=True)
    stage.act(1, 2)
    stage.run_until(0.35)
    assert stage.actions == [1, 2, 2, 2]
    assert [played.control_arrival_s for played in stage.played] == [100.0, 100.0, None, None]


def test_a_control_takes_effect_at_the_next_chunk_not_yet_started() -> None:
    stage = Stage(repeat=True)
    stage.act(1)
    stage.run_until(0.15)
    stage.act(3, replace=True)
    stage.run_until(0.25)
    assert stage.actions == [1, 1, 3]


def test_a_chunk_in_the_making_is_outdated_by_an_action_that_is_newer_than_what_it_uses() -> None:
    stage = Stage(repeat=True)
    stage.act(1)
    assert not stage.play.outdated(replace=True), "it was not begun"
    stage.play.next_record()
    stage.act(2)
    assert not stage.play.outdated(replace=False), "both are to be used, in their order"
    stage.act(3, replace=True)
    assert stage.play.outdated(replace=True)
    stage.play.remake()
    stage.make()
    assert (stage.actions, stage.played[-1].done_action_count) == ([3], 3)


def test_a_repetition_is_outdated_by_any_action_and_a_chunk_is_made_anew_only_once() -> None:
    stage = Stage(repeat=True)
    stage.act(1)
    stage.make()
    stage.play.next_record()
    assert not stage.play.outdated(replace=False)
    stage.act(2)
    assert stage.play.outdated(replace=False)
    stage.play.remake()
    record = stage.play.next_record()
    stage.act(3, replace=True)
    assert not stage.play.outdated(replace=True), "or a stream of actions would never get a chunk"
    stage._grow(record)
    stage.play.deliver(Chunk(record, b""), stage.now)
    stage.make()
    stage.play.next_record()
    stage.act(4)
    assert stage.play.outdated(replace=False)
    assert stage.actions == [1, 2, 3]


def test_the_chunk_in_flight_of_a_play_that_stops_is_not_outdated() -> None:
    for stop in (lambda play: play.pause(), lambda play: setattr(play, "held", True), lambda play: play.leave()):
        stage = Stage(repeat=True)
        stage.act(1)
        stage.make()
        stage.play.next_record()
        stop(stage.play)
        stage.act(2, replace=True)
        assert not stage.play.outdated(replace=True)


def test_replacing_forgets_only_what_has_not_been_started() -> None:
    stage = Stage()
    stage.act(1, 2, 2, 2)
    stage.run_until(0.05)
    stage.act(3, 4, replace=True)
    stage.run_until(1.0)
    assert stage.actions == [1, 3, 4]
    assert [played.queued_count for played in stage.played] == [3, 1, 0]


def test_a_pause_stops_the_clock_and_resume_goes_on_where_it_stopped() -> None:
    stage = Stage()
    stage.act(*range(6))
    stage.run_until(0.15)
    stage.play.pause()
    assert stage.play.due(stage.now) is None
    stage.now += 5
    stage.play.resume(stage.now)
    stage.run_until(10.0)
    assert stage.times == pytest.approx([0.0, 0.1, 5.15, 5.25, 5.35, 5.45])
    assert all(played.late_s == 0 for played in stage.played)


def test_resuming_what_is_not_paused_gives_no_head_start() -> None:
    stage = Stage(lookahead_chunks=2, repeat=True)
    stage.act(1)
    while stage.now < 101.0:
        stage.run_until(stage.now - 100.0 + 0.01)
        stage.play.resume(stage.now)
    assert len(stage.played) == pytest.approx(12, abs=1)


def test_a_held_play_makes_nothing_and_after_going_back_it_waits_for_a_new_action() -> None:
    stage = Stage(repeat=True)
    stage.act(1, 2, 3)
    stage.run_until(0.05)
    stage.play.held = True
    assert stage.play.due(stage.now) is None
    stage.now += 3
    stage.play.cleared()
    stage.play.held = False
    assert stage.play.due(stage.now) is None
    stage.act(9)
    stage.run_until(3.1)
    assert stage.actions == [1, 9]
    assert stage.played[-1].late_s == 0


def test_a_finished_play_ends_once_the_queue_is_empty_and_repeats_nothing() -> None:
    stage = Stage(repeat=True)
    stage.act(1, 2)
    stage.play.finish()
    assert stage.ends == []
    stage.run_until(5.0)
    assert stage.actions == [1, 2]
    assert stage.ends == [None]
    assert stage.play.over


def test_an_idle_play_that_is_finished_ends_at_once() -> None:
    stage = Stage(repeat=True)
    stage.play.finish()
    assert (stage.ends, stage.play.over) == ([None], True)


def test_a_paused_play_that_nobody_can_resume_ends() -> None:
    stage = Stage()
    stage.act(1, 2)
    stage.play.pause()
    stage.play.finish()
    assert (stage.ends, stage.play.over) == ([None], True)


def test_a_stop_ends_after_the_chunk_in_flight() -> None:
    stage = Stage()
    stage.act(1, 2, 3)
    record = stage.play.next_record()
    stage.play.stop()
    assert stage.ends == []
    stage._grow(record)
    stage.play.deliver(Chunk(record, b""), stage.now)
    assert stage.actions == [1]
    assert stage.ends == [None]
    assert stage.play.due(stage.now) is None


def test_what_is_queued_after_a_stop_is_not_played() -> None:
    stage = Stage()
    stage.act(1, 2)
    record = stage.play.next_record()
    stage.play.stop()
    stage.act(5, 6)
    stage._grow(record)
    stage.play.deliver(Chunk(record, b""), stage.now)
    assert stage.ends == [None]
    assert stage.play.due(stage.now) is None


def test_a_play_that_leaves_does_not_count_what_it_leaves_undone() -> None:
    stage = Stage()
    stage.act(1, 2, 3)
    record = stage.play.next_record()
    stage.play.leave()
    stage.act(4)
    assert stage.ends == []
    stage._grow(record)
    stage.play.deliver(Chunk(record, b""), stage.now)
    assert [played.done_action_count for played in stage.played] == [1], "else nobody would do the others"
    assert stage.ends == [None]
    assert stage.play.due(stage.now) is None
    idle = Stage()
    idle.act(1, 2)
    idle.play.leave()
    assert idle.ends == [None], "with no chunk in flight it leaves at once"


def test_a_failed_play_ends_once_with_its_error() -> None:
    stage = Stage()
    error = RuntimeError("broken")
    stage.play.fail(error)
    stage.play.fail(RuntimeError("again"))
    stage.play.finish()
    assert stage.ends == [error]
    assert stage.play.due(stage.now) is None


def test_actions_used_and_forgotten_are_done_with() -> None:
    stage = Stage(repeat=True)
    stage.act(1, 2, 3)
    stage.run_until(0.05)
    assert [played.done_action_count for played in stage.played] == [1]
    stage.act(4, 5, replace=True)  # 2 and 3 are forgotten
    stage.run_until(0.35)
    assert stage.actions == [1, 4, 5, 5]
    assert [played.done_action_count for played in stage.played] == [1, 4, 5, 5]
    stage.play.next_record()
    stage.act(6)
    stage.play.cleared()  # a rewind: what was in the making and what was queued
    stage.act(7)
    stage.run_until(0.75)
    assert (stage.actions[-1], stage.played[4].done_action_count) == (7, 7)


def test_a_play_with_a_clock_has_a_deadline_and_one_without_is_worked_off_like_a_step() -> None:
    stage = Stage(lookahead_chunks=2)
    stage.act(*range(5))
    assert stage.play.paced is stage.play
    assert (stage.play.priority, stage.play.fps) == (Priority.PLAY, pytest.approx(10.0))
    assert stage.play.deadline_s == pytest.approx(100.1)
    stage.make()
    assert stage.play.deadline_s == pytest.approx(100.2)
    free = Stage(period_s=0.0).play
    assert (free.paced, free.priority, free.fps) == (None, Priority.STEP, 0.0)


def test_a_chunk_without_time_is_made_with_fewer_evaluations_and_counted() -> None:
    stage = Stage(repeat=True, nfe=4, degrade_to=(1, 2, 4, 8))
    stage.act(1)

    def chunk_s(nfe: int) -> float:
        return 0.01 * nfe

    for left_s in (0.1, 0.03, 0.1, 0.1, 0.1, 0.1):
        stage.play.pace(left_s, chunk_s)
        stage.make()
    assert [played.chunk.record.nfe for played in stage.played] == [4, 2, 2, 2, 2, 4]
    assert [played.degraded for played in stage.played] == [False, True, True, True, True, False]
    record = stage.play.record(stage.now)
    assert (record.chunk_count, record.degraded_count, record.missed_count) == (6, 4, 0)


def test_the_record_of_a_play_tells_its_slack_and_what_it_missed() -> None:
    stage = Stage(making_s=0.15)
    assert stage.play.record(stage.now).slack_s == pytest.approx(PERIOD_S)  # its clock waits for an action
    stage.act(1, 2)
    stage.make()
    record = stage.play.record(stage.now + 0.03)
    assert (record.chunk_count, record.missed_count) == (1, 1)
    assert record.slack_s == pytest.approx(PERIOD_S - 0.03)
