"""FW-Merging: which corners it picks, and that it stays in the hull."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from worldtree_multitask.merging import Cancelled, Context, Merged, Step, method
from worldtree_multitask.merging.fw_merging import corner
from worldtree_multitask.merging.testing import TASKS, small_study


def _learn(context: Context, task_vectors: NDArray[np.float32] | None = None, **parameters: object) -> Merged:
    study, found = small_study(), method("fw_merging")
    assert found is not None
    vectors = study.task_vectors if task_vectors is None else task_vectors
    return found.merge(study.base, vectors, context, found.parameters(**parameters))


def test_a_corner_is_the_most_downhill_expert_of_each_row_or_the_base() -> None:
    gradient = np.array([[0.1, -2.0, -1.0], [0.3, 0.0, 0.2], [-0.5, 4.0, 1.0]])
    np.testing.assert_array_equal(
        corner(gradient.reshape(-1), 3, 1.5).reshape(3, 3), [[0, 1.5, 0], [0, 0, 0], [1.5, 0, 0]]
    )


@given(arrays(np.float64, (6,), elements=st.floats(-3, 3)), arrays(np.float64, (6,), elements=st.floats(0, 1)))
def test_no_point_of_the_hull_lies_lower_than_the_corner(
    gradient: NDArray[np.float64], point: NDArray[np.float64]
) -> None:
    rows = point.reshape(2, 3)
    rows = 2.0 * rows / np.maximum(rows.sum(axis=1, keepdims=True), 1.0)
    assert gradient @ corner(gradient, 3, 2.0) <= gradient @ rows.reshape(-1) + 1e-9


@pytest.mark.parametrize("step", ["classic", "line_search"])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_the_merge_beats_the_average_and_stays_in_the_hull(step: str, granularity: str) -> None:
    study = small_study()
    coefficients = _learn(study.context(), step=step, granularity=granularity).coefficients
    assert coefficients is not None
    assert (coefficients >= 0).all()
    assert (coefficients.sum(axis=1) <= 3.0 + 1e-5).all()
    layout = study.network.layout
    average = layout.combine(study.base, study.task_vectors, np.full((2, 3), 1 / 3, np.float32))
    mean = study.scores(layout.combine(study.base, study.task_vectors, coefficients)).mean()
    assert mean > study.scores(average).mean() + 0.005


def test_an_expert_of_something_else_is_hardly_ever_picked() -> None:
    study = small_study()
    context = replace(study.context(), experts=(*TASKS, "something_else"))
    parts = []
    for seed in range(4):
        other = study.task_vectors.std() * np.random.default_rng(seed).standard_normal(study.network.layout.size)
        vectors = np.concatenate([study.task_vectors, other[None].astype(np.float32)])
        coefficients = _learn(context, vectors).coefficients
        assert coefficients is not None
        assert coefficients[:, :3].min() > 0.3
        parts.append(coefficients[:, 3].max())
    # By chance a random vector of so small a network may lead a little downhill.
    assert np.median(parts) == 0
    assert max(parts) < 0.2


def test_the_line_search_never_goes_up() -> None:
    told: list[Step] = []
    _learn(replace(small_study().context(), tell=told.append), step="line_search")
    values = [step.objective for step in told if np.isfinite(step.objective)]
    assert values == sorted(values, reverse=True)


def test_entropy_that_ends_in_a_collapse_is_guarded() -> None:
    merged = _learn(small_study().context(), objective="entropy")
    assert merged.guarded
    assert "the guard stopped a collapse" in merged.notes[0]


def test_a_cancelled_merge_stops_within_one_pass() -> None:
    told: list[Step] = []

    def tell(step: Step) -> None:
        told.append(step)
        if step.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        _learn(replace(small_study().context(), tell=tell))
    assert [step.done for step in told].count(2) == 1


def test_a_radius_that_is_not_accepted_is_named() -> None:
    with pytest.raises(ValueError, match="radius"):
        _learn(small_study().context(), radius=0.0)
