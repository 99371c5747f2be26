"""A preference: what is accepted, and the merge that answers it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from worldtree_multitask.merging import Context, Layout, method
from worldtree_multitask.merging.preference import blend_corners, preference_shares, scaled_corners

_LAYOUT = Layout({"a": ["w"], "b": ["v"]}, {"w": (2, 2), "v": (2,)})
_TASKS = ("x", "y", "z")


class _NoNetwork:
    evaluation_count = 0

    def logits(self, weights: object, images: object, task: str) -> Any:
        raise AssertionError("a method that needs nothing asked for logits")


def _coefficients(
    experts: tuple[str, ...] = _TASKS, corners: NDArray[np.float32] | None = None, **parameters: object
) -> NDArray[np.float32]:
    found = method("preference")
    assert found is not None
    context = Context(layout=_LAYOUT, experts=experts, network=_NoNetwork(), corners=corners, tasks=_TASKS)
    vectors = np.ones((len(experts), 6), np.float32)
    merged = found.merge(np.zeros(6, np.float32), vectors, context, found.parameters(**parameters))
    assert merged.coefficients is not None
    return merged.coefficients


def test_equal_preference_is_task_arithmetic() -> None:
    np.testing.assert_allclose(_coefficients(), 0.3, rtol=1e-6)
    np.testing.assert_allclose(_coefficients(weights=(2, 2, 2), scale=0.5), 0.5, rtol=1e-6)


def test_a_task_that_alone_matters_has_its_whole_expert() -> None:
    np.testing.assert_allclose(_coefficients(weights=(0, 4, 0), scale=0.5), [[0.25, 1, 0.25]] * 2, rtol=1e-6)


def test_weights_by_name_leave_the_other_tasks_at_zero() -> None:
    np.testing.assert_allclose(_coefficients(weights={"z": 3, "x": 1}, scale=1 / 3), [[0.25, 0, 0.75]] * 2, atol=1e-6)


def test_an_expert_that_belongs_to_no_task_has_no_part() -> None:
    np.testing.assert_allclose(_coefficients(experts=("y", "q", "x", "z"))[:, 1], 0)


def test_the_learned_map_answers_where_the_model_has_one() -> None:
    corners = np.random.default_rng(0).normal(size=(3, 2, 3)).astype(np.float32)
    got = _coefficients(corners=corners, weights=(1, 1, 2))
    np.testing.assert_allclose(got, 0.25 * corners[0] + 0.25 * corners[1] + 0.5 * corners[2], rtol=1e-5)
    np.testing.assert_allclose(_coefficients(corners=corners, scale=0.4), 0.4, rtol=1e-6)


@given(st.lists(st.floats(0, 1e300), min_size=3, max_size=3).filter(any), st.permutations(range(3)))
def test_shares_sum_to_one_and_follow_their_tasks(weights: list[float], order: list[int]) -> None:
    shares = preference_shares(weights, [], _TASKS)
    assert shares.sum() == pytest.approx(1.0)
    named = preference_shares([weights[i] for i in order], [_TASKS[i] for i in order], _TASKS)
    np.testing.assert_allclose(named, shares, rtol=1e-5)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_merge_moves_linearly_between_two_preferences(scale: float, along: float) -> None:
    corners = scaled_corners(scale, _TASKS, _TASKS, 2)
    ends = np.eye(3, dtype=np.float32)[:2]
    between = blend_corners((1 - along) * ends[0] + along * ends[1], corners)
    expected = (1 - along) * blend_corners(ends[0], corners) + along * blend_corners(ends[1], corners)
    np.testing.assert_allclose(between, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 1), r"weights must be 3, one a task \['x', 'y', 'z'\], got 2"),
        ((1, -0.5, 1), r"weights\[1\] must be finite and 0 or more, got -0.5"),
        ((0, 0, 0), "weights must not all be 0"),
        ({}, "weights must be 3"),
        ({"q": 1.0}, "weights must be of tasks among .*, got 'q'"),
    ],
)
def test_a_preference_that_is_not_accepted_is_named(weights: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _coefficients(weights=weights)


def test_what_only_the_wire_can_carry_is_refused_too() -> None:
    with pytest.raises(ValueError, match=r"preference.weights\[0\] must be finite and 0 or more, got nan"):
        preference_shares([float("nan"), 1, 1], [], _TASKS, field="preference.weights")
    with pytest.raises(ValueError, match=r"weights\[2\] must be finite and 0 or more, got inf"):
        preference_shares([0, 1, float("inf")], [], _TASKS)
    with pytest.raises(ValueError, match="weights must name each task once, got 'x' twice"):
        preference_shares([1, 1], ["x", "x"], _TASKS)
    with pytest.raises(ValueError, match="weights must be one a named task, 2, got 1"):
        preference_shares([1], ["x", "y"], _TASKS)


def test_a_map_of_another_number_of_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="must have 3 corners, one a task, got 2"):
        _coefficients(corners=np.zeros((2, 2, 3), np.float32))
