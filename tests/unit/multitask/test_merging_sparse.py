"""TIES and DARE against cases worked out by hand, and the laws that they keep."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from worldtree_multitask.merging import Context, Layout, Merged, method

_LAYOUT = Layout({"a": ["w"], "b": ["v"]}, {"w": (2, 2), "v": (2,)})
_VECTORS = arrays(np.float32, (3, 6), elements=st.floats(-4, 4, width=16))


class _NoNetwork:
    evaluation_count = 0

    def logits(self, weights: object, images: object, task: str) -> Any:
        raise AssertionError("a method that needs nothing asked for logits")


def _merge(name: str, vectors: NDArray[np.float32], *, base: float = 0.0, **parameters: object) -> Merged:
    found = method(name)
    assert found is not None
    experts = tuple("xyz"[: len(vectors)])
    context = Context(layout=_LAYOUT, experts=experts, network=_NoNetwork())
    return found.merge(np.full(6, base, np.float32), vectors, context, found.parameters(**parameters))


def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    vectors = np.array([[4, -3, 0.1, 2, 0, 1], [2, 5, 0.2, -3, 0, 0.1], [0.1, 0.2, 6, -1, 0, 5]], np.float32)
    # Half of six entries are kept: 4 -3 2 | 2 5 -3 | 6 5 -1. Signs of the sums: + + + - 0 +.
    merged = _merge("ties", vectors, base=1.0, density=0.5, scale=2.0)
    np.testing.assert_allclose(merged.weights, 1 + 2 * np.array([3, 5, 6, -2, 0, 5]))


def test_ties_of_one_whole_expert_is_that_expert() -> None:
    vectors = np.array([[4, -3, 0.1, 2, 0, 1]], np.float32)
    np.testing.assert_array_equal(_merge("ties", vectors, density=1.0, scale=1.0).weights, vectors[0])


@given(_VECTORS, st.permutations(range(3)))
def test_ties_does_not_see_the_order_of_experts(vectors: NDArray[np.float32], order: list[int]) -> None:
    np.testing.assert_allclose(
        _merge("ties", vectors, density=0.5).weights, _merge("ties", vectors[order], density=0.5).weights, atol=1e-5
    )


def test_dare_without_drop_is_task_arithmetic() -> None:
    vectors = np.arange(18, dtype=np.float32).reshape(3, 6)
    merged = _merge("dare", vectors, base=1.0, drop=0.0, scale=0.5)
    np.testing.assert_allclose(merged.weights, 1 + 0.5 * vectors.sum(axis=0))


def test_dare_drops_entries_and_rescales_the_rest() -> None:
    merged = _merge("dare", np.ones((1, 6), np.float32), drop=0.75, scale=1.0, seed=3)
    assert merged.weights is not None
    assert set(merged.weights.tolist()) <= {0.0, 4.0}


def test_dare_keeps_the_expectation() -> None:
    seen = [_merge("dare", np.ones((1, 6), np.float32), drop=0.5, scale=1.0, seed=seed).weights for seed in range(400)]
    np.testing.assert_allclose(np.mean(seen), 1.0, atol=0.1)


def test_what_dare_drops_of_an_expert_does_not_depend_on_the_others() -> None:
    vectors = np.arange(1, 19, dtype=np.float32).reshape(3, 6)
    alone = [_merge("dare", vectors, scale=1.0, seed=5, experts=(name,)).weights for name in "xyz"]
    together = _merge("dare", vectors, scale=1.0, seed=5).weights
    np.testing.assert_allclose(together, np.sum(alone, axis=0))
    np.testing.assert_array_equal(together, _merge("dare", vectors, scale=1.0, seed=5, experts=("z", "x", "y")).weights)


def test_dare_then_ties_of_one_whole_expert_is_that_expert() -> None:
    vectors = np.array([[4, -3, 0.1, 2, 0, 1]], np.float32)
    merged = _merge("dare", vectors, drop=0.0, then="ties", scale=1.0)
    np.testing.assert_array_equal(merged.weights, vectors[0])


def test_base_and_expert_are_taken_as_they_are() -> None:
    vectors = np.arange(18, dtype=np.float32).reshape(3, 6)
    np.testing.assert_array_equal(_merge("base", vectors).coefficients, np.zeros((2, 3)))
    np.testing.assert_array_equal(_merge("expert", vectors, expert="y").coefficients, [[0, 1, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("expert", {"expert": "q"}, r"expert must be one of \['x', 'y', 'z'\], got 'q'"),
        ("ties", {"experts": ("q",)}, "experts must be some of"),
        ("dare", {"experts": ("x", "x")}, "experts must be distinct"),
        ("ties", {"density": 0.0}, "density"),
        ("dare", {"drop": 1.0}, "drop"),
    ],
)
def test_what_is_not_accepted_is_named(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _merge(name, np.ones((3, 6), np.float32), **parameters)
