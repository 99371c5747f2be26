"""MM-MO: its front, its surrogate, and that searching so beats chance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from worldtree_multitask.merging import Cancelled, Context, Merged, Step, method
from worldtree_multitask.merging.front import best_rows, hypervolume, suited_preferences, thinned
from worldtree_multitask.merging.mm_mo_batch import most_covering, screened, weak_to_strong
from worldtree_multitask.merging.surrogate import Surrogate
from worldtree_multitask.merging.testing import small_study

_OBJECTIVES = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=st.sampled_from([0, 0.25, 0.5, 1]))


def _search(context: Context, **parameters: object) -> Merged:
    study, found = small_study(), method("mm_mo")
    assert found is not None
    return found.merge(study.base, study.task_vectors, context, found.parameters(**parameters))


@given(_OBJECTIVES)
def test_the_front_is_what_no_other_point_beats(objectives: NDArray[np.float64]) -> None:
    kept = best_rows(objectives)
    beats = [(objectives >= row).all(axis=1) & (objectives > row).any(axis=1) for row in objectives]
    assert not any(beats[row].any() for row in kept)
    for row in range(len(objectives)):
        assert beats[row].any() or any((objectives[row] == objectives[other]).all() for other in kept)
    means = objectives[kept].mean(axis=1)
    assert (np.diff(means) <= 1e-12).all()


def test_the_hypervolume_is_the_covered_volume() -> None:
    assert hypervolume(np.array([[0.5, 1.0], [1.0, 0.25]])) == pytest.approx(0.5 + 0.125)


def test_a_thinned_front_keeps_the_best_mean_and_the_best_of_each() -> None:
    objectives = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    kept = thinned(objectives, 6)
    assert len(set(kept)) == 6
    assert {0, *objectives.argmax(axis=0)} <= set(kept.tolist())
    np.testing.assert_array_equal(thinned(objectives, 40), np.arange(40))


def test_a_point_suits_the_tasks_that_it_is_best_at() -> None:
    preferences = suited_preferences(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    np.testing.assert_allclose(preferences, [[1, 0], [0.5, 0.5], [0, 1]])
    np.testing.assert_allclose(suited_preferences(np.array([[0.3, 0.7]])), [[0.5, 0.5]])


def test_the_surrogate_knows_what_it_was_shown_and_hopes_where_it_knows_nothing() -> None:
    points = np.random.default_rng(0).uniform(size=(30, 2))
    values = np.column_stack([np.sin(3 * points[:, 0]), points[:, 1] ** 2])
    surrogate = Surrogate(points, values, np.eye(2))
    np.testing.assert_allclose(surrogate.hopes(points, 0.0), values, atol=0.05)
    far = np.array([[40.0, 40.0]])
    assert (surrogate.hopes(far, 1.0) > surrogate.hopes(far, 0.0) + 0.1).all()


def test_steps_go_from_beaten_points_through_the_front() -> None:
    points, objectives = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.1, 0.1], [0.9, 0.9]])
    steps = weak_to_strong(points, objectives, 200, np.random.default_rng(0))
    assert 1.1 < steps.mean() < 1.4  # from 1 to 1.5 along the line


def test_what_would_answer_alike_is_screened_out() -> None:
    metric = np.diag([1.0, 0.0])  # the second coefficient changes no answer
    points = np.array([[0.0, 0.0], [1.0, 0.0]])
    pool = np.array([[1.0, 5.0], [0.5, 0.0], [0.5, 3.0], [2.0, 0.0]])
    np.testing.assert_array_equal(screened(pool, points, metric, 2), [[0.5, 0.0], [2.0, 0.0]])
    assert len(screened(pool, points, metric, 3)) == 3
    assert len(screened(pool, points, metric, 9)) == 4


@given(arrays(np.float64, (6, 3), elements=st.floats(0, 1)))
def test_the_first_of_the_most_covering_adds_most(hopes: NDArray[np.float64]) -> None:
    front = np.array([[0.5, 0.5, 0.5]])
    order = most_covering(hopes, front)
    assert sorted(order.tolist()) == list(range(6))
    volumes = [hypervolume(np.vstack([front, row])) for row in hopes]
    assert volumes[order[0]] == pytest.approx(max(volumes))
    pairs = [hypervolume(np.vstack([front, hopes[order[0]], row])) for row in hopes]
    assert pairs[order[1]] == pytest.approx(max(pairs))


def test_the_search_covers_more_than_as_many_points_by_chance() -> None:
    count = 200

    def covered(population: int) -> float:
        # Both begin by chance and try as many; with a population of all of them, nothing else is done.
        found = [
            _search(small_study().context(seed=seed), seed_from=("chance",), evaluations=count, population=population)
            for seed in range(4)
        ]
        return float(np.mean([merged.hypervolume for merged in found]))

    assert covered(16) > covered(count)


def test_the_front_spans_from_each_expert_to_the_best_mean() -> None:
    merged = _search(small_study().context(), evaluations=40, front_size=8)
    objectives = np.array([point.objectives for point in merged.front])
    assert 3 <= len(objectives) <= 8
    np.testing.assert_array_equal(objectives.max(axis=0), 1.0)  # each expert agrees with itself
    assert objectives[0].mean() == objectives.mean(axis=1).max()
    np.testing.assert_array_equal(merged.coefficients, merged.front[0].coefficients)
    for point in merged.front:
        assert sum(point.preference) == pytest.approx(1.0)
    assert merged.hypervolume >= objectives.prod(axis=1).max()


def test_labels_are_what_counts_as_right_where_they_are_known() -> None:
    study = small_study()
    merged = _search(study.context(labelled=True), evaluations=20)
    assert merged.coefficients is not None
    weights = study.network.layout.combine(study.base, study.task_vectors, merged.coefficients)
    right = [
        np.mean(study.network.logits(weights, study.calibration[task], task).argmax(1) == labels)
        for task, labels in study.calibration_labels.items()
    ]
    np.testing.assert_allclose(merged.front[0].objectives, right, atol=0.03)
    with pytest.raises(ValueError, match="labels of spots must be 48, one an image, got 2"):
        _search(replace(study.context(), labels={"spots": np.zeros(2, np.int64)}))


def test_the_same_seed_gives_the_same_front() -> None:
    first, again = (_search(small_study().context(seed=3), evaluations=40) for _ in range(2))
    assert [point.objectives for point in first.front] == [point.objectives for point in again.front]
    np.testing.assert_array_equal(first.coefficients, again.coefficients)


def test_no_more_merges_are_tried_than_allowed_and_each_is_told() -> None:
    told: list[Step] = []
    _search(replace(small_study().context(), tell=told.append), evaluations=30)
    assert max(step.done for step in told) == 30
    assert {step.done for step in told if step.done} == set(range(1, 31))


def test_a_cancelled_search_stops_at_once() -> None:
    told: list[Step] = []

    def tell(step: Step) -> None:
        told.append(step)
        if step.done == 25:
            raise Cancelled

    with pytest.raises(Cancelled):
        _search(replace(small_study().context(), tell=tell), evaluations=60)
    assert [step.done for step in told].count(25) == 1
