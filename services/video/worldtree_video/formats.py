"""How a block is stored, and a package's float32 graphs rewritten to read and write blocks stored otherwise.

A package's graphs know one pool [blocks, layers, 2, heads, tokens, head_dim] of float32. For a smaller format each of
them is wrapped, and nothing inside is touched but the last node of `commit`:

- before it, the blocks that `table` lists are gathered as they are stored and widened to float32. The graph finds them
  under the name `pool`, a small one [batch * window, ...], and under `table` their places in it;
- in `commit`, the ScatterND into `pool` is taken out. What it would have written is narrowed and scattered into each
  stored tensor by `slot`, and each output is bound to its own input.

Widening is exact for fp16 and one product for int8, so a block reads the same whatever the batch.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.video_package import KvSpec

from worldtree_video.domain import Storage

_OPSET, _IR_VERSION = 18, 10  # what the oldest ONNX Runtime that we support reads
_FP16_MAX = 65504.0
_INT8_MAX = 127.0
_KIND = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
_READS = {"Gather", "GatherND", "Shape", "ScatterND"}  # what may look at `pool` directly


class TensorForm(NamedTuple):
    """Type and shape of one stored tensor of a block."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return np.dtype(self.dtype).itemsize * prod(self.shape)


BlockSpec: TypeAlias = dict[str, TensorForm]


def block_spec(kv: KvSpec, storage: Storage) -> BlockSpec:
    """The tensors that hold one block.

    fp32, fp16: `kv` [layers, 2, heads, tokens, head_dim]. int8: `kv` without the state tokens, `scale` [layers, 2,
    heads, 1, head_dim] (number = kv * scale; largest number of the channel / 127) and, where the package has state
    tokens, `state` [layers, 2, heads, state_tokens, head_dim], which 8 bits would spoil; where a block is all state,
    that alone.
    """
    if storage is not Storage.INT8:
        return {"kv": TensorForm("float32" if storage is Storage.FP32 else "float16", kv.block_shape)}
    outer = (kv.layers, 2, kv.heads)
    spec = {}
    if kv.tokens > kv.state_tokens:
        spec["kv"] = TensorForm("int8", (*outer, kv.tokens - kv.state_tokens, kv.head_dim))
        spec["scale"] = TensorForm("float16", (*outer, 1, kv.head_dim))
    if kv.state_tokens:
        spec["state"] = TensorForm("float16", (*outer, kv.state_tokens, kv.head_dim))
    return spec


def block_bytes(kv: KvSpec, storage: Storage) -> int:
    """Bytes of one block."""
    return sum(form.nbytes for form in block_spec(kv, storage).values())


def stored(name: str) -> str:
    """The graph input that takes a stored tensor of the pool."""
    return f"stored.{name}"


def written(name: str) -> str:
    """The graph output that is bound in place to it."""
    return f"stored.{name}_out"


# What the rewritten graphs call the block table; `table` inside them lists places in the small pool.
TABLE = "stored.table"


def denoise_graph(path: Path, kv: KvSpec, storage: Storage) -> bytes:
    """The package's denoiser over a pool of a smaller format. Raises PackageError where it cannot be rewritten."""
    model = _load(path)
    _check_pool_reads(path, model.graph)
    _put_before(model.graph, kv, storage)
    return bytes(model.SerializeToString())


def commit_graph(path: Path, kv: KvSpec, storage: Storage) -> bytes:
    """The package's commit into a pool of a smaller format. Raises PackageError where it cannot be rewritten."""
    model = _load(path)
    graph = model.graph
    _check_pool_reads(path, graph)
    scatter = _final_scatter(path, graph)
    graph.node.remove(scatter)
    _put_before(graph, kv, storage)
    tail = _Nodes("after")
    block = tail.node("Reshape", scatter.input[2], tail.constant(np.array([-1, *kv.block_shape])))
    index = tail.node("Unsqueeze", "slot", tail.constant(np.array([1])))
    del graph.output[:]
    for name, tensor in _narrowed(tail, block, kv, storage).items():
        form = block_spec(kv, storage)[name]
        tail.node("ScatterND", stored(name), index, tensor, output=written(name))
        graph.output.append(_value(written(name), form.dtype, ["blocks", *form.shape]))
    graph.node.extend(tail.nodes)
    graph.initializer.extend(tail.constants)
    return bytes(model.SerializeToString())


