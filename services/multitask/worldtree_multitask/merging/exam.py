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
        return mean_loss(self.losses, self.logits(theta))

    def tangent(self, theta: Theta) -> "Tangent":
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
        return Tangent(self.losses, here, jacobians)

    def slope(self, theta: Theta, *, curved: bool = False) -> Slope:
        """At theta; costs what `tangent` does."""
        tangent = self.tangent(theta)
        return tangent.slope(tangent.logits, curved=curved)

    def _answers(self, weights: NDArray[np.float32]) -> Iterator[tuple[str, Matrix]]:
        for task, images in self.images.items():
            yield task, self.network.logits(weights, images, task).astype(np.float64)
            self.progress.beat()


@dataclass(frozen=True)
class Tangent:
    """`logits` at one theta, and how they move with it: `jacobians` by task, [directions, images, classes].

    Measured anew it is dear, and it turns slowly: logits of a theta near by cost one pass, and their loss, by the old
    Jacobian, still has a good slope.
    """

    losses: Mapping[str, Loss]
    logits: dict[str, Matrix]
    jacobians: dict[str, NDArray[np.float64]]

    def along(self, direction: Theta) -> dict[str, Matrix]:
        """By task, how logits move with a step along the direction, [images, classes]."""
        return {task: np.tensordot(direction, jacobian, 1) for task, jacobian in self.jacobians.items()}

    def slope(self, logits: Mapping[str, Matrix], *, curved: bool = False) -> Slope:
        """Of the loss at these logits, where the Jacobian is taken to be the same."""
        count = len(next(iter(self.jacobians.values())))
        gradient = np.zeros(count)
        curvature = np.zeros((count, count)) if curved else None
        for task, jacobian in self.jacobians.items():
            gradient += np.einsum("dnc,nc->d", jacobian, self.losses[task].gradient(logits[task]))
            if curvature is not None:
                curvature += fisher_product(logits[task], jacobian)
        tasks = len(self.jacobians)
        return Slope(mean_loss(self.losses, logits), gradient / tasks, None if curvature is None else curvature / tasks)


def mean_loss(losses: Mapping[str, Loss], logits: Mapping[str, Matrix]) -> float:
    """Over tasks, each counting the same."""
    return float(np.mean([losses[task].value(each) for task, each in logits.items()]))
