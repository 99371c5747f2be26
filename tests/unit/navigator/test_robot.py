"""Where a robot's next chunk goes: bookkeeping of steps and of its clock."""

import pytest
from worldtree_navigator.errors import Refused
from worldtree_navigator.robot import Robot, Slot


def robot(rate_hz: float | None = 10.0, *, chunk_length: int = 4, horizon: int = 6) -> Robot:
    return Robot(chunk_length, horizon, rate_hz, began_s=100.0)


def test_one_that_waits_gets_a_chunk_that_begins_at_once() -> None:
    waiting = robot(None)
    waiting.observed(2.0, 0)
    assert waiting.slot(0.5) == Slot(0, (), 4, 2.0)
    waiting.planned(waiting.slot(0.5), [1, 2, 3, 4])
    waiting.observed(3.0, 2)
    assert waiting.slot(0.5) == Slot(2, (), 4, 3.0)
    assert waiting.time_left_s(1.0) is None


def test_one_that_does_not_wait_is_told_what_follows_from_what_it_will_have_done() -> None:
    moving = robot(10.0)
    moving.observed(0.0, 0)
    first = moving.slot(0.25)
    assert first == Slot(0, (), 4, 0.0)  # it has nothing to do yet
    moving.planned(first, [1, 2, 3, 4])
    moving.observed(0.1, 1)
    second = moving.slot(0.15)  # two actions pass
    assert second == Slot(3, (2, 3), 4, pytest.approx(0.3))
    moving.planned(second, [7, 8, 9, 10])
    assert moving.left_count == 6
    moving.observed(0.5, 3)
    assert moving.slot(0.05) == Slot(5, (8,), 4, pytest.approx(0.6))


def test_where_its_plan_ends_it_stops_and_waits() -> None:
    slow = robot(10.0)
    slow.observed(0.0, 0)
    slow.planned(slow.slot(0.0), [1, 2])
    slow.observed(0.1, 1)
    assert slow.slot(5.0) == Slot(2, (2,), 4, pytest.approx(0.2))
    slow.observed(1.0, 5)  # it did more than it was told
    assert slow.slot(5.0) == Slot(6, (), 4, 1.0)
    assert slow.time_left_s(0.0) == pytest.approx(0.1)


def test_a_chunk_fits_into_what_its_planner_looks_ahead() -> None:
    hurried = robot(100.0, chunk_length=4, horizon=6)
    hurried.observed(0.0, 0)
    hurried.planned(hurried.slot(0.0), list(range(20)))
    assert hurried.slot(0.04).count == 2
    assert hurried.slot(9.0) == Slot(5, (0, 1, 2, 3, 4), 1, pytest.approx(0.05))


def test_time_goes_forwards_and_is_not_ahead() -> None:
    told = robot()
    told.check_time(0.0, 100.0)
    told.observed(0.0, 0)
    with pytest.raises(Refused, match=r"after 0\.000 s") as late:
        told.check_time(0.0, 100.0)
    assert late.value.reason == "OUT_OF_ORDER"
    told.check_time(5.9, 105.0)
    with pytest.raises(Refused, match=r"got 6\.500 s") as early:
        told.check_time(6.5, 105.0)
    assert early.value.reason == "FROM_THE_FUTURE"
