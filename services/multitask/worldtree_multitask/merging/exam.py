"""How good a theta is on images of several tasks, and which way is better: one finite-difference Jacobian for all.

The network is a black box, so the derivative of logits by coefficients is measured: one pass more a direction. With
the Jacobian J of each task, the gradient of any loss is J^T dL/dz, and Gauss-Newton uses J^T F J.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldtree_multitask.merging.directions import Mixer, Theta
from worldtree_multitask.merging.losses import Loss, Matrix, fisher_product
from worldtree_multitask.merging.method import Images, Network
from worldtree_multitask.merging.progress import Progress

# Between the rounding of float32 logits (about 1e-6 of their size, so 1e-4 of the derivative) and the curvature of a
# network within the step.
_REACH = 1e-2


@dataclass(frozen=True)
class Slope:
    """At one theta: the loss, its gradient [directions], and J^T F J [directions, directions] if it was asked for."""

    value: float
    gradient: NDArray[np.float64]
    curvature: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Exam:
    """Images and a loss for each task; the whole loss is the mean over tasks, each counting the same."""

    mixer: Mixer
    network: Network
    images: Mapping[str, Images]
    losses: Mapping[str, Loss]
    progress: Progress

    def logits(self, theta: Theta) -> dict[str, Matrix]:
        """By task, [images, classes]."""
        return dict(self._answers(self.mixer.weights(theta)))

    def value(self, theta: Theta) -> float:
        """The mean loss over tasks. Not finite where the network's answers are not."""
        return float(np.mean([self.losses[task].value(logits) for task, logits in self.logits(theta).items()]))

    def slope(self, theta: Theta, *, curved: bool = False) -> Slope:
        """Forward differences: directions + 1 passes over each task's images."""
        weights = self.mixer.weights(theta)
        here = dict(self._answers(weights))
        count = self.mixer.directions.count
        jacobians = {task: np.empty((count, *logits.shape)) for task, logits in here.items()}
        for direction in range(count):
            kept = self.mixer.move(weights, direction, _REACH)
            for task, logits in self._answers(weights):
                jacobians[task][direction] = (logits - here[task]) / _REACH
            self.mixer.restore(weights, direction, kept)
        gradient = np.zeros(count)
        curvature = np.zeros((count, count)) if curved else None
        for task, jacobian in jacobians.items():
            gradient += np.einsum("dnc,nc->d", jacobian, self.losses[task].gradient(here[task]))
            if curvature is not None:
                curvature += fisher_product(here[task], jacobian)
        tasks = len(here)
        value = float(np.mean([self.losses[task].value(logits) for task, logits in here.items()]))
        return Slope(value, gradient / tasks, None if curvature is None else curvature / tasks)

    def _answers(self, weights: NDArray[np.float32]) -> Iterator[tuple[str, Matrix]]:
        for task, images in self.images.items():
            yield task, self.network.logits(weights, images, task).astype(np.float64)
            self.progress.beat()
