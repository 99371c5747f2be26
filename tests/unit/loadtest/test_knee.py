"""The knee of a ramp."""

import pytest
from worldtree_loadtest.knee import Point, find_knee


def test_the_knee_is_the_highest_load_that_came_back_good() -> None:
    knee = find_knee([Point(10, 10), Point(20, 20), Point(30, 29), Point(40, 31), Point(50, 28)])
    assert knee is not None
    assert (knee.offered_per_s, knee.good_per_s) == (30, 31)
    assert knee.past_share == pytest.approx(28 / 31)


def test_a_slow_moment_within_the_ramp_is_not_the_knee() -> None:
    knee = find_knee([Point(10, 10), Point(20, 15), Point(30, 30), Point(40, 30)])
    assert knee is not None
    assert knee.offered_per_s == 30


def test_a_ramp_that_ends_before_its_knee_says_nothing_of_what_is_past_it() -> None:
    knee = find_knee([Point(10, 10), Point(20, 20)])
    assert knee is not None
    assert knee.past_share is None


def test_a_server_that_never_followed_has_no_knee() -> None:
    assert find_knee([Point(10, 2), Point(20, 2)]) is None