def read_graph(kv: KvSpec, storage: Storage) -> bytes:
    """(stored tensors, index[n]) -> each tensor's rows of these blocks, under the tensor's own name."""
    nodes = _Nodes("whole")
    spec = block_spec(kv, storage)
    for name in spec:
        nodes.node("Gather", stored(name), "index", output=name)
    outputs = [_value(name, form.dtype, ["n", *form.shape]) for name, form in spec.items()]
    return nodes.model("read", [*_pool_values(spec), _value("index", "int64", ["n"])], outputs)


def write_graph(kv: KvSpec, storage: Storage) -> bytes:
    """(stored tensors, index[n], rows under each tensor's own name) -> stored tensors, to be bound in place."""
    nodes = _Nodes("whole")
    spec = block_spec(kv, storage)
    index = nodes.node("Unsqueeze", "index", nodes.constant(np.array([1])))
    for name in spec:
        nodes.node("ScatterND", stored(name), index, name, output=written(name))
    inputs = [_value(name, form.dtype, ["n", *form.shape]) for name, form in spec.items()]
    outputs = [_value(written(name), form.dtype, ["blocks", *form.shape]) for name, form in spec.items()]
    return nodes.model("write", [*_pool_values(spec), _value("index", "int64", ["n"]), *inputs], outputs)


def summary_graph(kv: KvSpec, storage: Storage) -> bytes:
    """(stored tensors, index[n]) -> summary[n, size]: the pose x, y, heading where the package declares one, else the
    mean key of the last layer over the tokens that hold keys (all, where none does), [heads * head_dim]."""
    nodes = _Nodes("whole")
    spec = block_spec(kv, storage)
    # One more than was asked for: ONNX Runtime adds a single block of one head up in another order than several, and a
    # summary must be the same to the last bit whichever others it is made with.
    zero, one = nodes.constant(np.array([0])), nodes.constant(np.array([1]))
    index = nodes.node("Concat", "index", nodes.node("Slice", "index", zero, one), axis=0)
    rows = {name: nodes.node("Gather", stored(name), index) for name in spec}
    block = _widened(nodes, rows, kv, storage)  # [n + 1, layers, 2, heads, tokens, head_dim]
    if kv.pose is not None:
        first = [kv.pose.layer, kv.pose.part_index, kv.pose.head, kv.pose.token, kv.pose.offset]
        size = [1, 1, 1, 1, kv.pose.size]
    else:
        keys = kv.tokens - kv.state_tokens or kv.tokens
        first, size = [kv.layers - 1, 0, 0, 0, 0], [1, 1, kv.heads, keys, kv.head_dim]
    last = [start + extent for start, extent in zip(first, size, strict=True)]
    part = nodes.node(
        "Slice", block, nodes.constant(np.array(first)), nodes.constant(np.array(last)), nodes.constant(np.arange(1, 6))
    )
    mean = nodes.node("Flatten", nodes.node("ReduceMean", part, nodes.constant(np.array([4]))), axis=1)
    nodes.node("Slice", mean, zero, nodes.node("Shape", "index"), output="summary")
    inputs = [*_pool_values(spec), _value("index", "int64", ["n"])]
    return nodes.model("summary", inputs, [_value("summary", "float32", ["n", summary_size(kv)])])


def summary_size(kv: KvSpec) -> int:
    """Numbers of a block's summary."""
    return kv.pose.size if kv.pose is not None else kv.heads * kv.head_dim


