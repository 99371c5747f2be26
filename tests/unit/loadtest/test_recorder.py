"""What is counted and timed: from the intended start, with what a closed loop leaves out."""

import pytest
from worldtree_loadtest.recorder import TIMED_OUT, Outcome, Recorder, Tally


def test_percentiles_are_those_of_the_intended_starts() -> None:
    tally = Tally()
    for milliseconds in range(1, 101):
        tally.add(Outcome("ok", milliseconds / 1000, good=True))
    assert tally.seconds_at(50) == pytest.approx(0.050, rel=0.01)
    assert tally.seconds_at(99) == pytest.approx(0.099, rel=0.01)
    assert tally.seconds_at(100) == pytest.approx(0.100, rel=0.01)


def test_one_that_was_given_up_counts_as_long_as_it_waited_and_a_refusal_does_not() -> None:
    tally = Tally()
    tally.add(Outcome("failed", 2.0, reason=TIMED_OUT))
    tally.add(Outcome("refused", 0.001, reason="QUEUE_FULL", retry_info=True))
    assert tally.latency.get_total_count() == 1
    assert tally.seconds_at(50) == pytest.approx(2.0, rel=0.01)


def test_a_stall_in_a_closed_loop_is_charged_for_the_decisions_that_it_kept_from_being_made() -> None:
    tally = Tally()
    tally.add(Outcome("ok", 0.0, decisions_s=(0.1,) * 9 + (2.0,), period_s=0.5))
    # 2.0 s stands for those that would have begun 0.5, 1.0 and 1.5 s into it, and waited 1.5, 1.0 and 0.5 s.
    assert tally.latency.get_total_count() == 13
    assert tally.seconds_at(85) == pytest.approx(1.0, rel=0.01)


def test_what_an_interrupt_left_open_is_no_failure() -> None:
    tally = Tally()
    tally.add(Outcome("ok", 0.1, good=True))
    tally.add(Outcome("interrupted", 0.0))
    assert (tally.total, tally.share("failed")) == (1, 0.0)


def test_refusals_that_do_not_say_when_to_come_again_are_counted() -> None:
    tally = Tally()
    tally.add(Outcome("refused", 0.1, reason="QUEUE_FULL", retry_info=True))
    tally.add(Outcome("refused", 0.1, reason="QUOTA"))
    assert tally.silent_refusals == 1


def test_plateaus_and_kinds_add_up() -> None:
    recorder = Recorder(10)
    recorder.add(0, "step", 0.1, Outcome("ok", 0.1, good=True, work=1))
    recorder.add(1, "step", 5.0, Outcome("ok", 0.2, good=False, work=2))
    recorder.add(1, "play", 5.5, Outcome("failed", 0.2, reason="BUG"))
    whole = recorder.of(plateaus=[0, 1], kinds=["step", "play"])
    assert (whole.total, whole.good_count, whole.work, whole.good_work) == (3, 1, 3, 1)
    assert recorder.of(plateaus=[1], kinds=["step"]).total == 1
    assert sorted(recorder.slices) == [0, 5]
