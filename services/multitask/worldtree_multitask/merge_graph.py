"""base + coefficients @ task vectors as one ONNX graph, made in memory: each tensor of the network is an output."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from worldtree_multitask.merging import Layout

_IR_VERSION = 10
_OPSET = 18


def merge_graph(layout: Layout, base: NDArray[np.float32], task_vectors: NDArray[np.float32]) -> bytes:
    """Input `coefficients` float32 [layers, experts]; an output a tensor, by its name and in its shape.

    `base`: [parameters]; `task_vectors`: [experts, parameters]. Both are initialisers of the graph: a layer of the
    merge is one product of a row with a matrix, read once.
    """
    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {}
    for row, (layer, part) in enumerate(layout.layers.items()):
        places = [place for place in layout.tensors if part.start <= place.offset < part.stop]
        constants |= {
            f"{layer}/row": np.array([row], np.int64),
            f"{layer}/base": base[part],
            f"{layer}/task_vectors": np.ascontiguousarray(task_vectors[:, part]),
            f"{layer}/sizes": np.array([place.size for place in places], np.int64),
        }
        nodes += [
            helper.make_node("Gather", ["coefficients", f"{layer}/row"], [f"{layer}/coefficients"], axis=0),
            helper.make_node("MatMul", [f"{layer}/coefficients", f"{layer}/task_vectors"], [f"{layer}/change"]),
            helper.make_node("Add", [f"{layer}/change", f"{layer}/base"], [f"{layer}/merged"]),
            helper.make_node(
                "Split", [f"{layer}/merged", f"{layer}/sizes"], [f"{place.name}/flat" for place in places], axis=1
            ),
        ]
        for place in places:
            constants[f"{place.name}/shape"] = np.array(place.shape, np.int64)
            nodes.append(helper.make_node("Reshape", [f"{place.name}/flat", f"{place.name}/shape"], [place.name]))
    graph = helper.make_graph(
        nodes,
        "merge",
        [helper.make_tensor_value_info("coefficients", TensorProto.FLOAT, [len(layout.layers), len(task_vectors)])],
        [helper.make_tensor_value_info(place.name, TensorProto.FLOAT, place.shape) for place in layout.tensors],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="worldtree"
    )
    serialized: bytes = model.SerializeToString()
    return serialized
