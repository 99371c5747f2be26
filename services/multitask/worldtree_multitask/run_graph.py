"""The graph of a package as it is run: what it does to its weights on every run is done once, its answers are one.

A product with a weight that is stored transposed is exported as Transpose and MatMul. ONNX Runtime folds the Transpose
of a constant; that of an input it would run again and again. And each output that is bound and copied costs a small run
two hundredths of its time. Measured together on the shipped network: a quarter of a run of two images.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from worldtree_multitask.merging import Layout

LOGITS = "worldtree/logits"


def run_graph(file: Path, weights: Collection[str], tasks: Sequence[str]) -> tuple[bytes, frozenset[str]]:
    """The graph of a file without the Transposes of weights, and the weights that it now wants transposed.

    Its one output is `LOGITS`, [images, classes of all tasks], those of `tasks` side by side in their order.
    """
    model = onnx.load(file)
    graph = model.graph
    transposed = _hoist_transposes(graph, weights)
    graph.node.append(helper.make_node("Concat", list(tasks), [LOGITS], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, None))
    serialized: bytes = model.SerializeToString()
    return serialized, transposed


def _hoist_transposes(graph: onnx.GraphProto, weights: Collection[str]) -> frozenset[str]:
    uses = Counter(name for node in graph.node for name in node.input)
    hoisted: dict[str, str] = {}  # by the name of what the Transpose made
    kept = []
    for node in graph.node:
        name = node.input[0] if node.input else ""
        if node.op_type == "Transpose" and name in weights and uses[name] == 1 and _swaps_two(node):
            hoisted[node.output[0]] = name
        else:
            kept.append(node)
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = hoisted.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]  # shapes that no longer hold
    for each in graph.input:
        if each.name in hoisted.values():
            dims = each.type.tensor_type.shape.dim
            dims[0].dim_value, dims[1].dim_value = dims[1].dim_value, dims[0].dim_value
    return frozenset(hoisted.values())


class RunLayout:
    """The flat vector as the hoisted graph wants it: each tensor where it was, some of them transposed."""

    def __init__(self, layout: Layout, transposed: Collection[str]) -> None:
        self._layout = layout
        self._transposed = transposed
        self._places = [
            (place.name, slice(place.offset, place.offset + place.size), self.shape(place.name, place.shape))
            for place in layout.tensors
        ]

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if name in self._transposed else shape

    def arranged(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of a vector [parameters], or of several [n, parameters], arranged for the run."""
        made = flat.copy()
        rows, given = made.reshape(-1, self._layout.size), flat.reshape(-1, self._layout.size)
        for place in self._layout.tensors:
            if place.name in self._transposed:
                part = slice(place.offset, place.offset + place.size)
                blocks = given[:, part].reshape(-1, *place.shape)
                rows[:, part] = blocks.swapaxes(1, 2).reshape(len(rows), -1)
        return made

    def views(self, arranged: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Each tensor of an arranged vector, as the graph wants it."""
        return {name: arranged[part].reshape(shape) for name, part, shape in self._places}


def _swaps_two(node: onnx.NodeProto) -> bool:
    permutation = [value for each in node.attribute if each.name == "perm" for value in each.ints]
    return permutation == [1, 0]
