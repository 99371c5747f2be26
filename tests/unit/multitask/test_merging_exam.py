"""The parts under methods that learn: losses, directions, the measured Jacobian, and the guard."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from worldtree_multitask.merging.directions import Directions, Granularity, Mixer
from worldtree_multitask.merging.exam import Exam
from worldtree_multitask.merging.guard import Guard
from worldtree_multitask.merging.losses import Divergence, Entropy, Loss, fisher_product, softmax
from worldtree_multitask.merging.progress import Progress
from worldtree_multitask.merging.testing import TASKS, small_study

_LOGITS = arrays(np.float64, (5, 3), elements=st.floats(-6, 6))
_TARGETS = softmax(np.random.default_rng(1).normal(size=(5, 3)))
_SEE_NOTHING = Progress(lambda _: None, "test", 0)


@pytest.mark.parametrize(
    "loss", [Entropy(), Entropy(balance=1.0), Divergence(_TARGETS), Divergence(np.eye(3)[[0] * 5])]
)
@given(logits=_LOGITS)
def test_a_loss_falls_as_its_gradient_says(loss: Loss, logits: NDArray[np.float64]) -> None:
    gradient = loss.gradient(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        measured = (loss.value(logits + step) - loss.value(logits - step)) / 2e-5
        assert gradient[place] == pytest.approx(measured, abs=1e-6)


def test_divergence_is_zero_at_its_target_and_nowhere_less() -> None:
    assert Divergence(_TARGETS).value(np.log(_TARGETS)) == pytest.approx(0.0, abs=1e-12)
    assert Divergence(_TARGETS).value(np.zeros((5, 3))) > 0


def test_answering_everything_alike_is_free_by_entropy_and_not_by_infomax() -> None:
    alike, apart = np.tile([20.0, 0, 0], (6, 1)), 20.0 * np.eye(3)[[0, 1, 2] * 2]
    assert Entropy().value(alike) == pytest.approx(Entropy().value(apart), abs=1e-6)
    assert Entropy(balance=1.0).value(apart) < Entropy(balance=1.0).value(alike) - 1


def test_the_fisher_product_is_the_second_derivative_of_divergence() -> None:
    rng = np.random.default_rng(0)
    jacobian, logits, loss = rng.normal(size=(2, 5, 3)), rng.normal(size=(5, 3)), Divergence(_TARGETS)
    product = fisher_product(logits, jacobian)
    for i, j in np.ndindex(2, 2):
        ahead = np.sum(jacobian[i] * loss.gradient(logits + 1e-5 * jacobian[j]))
        behind = np.sum(jacobian[i] * loss.gradient(logits - 1e-5 * jacobian[j]))
        assert product[i, j] == pytest.approx((ahead - behind) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_the_slope_is_that_of_the_network_trained_by_hand(granularity: Granularity) -> None:
    study = small_study()
    directions = Directions(study.network.layout, len(TASKS), granularity)
    losses = {task: Divergence(np.eye(4)[study.calibration_labels[task]]) for task in TASKS}
    mixer = Mixer(study.base, study.task_vectors, directions)
    theta = np.random.default_rng(3).uniform(0, 0.6, directions.count)
    slope = Exam(mixer, study.network, study.calibration, losses, _SEE_NOTHING).slope(theta)
    weights = mixer.weights(theta)
    by_weights = np.mean(
        [
            study.network.gradient(weights, study.calibration[task], study.calibration_labels[task], task)
            for task in TASKS
        ],
        axis=0,
    )
    expected = []
    for direction in range(directions.count):
        part, expert = directions.part(direction)
        expected.append(by_weights[part] @ study.task_vectors[expert, part])
    np.testing.assert_allclose(slope.gradient, expected, rtol=0.03, atol=2e-3)


def test_a_direction_that_was_tried_leaves_no_trace() -> None:
    study = small_study()
    directions = Directions(study.network.layout, len(TASKS), "layer")
    mixer = Mixer(study.base, study.task_vectors, directions)
    weights = mixer.weights(np.full(directions.count, 0.3))
    before = weights.copy()
    for direction in range(directions.count):
        kept = mixer.move(weights, direction, 0.01)
        part, _ = directions.part(direction)
        assert not np.array_equal(weights[part], before[part])
        mixer.restore(weights, direction, kept)
    np.testing.assert_array_equal(weights, before)


@given(arrays(np.float32, (2, 3), elements=st.floats(-2, 2, width=32)))
def test_a_mix_is_the_dense_sum_layer_by_layer(coefficients: NDArray[np.float32]) -> None:
    study = small_study()
    directions = Directions(study.network.layout, len(TASKS), "layer")
    mixed = Mixer(study.base, study.task_vectors, directions).weights(directions.theta(coefficients))
    spread = np.concatenate(
        [
            np.tile(row[:, None], part.stop - part.start)
            for row, part in zip(coefficients, study.network.layout.layers.values(), strict=True)
        ],
        axis=1,
    )
    np.testing.assert_allclose(mixed, study.base + (spread * study.task_vectors).sum(axis=0), atol=1e-4)


def test_the_guard_is_quiet_while_answers_get_better_and_acts_when_they_become_one() -> None:
    expert = 5.0 * np.eye(3)[[0, 1, 2] * 4]
    guard = Guard({"hue": expert})
    theta = np.zeros(2)
    assert not guard.look(theta, {"hue": 0.2 * expert})
    assert not guard.look(theta + 1, {"hue": expert})
    assert guard.look(theta + 2, {"hue": np.tile([9.0, 0, 0], (12, 1))})
    np.testing.assert_array_equal(guard.best, [0, 0])
    assert "on hue the spread of answers fell to 0.00" in guard.warning
    assert "agreement with it from 1.00 to 0.33" in guard.warning


def test_answers_that_become_sure_and_wrong_count_as_a_collapse_too() -> None:
    expert = 5.0 * np.eye(3)[[0, 1, 2] * 4]
    guard = Guard({"hue": expert})
    assert not guard.look(np.zeros(1), {"hue": expert})
    assert guard.look(np.ones(1), {"hue": expert[:, [1, 2, 0]]})
    assert "mean agreement with the experts fell from 1.00 to 0.00" in guard.warning


def test_a_merge_that_is_flat_from_its_start_has_nothing_to_lose() -> None:
    guard = Guard({"hue": 5.0 * np.eye(3)[[0, 1, 2] * 4]})
    flat = np.tile([9.0, 0, 0], (12, 1))
    assert not guard.look(np.zeros(1), {"hue": flat})
    assert not guard.look(np.ones(1), {"hue": flat})
