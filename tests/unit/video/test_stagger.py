"""Where in the period a new play finds its place."""

import pytest
from worldtree_video.stagger import start_delay_s

PERIOD_S = 0.2


def opened(count: int, place_s: float, *, step_s: float) -> list[float]:
    """The places in the period of plays that come one after another."""
    starts: list[float] = []
    for index in range(count):
        now = index * step_s
        starts.append(now + start_delay_s(now, PERIOD_S, place_s, [(start, place_s) for start in starts]))
    return [start % PERIOD_S for start in starts]


def nearest_s(starts: list[float]) -> float:
    ordered = sorted(starts)
    return min((b - a) % PERIOD_S for a, b in zip(ordered, [*ordered[1:], ordered[0] + PERIOD_S], strict=True))


def test_the_first_play_and_one_that_meets_nobody_start_at_once() -> None:
    assert start_delay_s(7.0, PERIOD_S, 0.02, []) == 0.0
    assert start_delay_s(7.0, PERIOD_S, 0.02, [(7.1, 0.02)]) == 0.0


def test_one_that_would_meet_another_starts_when_that_ones_chunk_is_made() -> None:
    assert start_delay_s(7.0, PERIOD_S, 0.02, [(7.01, 0.02)]) == pytest.approx(0.03)
    assert start_delay_s(7.0, PERIOD_S, 0.02, [(7.19, 0.02)]) == pytest.approx(0.01)
    assert start_delay_s(7.0, PERIOD_S, 0.02, [(7.01, 0.02), (7.03, 0.03)]) == pytest.approx(0.06)


@pytest.mark.parametrize("step_s", [0.0, 0.013, 0.1, 0.4567])
def test_plays_that_fit_into_a_period_never_meet(step_s: float) -> None:
    assert nearest_s(opened(5, 0.02, step_s=step_s)) >= 0.02 - 1e-9


def test_one_for_whom_there_is_no_place_goes_into_the_widest_gap() -> None:
    others = [(start, 0.05) for start in (0.0, 0.05, 0.1)]
    assert start_delay_s(0.0, PERIOD_S, 0.06, others) == pytest.approx(0.145)


@pytest.mark.parametrize("count", range(1, 30))
def test_the_wait_is_always_less_than_a_period(count: int) -> None:
    others = [(0.037 * index, 0.02) for index in range(count)]
    assert 0.0 <= start_delay_s(1.234, PERIOD_S, 0.02, others) < PERIOD_S
