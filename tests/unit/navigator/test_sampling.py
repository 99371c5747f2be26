"""Sequences drawn at random."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from worldtree_navigator.sampling import Proposal, sample


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


def test_where_there_is_room_all_that_go_on_are_drawn() -> None:
    proposal = Proposal([2, 5], 4, seed=1)
    assert proposal.extend([()], 8) == [(2,), (5,)]
    assert proposal.extend([(2,), (5,)], 4) == [(2, 2), (2, 5), (5, 2), (5, 5)]


@given(st.integers(1, 12), st.integers(0, 2**53 - 1))
def test_no_more_go_on_than_there_is_room_for_and_no_two_alike(count: int, seed: int) -> None:
    begun = [(first, second) for first in range(3) for second in range(3)]
    drawn = Proposal(range(3), 4, seed=seed).extend(begun, count)
    assert len(drawn) == len(set(drawn)) == count
    assert {each[:2] for each in drawn} <= set(begun)
    assert drawn == Proposal(range(3), 4, seed=seed).extend(begun, count)


def test_what_was_learnt_is_drawn_more_and_nothing_becomes_impossible() -> None:
    def count_of_last(action: int, elites: list[list[int]]) -> int:
        drawn: list[tuple[int, ...]] = []
        for seed in range(200):
            proposal = Proposal(range(4), 3, seed=seed)
            if elites:
                proposal.learn(elites)
            drawn += proposal.extend([(0, 1)], 1)
        return sum(each[-1] == action for each in drawn)

    before, after = count_of_last(3, []), count_of_last(3, [[0, 1, 3], [2, 2, 3]])
    assert before < 100 < after < 200
    # An elite that ended before says nothing of what comes after it.
    assert abs(count_of_last(3, [[3, 3]]) - before) < 40
