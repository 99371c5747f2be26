"""base + coefficients @ task vectors as one ONNX graph, made in memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_IR_VERSION = 10
_OPSET = 18


def merge_graph(layers: Mapping[str, slice], base: NDArray[np.float32], task_vectors: NDArray[np.float32]) -> bytes:
    """Input `coefficients` float32 [layers, experts], an output for each layer, by its name: [1, its parameters].

    `layers`: each layer's part of the flat vector; `base`: [parameters]; `task_vectors`: [experts, parameters]. They
    are initialisers of the graph: a layer of the merge is one product of a row with a matrix, read once. With an output
    a tensor, binding them took longer than the merge.
    """
    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {}
    for row, (layer, part) in enumerate(layers.items()):
        constants |= {
            f"{layer}/row": np.array([row], np.int64),
            f"{layer}/base": base[part],
            f"{layer}/task_vectors": np.ascontiguousarray(task_vectors[:, part]),
        }
        nodes += [
            helper.make_node("Gather", ["coefficients", f"{layer}/row"], [f"{layer}/coefficients"], axis=0),
            helper.make_node("MatMul", [f"{layer}/coefficients", f"{layer}/task_vectors"], [f"{layer}/change"]),
            helper.make_node("Add", [f"{layer}/change", f"{layer}/base"], [layer]),
        ]
    graph = helper.make_graph(
        nodes,
        "merge",
        [helper.make_tensor_value_info("coefficients", TensorProto.FLOAT, [len(layers), len(task_vectors)])],
        [
            helper.make_tensor_value_info(layer, TensorProto.FLOAT, [1, part.stop - part.start])
            for layer, part in layers.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="worldtree"
    )
    serialized: bytes = model.SerializeToString()
    return serialized
