"""Who goes on, who falls behind, and what it costs."""

import math

from hypothesis import given
from hypothesis import strategies as st
from worldtree_navigator.contest import Contest, node_count
from worldtree_navigator.domain import Edge, Edges
from worldtree_runtime.opinion import Opinion

UNLIMITED = 10**9


def edges(*actions: int) -> Edges:
    return tuple(Edge(action) for action in actions)


SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(lambda each: edges(*each)), min_size=1)


def told(contest: Contest) -> dict[int, tuple[int, Opinion]]:
    """Each future is worth its first action, then its index; all come as far as the round goes."""
    return {
        each.index: (
            min(contest.depth, len(each.actions)),
            Opinion(each.actions[0].action - each.index / 1000, 0.1),
        )
        for each in contest.alive
    }


def run(contest: Contest) -> list[int]:
    """To its end; how many there were in each round."""
    counts = []
    while runners := contest.next_round():
        counts.append(len(runners))
        contest.judged(told(contest))
    return counts


def test_after_each_round_there_are_half_as_many_and_the_best_stay() -> None:
    contest = Contest(
        [edges(index % 3, *[0] * 7) for index in range(16)], rounds=4, halving=2.0, keep=1, chunk_limit=UNLIMITED
    )
    depths = []
    counts = []
    while runners := contest.next_round():
        depths.append(contest.depth)
        counts.append(len(runners))
        contest.judged(told(contest))
    assert (counts, depths) == ([16, 8, 4, 2], [2, 4, 6, 8])
    best = contest.ranking(0.05)[0]
    assert (best[0].index, best[1], best[0].depth) == (2, 1, 8)


@given(SEQUENCES, st.integers(1, 6), st.floats(1.0, 5.0), st.integers(1, 8))
def test_so_many_as_are_kept_come_to_their_ends(sequences: list[Edges], rounds: int, halving: float, keep: int) -> None:
    contest = Contest(sequences, rounds=rounds, halving=halving, keep=keep, chunk_limit=UNLIMITED)
    counts = run(contest)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= min(keep, len(sequences))
    finished = [each for each in contest.candidates if each.depth == len(each.actions)]
    assert len(finished) >= min(keep, len(sequences))
    assert not contest.cut_short


@given(SEQUENCES, st.integers(1, 6), st.floats(1.0, 5.0), st.integers(0, 30))
def test_no_more_chunks_are_asked_for_than_may_be(
    sequences: list[Edges], rounds: int, halving: float, limit: int
) -> None:
    contest = Contest(sequences, rounds=rounds, halving=halving, keep=1, chunk_limit=limit)
    run(contest)
    reached = [each.prefix(each.depth) for each in contest.candidates]
    assert node_count(reached) <= limit
    assert contest.cut_short or all(each.depth for each in contest.candidates)


@given(SEQUENCES, st.integers(1, 6), st.floats(1.0, 5.0))
def test_everybody_is_ranked_once_whoever_came_further_first(
    sequences: list[Edges], rounds: int, halving: float
) -> None:
    contest = Contest(sequences, rounds=rounds, halving=halving, keep=1, chunk_limit=UNLIMITED)
    run(contest)
    ranking = contest.ranking(0.05)
    assert sorted(each.index for each, _ in ranking) == list(range(len(sequences)))
    assert [rank for _, rank in ranking] == sorted(rank for _, rank in ranking)
    assert [each.round for each, _ in ranking] == sorted((each.round for each, _ in ranking), reverse=True)
    assert all(rank <= place for place, (_, rank) in enumerate(ranking, start=1))


def test_who_was_not_reached_in_time_is_out_and_keeps_what_was_said_before() -> None:
    contest = Contest([edges(0, 0), edges(1, 1)], rounds=2, halving=1.0, keep=1, chunk_limit=UNLIMITED)
    contest.next_round()
    contest.judged(told(contest))
    contest.next_round()
    contest.judged({0: (2, Opinion(5.0, 0.1))})
    (first, rank), (second, other) = contest.ranking(0.05)
    assert (first.index, rank, first.depth) == (0, 1, 2)
    assert (second.index, other, second.depth) == (1, 2, 1)
    assert [each.index for each in contest.alive] == [0]
    assert contest.rounds_done == 2


def test_who_came_a_part_of_the_way_is_ranked_behind_those_who_came_to_the_end_of_the_round() -> None:
    contest = Contest([edges(0, 0), edges(1, 1), edges(2, 2)], rounds=1, halving=1.0, keep=3, chunk_limit=UNLIMITED)
    contest.next_round()
    contest.judged({0: (2, Opinion(0.0, 0.1)), 1: (1, Opinion(9.0, 0.1))})
    assert [(each.index, rank, each.depth) for each, rank in contest.ranking(0.05)] == [(0, 1, 2), (1, 2, 1), (2, 3, 0)]
    nobody = Contest([edges(0, 0)], rounds=1, halving=1.0, keep=1, chunk_limit=UNLIMITED)
    nobody.next_round()
    nobody.judged({0: (1, Opinion(1.0, 0.1))})
    assert (nobody.rounds_done, nobody.ranking(0.05)[0][0].opinion) == (0, Opinion(1.0, 0.1))


def test_where_nothing_can_be_paid_all_stand_as_they_stood() -> None:
    contest = Contest([edges(0, 0), edges(1, 1)], rounds=2, halving=1.0, keep=2, chunk_limit=2)
    contest.next_round()
    contest.judged(told(contest))
    assert contest.next_round() == []
    assert (contest.rounds_done, len(contest.alive), contest.cut_short) == (1, 2, True)


def test_the_lead_is_the_least_chance_over_any_other() -> None:
    contest = Contest([edges(0), edges(1), edges(2)], rounds=1, halving=1.0, keep=3, chunk_limit=UNLIMITED)
    contest.next_round()
    contest.judged({0: (1, Opinion(0.0, 1.0)), 1: (1, Opinion(1.0, 1.0)), 2: (1, Opinion(-9.0, 1.0))})
    assert math.isclose(contest.lead(), Opinion(1.0, 1.0).chance_over(Opinion(0.0, 1.0)))
    alone = Contest([edges(0)], rounds=1, halving=2.0, keep=1, chunk_limit=UNLIMITED)
    alone.next_round()
    alone.judged(told(alone))
    assert alone.lead() == 1.0


def test_who_was_dropped_may_still_have_been_better() -> None:
    contest = Contest([edges(0, 0), edges(1, 1)], rounds=2, halving=2.0, keep=1, chunk_limit=UNLIMITED)
    contest.next_round()
    contest.judged({0: (1, Opinion(0.0, 1.0)), 1: (1, Opinion(0.1, 1.0))})
    assert [each.index for each in contest.next_round()] == [1]
    contest.judged({1: (2, Opinion(0.1, 1.0))})
    assert contest.lead() < 0.6


def test_shared_beginnings_count_once() -> None:
    assert node_count([edges(0, 1), edges(0, 2), edges(0)]) == 3
    under_another_seed = (Edge(0, seed=1), Edge(1, seed=1))
    assert node_count([edges(0, 1), under_another_seed]) == 4