class _Nodes:
    """Nodes and constants as they are added, under names that no package's graph uses."""

    def __init__(self, part: str) -> None:
        self._part = part
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"stored/{self._part}/{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        name = f"stored/{self._part}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def model(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), initializer=self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        return bytes(model.SerializeToString())


def _gathered(kv: KvSpec, storage: Storage) -> _Nodes:
    """Makes `pool` [batch * window, ...], the blocks in view as float32, and `table`, their places in it."""
    nodes = _Nodes("before")
    index = nodes.node("Reshape", TABLE, nodes.constant(np.array([-1])))
    rows = {name: nodes.node("Gather", stored(name), index) for name in block_spec(kv, storage)}
    nodes.node("Identity", _widened(nodes, rows, kv, storage), output="pool")
    zero, one = nodes.constant(np.array(0)), nodes.constant(np.array(1))
    places = nodes.node("Range", zero, nodes.node("Size", TABLE), one)
    nodes.node("Reshape", places, nodes.node("Shape", TABLE), output="table")
    return nodes


def _widened(nodes: _Nodes, rows: dict[str, str], kv: KvSpec, storage: Storage) -> str:
    """Stored rows as float32 [n, layers, 2, heads, tokens, head_dim]."""
    if storage is Storage.FP32:
        return rows["kv"]
    wide = {name: nodes.node("Cast", row, to=TensorProto.FLOAT) for name, row in rows.items()}
    if storage is Storage.FP16:
        return wide["kv"]
    if kv.state_tokens == kv.tokens:
        return wide["state"]
    numbers = nodes.node("Mul", wide["kv"], wide["scale"])
    return nodes.node("Concat", numbers, wide["state"], axis=4) if kv.state_tokens else numbers


def _narrowed(nodes: _Nodes, block: str, kv: KvSpec, storage: Storage) -> dict[str, str]:
    """Float32 blocks [n, layers, 2, heads, tokens, head_dim] as they are stored. A NaN stays one in every format."""
    if storage is Storage.FP16:
        return {"kv": _half(nodes, block)}
    if kv.state_tokens == kv.tokens:
        return {"state": _half(nodes, block)}
    keys = kv.tokens - kv.state_tokens
    sizes = [keys, kv.state_tokens] if kv.state_tokens else [keys]
    parts = [
        nodes.node("Slice", block, *(nodes.constant(np.array([n])) for n in (first, first + size, 4)))
        for first, size in zip((0, keys), sizes, strict=False)
    ]
    tokens = nodes.constant(np.array([4]))
    # ReduceMax may pass over a NaN; x - x is NaN for one and for an infinity, else 0.
    broken = nodes.node("ReduceSum", nodes.node("Sub", parts[0], parts[0]), tokens)
    largest = nodes.node("Add", nodes.node("ReduceMax", nodes.node("Abs", parts[0]), tokens), broken)
    scale = _half(nodes, nodes.node("Div", largest, nodes.number(_INT8_MAX)))
    # Divided by the scale as it is stored. A channel of zeros has none, and its zeros stay zeros under any.
    step = nodes.node("Cast", scale, to=TensorProto.FLOAT)
    step = nodes.node("Where", nodes.node("Equal", step, nodes.number(0.0)), nodes.number(1.0), step)
    whole = nodes.node("Round", nodes.node("Div", parts[0], step))  # half to even
    whole = nodes.node("Clip", whole, nodes.number(-_INT8_MAX), nodes.number(_INT8_MAX))
    # The scale carries the NaN; a NaN as an integer would be whatever the machine makes of it.
    whole = nodes.node("Where", nodes.node("IsNaN", whole), nodes.number(0.0), whole)
    narrow = {"kv": nodes.node("Cast", whole, to=TensorProto.INT8), "scale": scale}
    return {**narrow, "state": _half(nodes, parts[1])} if kv.state_tokens else narrow


