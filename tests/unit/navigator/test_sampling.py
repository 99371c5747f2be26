"""Sequences drawn at random."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from worldtree_navigator.sampling import sample


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**53 - 1), st.floats(0, 0.95))
def test_they_differ_and_are_of_the_seed_alone(
    actions: int, count: int, horizon: int, seed: int, repeat: float
) -> None:
    drawn = sample(range(actions), count, horizon, seed=seed, repeat=repeat)
    assert drawn == sample(range(actions), count, horizon, seed=seed, repeat=repeat)
    assert len(set(drawn)) == len(drawn) <= min(count, actions**horizon)
    assert all(len(each) == horizon and set(each) <= set(range(actions)) for each in drawn)


def test_where_there_are_few_all_are_found() -> None:
    assert len(sample([3, 5], 100, 3, seed=1)) == 8


def test_more_repeats_make_longer_runs() -> None:
    def repeats(repeat: float) -> int:
        drawn = sample(range(7), 200, 10, seed=5, repeat=repeat)
        return sum(before == after for each in drawn for before, after in pairwise(each))

    assert repeats(0.0) < repeats(0.4) < repeats(0.8)
