"""Whose turn it is, goals as words, and what experts' answers come to."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_reward.domain import Question, Route
from worldtree_reward.errors import TooManyWaiting
from worldtree_reward.goal import read_goal
from worldtree_reward.judging import route_of, score_of, weighted
from worldtree_reward.scheduler import Scheduler, Waiting
from worldtree_runtime.opinion import Opinion, ranks
from worldtree_runtime.reward_package import ExpertCard, GoalSpec, RewardPackage
from worldtree_runtime.testing_judges import TinyJudge

PACKAGE = RewardPackage.model_validate(TinyJudge().manifest())


def run_to_end(scheduler: Scheduler) -> list[list[Waiting]]:
    runs = []
    while batch := scheduler.next_batch():
        runs.append(batch)
        scheduler.ran(batch)
        scheduler.check_integrity()
    return runs


def test_a_long_clip_keeps_no_short_one_waiting() -> None:
    scheduler = Scheduler(max_batch=2, max_waiting=1000)
    long, short = [Waiting(50), Waiting(50)], Waiting(2)
    scheduler.add([*long])
    scheduler.add([short])
    runs = run_to_end(scheduler)
    assert max(number for number, batch in enumerate(runs) if short in batch) <= 3
    assert sum(len(batch) for batch in runs) == 102


def test_a_run_that_failed_takes_its_members_along_and_no_other() -> None:
    scheduler = Scheduler(max_batch=2, max_waiting=1000)
    clips = [Waiting(5), Waiting(7), Waiting(3)]
    scheduler.add([*clips])
    batch = scheduler.next_batch()
    scheduler.drop(batch)
    scheduler.check_integrity()
    assert scheduler.waiting_frames == 3
    assert [each for batch in run_to_end(scheduler) for each in batch] == [clips[2]] * 3


def test_who_leaves_is_dropped_before_the_next_run() -> None:
    scheduler = Scheduler(max_batch=4, max_waiting=1000)
    gone, stays = Waiting(5), Waiting(2)
    scheduler.add([gone, stays])
    scheduler.ran(scheduler.next_batch())
    gone.cancelled = True
    assert run_to_end(scheduler) == [[stays]]
    assert scheduler.waiting_frames == 0


def test_only_so_many_frames_wait_and_all_of_a_request_or_none() -> None:
    scheduler = Scheduler(max_batch=4, max_waiting=10)
    scheduler.add([Waiting(12)])  # at rest, whatever its length
    with pytest.raises(TooManyWaiting, match="12 frames wait for their run, 10 at most may"):
        scheduler.add([Waiting(1), Waiting(1)])
    scheduler.check_integrity()
    assert scheduler.waiting_frames == 12


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 5))
def test_every_frame_is_run_once_and_in_its_order(counts: list[int], max_batch: int) -> None:
    scheduler = Scheduler(max_batch=max_batch, max_waiting=1000)
    clips = [Waiting(count) for count in counts]
    for clip in clips:
        scheduler.add([clip])
    runs = run_to_end(scheduler)
    assert all(len(set(map(id, batch))) == len(batch) <= max_batch for batch in runs)
    assert [clip.done_count for clip in clips] == counts


def test_a_goal_is_read_whatever_its_case_and_signs() -> None:
    spec = GoalSpec(words=("go", "red"), max_words=4)
    reading = read_goal("Go -- to the RED one, now!", spec)
    assert reading.words.tolist() == [2, 1, 1, 3]
    assert reading.notes == (
        "the judge does not know 4 of the goal's words: to, the, one, now",
        "the judge heeds the first 4 words of the goal, of 6",
    )
    assert read_goal("", spec).words.tolist() == [0, 0, 0, 0]


def test_the_router_decides_unless_the_question_does() -> None:
    question = Question("whatever")
    assert route_of((0.1, 0.6, 0.3), question, PACKAGE) == Route("motion", 0.6)
    assert route_of((0.3, 0.1, 0.6), question, PACKAGE) == Route("brightness", 0.3, unseen=True)
    assert route_of((0.3, 0.1, 0.6), Question("", "motion"), PACKAGE) == Route("motion", 1.0)


def test_a_score_is_read_off_its_knots_and_a_belief_never_becomes_certain() -> None:
    card = ExpertCard(description="", unit=0.5, knots=((0.0, 0.0), (2.0, 0.5), (4.0, 1.0)))
    middle = score_of(card, Opinion(1.0, 0.4))
    assert (middle.mean, middle.deviation) == (pytest.approx(0.25), pytest.approx(0.1))
    beyond = score_of(card, Opinion(9.0, 0.4))
    assert beyond.mean == 1.0
    assert beyond.deviation > 0


@pytest.mark.parametrize("knots", [((0.0, 0.0),), ((0.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (1.0, 0.0))])
def test_knots_that_do_not_rise_are_refused(knots: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="knots"):
        ExpertCard(description="", unit=1.0, knots=knots)


def test_weights_count_in_units_of_each_dimension_and_only_their_ratios_matter() -> None:
    cards = {
        "a": ExpertCard(description="", unit=0.5, knots=((0.0, 0.0), (1.0, 1.0))),
        "b": ExpertCard(description="", unit=0.25, knots=((0.0, 0.0), (1.0, 1.0))),
    }
    scores = {"a": Opinion(0.5, 0.05), "b": Opinion(0.5, 0.0)}
    found = weighted(scores, cards, {"a": 1.0, "b": -3.0})
    assert found.mean == pytest.approx(0.25 * 1.0 - 0.75 * 2.0)
    assert found.deviation == pytest.approx(0.25 * 0.1)
    twice = weighted(scores, cards, {"a": 2.0, "b": -6.0})
    assert twice == found


def test_chances_are_those_of_two_normal_draws() -> None:
    assert Opinion(1.0, 3.0).chance_over(Opinion(-4.0, 4.0)) == pytest.approx(0.8413, abs=1e-4)
    assert Opinion(5.0, math.inf).chance_over(Opinion(0.0, 1.0)) == 0.5
    for a, b in product((Opinion(0.2, 1.0), Opinion(0.4, 0.3), Opinion(-1.0, 2.0)), repeat=2):
        assert a.chance_over(b) + b.chance_over(a) == pytest.approx(1.0)


def test_ranks_are_shared_with_the_first_of_them_and_not_passed_on_from_one_to_the_next() -> None:
    rewards = [Opinion(value, 0.1) for value in (0.0, 0.014, 0.028, 1.0)]
    # The third could be taken for the second, and the second for the first of its rank; the third for that no more.
    assert ranks(rewards, 0.06) == [(3, 1), (2, 2), (1, 2), (0, 4)]
    assert ranks([], 0.05) == []
