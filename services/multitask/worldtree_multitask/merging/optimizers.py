"""Three ways down a loss of few numbers. Each calls `watch(step, theta, value)` after a step; True stops it there."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from worldtree_multitask.merging.directions import Theta
from worldtree_multitask.merging.exam import Exam, mean_loss

Watch: TypeAlias = Callable[[int, Theta, float], bool]

_SETTLED = 1e-3  # of the loss: a step of Gauss-Newton that gains less is the last
_MOVES = 4  # by one Jacobian: each costs a pass, a Jacobian one for each direction
_TRUSTED = 0.05  # of what is gained and of what is left: a Jacobian that foretold a step so well hardly turned on it
_LEAST_DAMPING = 1e-6


def adam(exam: Callable[[], Exam], theta: Theta, *, steps: int, learning_rate: float, watch: Watch) -> Theta:
    """Adam (Kingma and Ba, Algorithm 1) with measured gradients. `exam`: the images of the next step."""
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, steps + 1):
        slope = exam().slope(theta)
        mean += 0.1 * (slope.gradient - mean)
        square += 0.001 * (slope.gradient**2 - square)
        unbiased, scale = mean / (1 - 0.9**step), np.sqrt(square / (1 - 0.999**step))
        theta = theta - learning_rate * unbiased / (scale + 1e-8)
        if watch(step, theta, slope.value):
            break
    return theta


def gauss_newton(exam: Exam, theta: Theta, *, steps: int, watch: Watch) -> Theta:
    """Damped least squares in the metric of the answers (Levenberg and Marquardt): only for `Divergence`, whose
    curvature J^T F J is. A step is a Jacobian measured anew and some moves by it; a move that gains nothing is not
    made, so the loss never rises.
    """
    damping = 1e-2
    for step in range(1, steps + 1):
        tangent, began = exam.tangent(theta), theta
        logits = tangent.logits
        before = value = mean_loss(exam.losses, logits)
        for _ in range(_MOVES):
            slope = tangent.slope(logits, curved=True)
            assert slope.curvature is not None
            # By the mean curvature, not by each direction's own: one that hardly matters must not run away.
            unit = max(float(np.trace(slope.curvature)) / len(theta), 1e-12)
            damped = slope.curvature + damping * unit * np.eye(len(theta))
            tried = theta - np.linalg.solve(damped, slope.gradient)
            tried_logits = exam.logits(tried)
            tried_value = mean_loss(exam.losses, tried_logits)
            if tried_value < value:
                theta, logits, value, damping = tried, tried_logits, tried_value, max(damping / 4, _LEAST_DAMPING)
            else:
                damping *= 8
        if watch(step, theta, value) or before - value < _SETTLED * abs(before):
            break
        moved = tangent.along(theta - began)
        promised = mean_loss(exam.losses, {task: tangent.logits[task] + each for task, each in moved.items()})
        if abs(promised - value) < _TRUSTED * min(before - value, value):
            break
    return theta


def evolution(
    exam: Callable[[], Exam],
    theta: Theta,
    *,
    steps: int,
    spread: float,
    rng: np.random.Generator,
    watch: Watch,
) -> Theta:
    """A separable CMA-ES without paths (after Ros and Hansen, "A simple modification in CMA-ES"): each generation the
    better half, weighted by rank, gives the next mean and each direction's own spread. `spread`: the first.
    """
    count = 4 + int(3 * np.log(len(theta)))
    weights = np.log((count + 1) / 2) - np.log(np.arange(1, count // 2 + 1))
    weights /= weights.sum()
    spreads = np.full_like(theta, spread)
    for step in range(1, steps + 1):
        here = exam()  # one draw of images for the whole generation, or its members are not comparable
        moves = rng.standard_normal((count, len(theta)))
        values = np.array([here.value(theta + spreads * move) for move in moves])
        best = moves[np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")[: count // 2]]
        theta = theta + spreads * (weights @ best)
        spreads = spreads * np.exp(0.1 * (weights @ best**2 - 1.0))
        if watch(step, theta, float(values.min())):
            break
    return theta
