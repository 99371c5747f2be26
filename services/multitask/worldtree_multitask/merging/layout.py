"""Where each layer and tensor of the network stands in one flat vector of its parameters."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Flat: TypeAlias = NDArray[np.float32]  # [parameters]
Coefficients: TypeAlias = NDArray[np.float32]  # [layers, experts]


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor: its name, its shape, and where it begins in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Layout:
    """The tensors layer by layer, in order of depth, so that a layer is one slice of the flat vector."""

    def __init__(self, layers: Mapping[str, Sequence[str]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`layers`: the names of its tensors by layer; `shapes`: the shape of each tensor."""
        self.tensors: list[TensorPlace] = []
        self.layers: dict[str, slice] = {}
        offset = 0
        for layer, names in layers.items():
            begin = offset
            for name in names:
                place = TensorPlace(name, tuple(shapes[name]), offset)
                self.tensors.append(place)
                offset += place.size
            self.layers[layer] = slice(begin, offset)
        self.size = offset

    def flatten(self, tensors: Mapping[str, NDArray[np.floating]]) -> Flat:
        """One vector of all tensors; those that are absent are zero."""
        flat = np.zeros(self.size, np.float32)
        for place in self.tensors:
            if place.name in tensors:
                flat[place.offset : place.offset + place.size] = tensors[place.name].reshape(-1)
        return flat

    def views(self, flat: Flat) -> dict[str, NDArray[np.float32]]:
        """Each tensor as a view into `flat`, in its shape."""
        return {
            place.name: flat[place.offset : place.offset + place.size].reshape(place.shape) for place in self.tensors
        }

    def combine(self, base: Flat, task_vectors: NDArray[np.float32], coefficients: Coefficients) -> Flat:
        """base + sum over experts of coefficients[layer, expert] x task vector, layer by layer.

        `task_vectors`: [experts, parameters]. This is the arithmetic that the merge graph must agree with.
        """
        merged = base.copy()
        for row, part in zip(coefficients, self.layers.values(), strict=True):
            merged[part] += row @ task_vectors[:, part]
        return merged
