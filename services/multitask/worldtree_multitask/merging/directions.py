"""What a search over coefficients may move: each of them, or one of all layers together for each expert."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from worldtree_multitask.merging.layout import Coefficients, Flat, Layout

Granularity: TypeAlias = Literal["task", "layer"]
Theta: TypeAlias = NDArray[np.float64]  # [directions]


@dataclass(frozen=True)
class Directions:
    """The numbers theta that a search moves, and how they become coefficients.

    layer: theta is the coefficients row by row, layers x experts. task: one number an expert, for all its layers.
    """

    layout: Layout
    expert_count: int
    granularity: Granularity

    @property
    def count(self) -> int:
        return self.expert_count * (len(self.layout.layers) if self.granularity == "layer" else 1)

    def coefficients(self, theta: Theta) -> Coefficients:
        """[layers, experts]."""
        rows = theta.reshape(-1, self.expert_count).astype(np.float32)
        return np.array(np.broadcast_to(rows, (len(self.layout.layers), self.expert_count)))

    def theta(self, coefficients: Coefficients) -> Theta:
        """The nearest theta: of coefficients that differ among layers where one number stands for all, their mean."""
        rows = coefficients.astype(np.float64)
        return (rows if self.granularity == "layer" else rows.mean(axis=0)).reshape(-1)

    def part(self, direction: int) -> tuple[slice, int]:
        """What of the flat vector a direction moves, and which expert's task vector moves it."""
        row, expert = divmod(direction, self.expert_count)
        if self.granularity == "task":
            return slice(0, self.layout.size), expert
        return list(self.layout.layers.values())[row], expert


class Mixer:
    """Weights for theta in one buffer: a direction is tried by moving its part alone, and taken back to the bit."""

    def __init__(self, base: Flat, task_vectors: NDArray[np.float32], directions: Directions) -> None:
        """`base` [parameters], `task_vectors` [experts, parameters]: read, never written."""
        self.directions = directions
        self._base = base
        self._task_vectors = task_vectors

    def weights(self, theta: Theta) -> Flat:
        """Of its own memory."""
        coefficients = self.directions.coefficients(theta)
        return self.directions.layout.combine(self._base, self._task_vectors, coefficients)

    def expert(self, column: int) -> Flat:
        """The base plus one whole task vector."""
        expert: Flat = self._base + self._task_vectors[column]
        return expert

    def move(self, weights: Flat, direction: int, by: float) -> NDArray[np.float32]:
        """Moves `weights` in place along a direction; what stood there, for `restore`."""
        part, expert = self.directions.part(direction)
        kept = weights[part].copy()
        weights[part] += np.float32(by) * self._task_vectors[expert, part]
        return kept

    def restore(self, weights: Flat, direction: int, kept: NDArray[np.float32]) -> None:
        weights[self.directions.part(direction)[0]] = kept
