"""What a merge is learned by, as functions of logits: value, gradient, and curvature where it is wanted.

All take logits z [images, classes] and are means over images, so their gradient dL/dz carries 1 / images.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # [images, classes]


class Loss(Protocol):
    """Of one task, on images that are fixed for its lifetime."""

    def value(self, logits: Matrix) -> float:
        """In nats, less is better."""

    def gradient(self, logits: Matrix) -> Matrix:
        """dL/dz."""


def softmax(logits: NDArray[np.floating]) -> Matrix:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    shares: Matrix = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def log_softmax(logits: NDArray[np.floating]) -> Matrix:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    known: Matrix = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return known


def entropy(shares: Matrix) -> Matrix:
    """In nats, over the last axis; 0 log 0 is 0."""
    known: Matrix = -np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=-1)
    return known


@dataclass(frozen=True)
class Entropy:
    """Mean entropy of the answers (AdaMerging, section 3: a surrogate for the loss where there are no labels).

    `balance`: times the entropy of the mean answer, taken off: 0 as published; 1 is the mutual information of image
    and answer (InfoMax), which answering alike everywhere does not lower.
    """

    balance: float = 0.0

    def value(self, logits: Matrix) -> float:
        shares = softmax(logits)
        return float(entropy(shares).mean() - self.balance * entropy(shares.mean(axis=0)))

    def gradient(self, logits: Matrix) -> Matrix:
        shares, logs = softmax(logits), log_softmax(logits)
        mean_logs = np.log(np.maximum(shares.mean(axis=0), 1e-300))
        # dL/dp of each answer, then through the softmax; constants vanish there.
        by_share = -logs + self.balance * mean_logs
        known: Matrix = shares * (by_share - np.sum(shares * by_share, axis=1, keepdims=True)) / len(logits)
        return known


@dataclass(frozen=True)
class Divergence:
    """Mean KL from target answers [images, classes] to the network's: of an expert, or one-hot labels.

    It is least where each answer is the target's, so nothing is gained by answering everything alike.
    """

    targets: Matrix

    def value(self, logits: Matrix) -> float:
        cross = -np.sum(self.targets * log_softmax(logits), axis=1)
        return float((cross - entropy(self.targets)).mean())

    def gradient(self, logits: Matrix) -> Matrix:
        known: Matrix = (softmax(logits) - self.targets) / len(logits)
        return known


def fisher_product(logits: Matrix, jacobian: NDArray[np.float64]) -> NDArray[np.float64]:
    """J^T F J, [directions, directions]: F is the Fisher of the softmax, diag(p) - p p^T an image, over images.

    Of `Divergence` it is the Gauss-Newton matrix, for F is its second derivative by logits whatever the target
    (Martens, "New insights and perspectives on the natural gradient method", section 8). `jacobian`: [directions,
    images, classes].
    """
    shares = softmax(logits)
    mean = np.einsum("nc,dnc->dn", shares, jacobian)
    centred = (jacobian - mean[:, :, None]) * np.sqrt(shares / len(logits))
    flat = centred.reshape(len(jacobian), -1)
    product: NDArray[np.float64] = flat @ flat.T
    return product