def _half(nodes: _Nodes, tensor: str) -> str:
    # What 16 bits cannot hold becomes the largest that they can, not an infinity.
    broken = nodes.node("IsNaN", tensor)
    clipped = nodes.node("Clip", tensor, nodes.number(-_FP16_MAX), nodes.number(_FP16_MAX))
    return nodes.node("Cast", nodes.node("Where", broken, tensor, clipped), to=TensorProto.FLOAT16)


def _put_before(graph: Any, kv: KvSpec, storage: Storage) -> None:
    """Makes `pool` and `table` inside a graph that took them as inputs."""
    nodes = _gathered(kv, storage)
    own = [value for value in graph.input if value.name not in ("pool", "table")]
    table = _value(TABLE, "int64", ["batch", kv.window])
    inputs = [*own, table, *_pool_values(block_spec(kv, storage))]
    body = list(graph.node)
    del graph.input[:], graph.node[:]
    graph.input.extend(inputs)
    graph.node.extend([*nodes.nodes, *body])
    graph.initializer.extend(nodes.constants)
    # Shapes that were noted for a pool of another size.
    del graph.value_info[:]


def _load(path: Path) -> Any:
    # Weights in files beside the graph are left there: ONNX Runtime reads them when it loads the rewritten graph.
    model = onnx.load(str(path), load_external_data=False)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        raise PackageError(path, "opset", f"must be {_OPSET} or newer for fp16 and int8 blocks, got {opset}")
    return model


def _check_pool_reads(path: Path, graph: Any) -> None:
    """The small pool stands for the big one only where blocks are looked up by `table`."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        where = f"node {node.name or node.output[0]}"
        for attribute in node.attribute:
            inner = [attribute.g, *attribute.graphs] if attribute.type == onnx.AttributeProto.GRAPH else ()
            if any("pool" in child.input for subgraph in inner for child in subgraph.node):
                raise PackageError(path, where, "reads pool inside a branch or loop; fp16 and int8 need it outside")
        if "pool" not in node.input:
            continue
        axis = next((entry.i for entry in node.attribute if entry.name in ("axis", "batch_dims")), 0)
        if node.op_type not in _READS or axis:
            raise PackageError(path, where, f"must read pool by a Gather over its blocks, got {node.op_type}")
        if node.op_type.startswith("Gather") and "table" not in _sources(node.input[1], makers):
            raise PackageError(path, where, "must look blocks of pool up by table, for fp16 and int8 blocks")


def _sources(name: str, makers: dict[str, Any]) -> set[str]:
    """All names that a tensor is made from."""
    found: set[str] = set()
    open_names = [name]
    while open_names:
        current = open_names.pop()
        if current not in found:
            found.add(current)
            open_names += makers[current].input if current in makers else ()
    return found


def _final_scatter(path: Path, graph: Any) -> Any:
    expected = "must come from a ScatterND without reduction into the input pool, and be read by no node"
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get("pool_out")
    reduced = node is not None and any(entry.name == "reduction" and entry.s != b"none" for entry in node.attribute)
    if node is None or node.op_type != "ScatterND" or node.input[0] != "pool" or reduced:
        raise PackageError(path, "output pool_out", f"{expected}; it comes from {node.op_type if node else 'no node'}")
    if any("pool_out" in other.input for other in graph.node):
        raise PackageError(path, "output pool_out", expected)
    if "slot" not in _sources(node.input[1], makers):
        raise PackageError(path, "output pool_out", "must be written by slot")
    return node


def _pool_values(spec: BlockSpec) -> list[Any]:
    return [_value(stored(name), form.dtype, ["blocks", *form.shape]) for name, form in spec.items()]


def _value(name: str, dtype: str, shape: Sequence[str | int]) -> Any:
    kind = TensorProto.INT64 if dtype == "int64" else _KIND[dtype]
    return helper.make_tensor_value_info(name, kind, list(shape))
