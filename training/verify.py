"""Checks of an exported package: onnxruntime against torch, batch invariance, garbage, in-place commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

BATCHES = (1, 2, 3, 8, 16)


def verify(
    modules: Mapping[str, torch.nn.Module],
    folder: Path,
    inputs: dict[str, torch.Tensor],
    names: Mapping[str, tuple[str, ...]],
    *,
    tolerance: float,
) -> Iterator[str]:
    """Yields one line a check; raises AssertionError at the first that fails.

    `inputs` has a batch of 16; `names` are the inputs of each graph in the order of its module; `tolerance`: how far
    onnxruntime may be from torch.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: ort.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        for name in modules
    }
    arrays = {name: value.numpy() for name, value in inputs.items()}

    def run(graph: str, rows: slice, given: Mapping[str, np.ndarray] = arrays) -> np.ndarray:
        feeds = {n: given[n] if n == "pool" else given[n][rows] for n in names[graph]}
        answer: np.ndarray = sessions[graph].run(None, feeds)[0]
        return answer

    everything = slice(0, 16)
    whole = {graph: run(graph, everything) for graph in modules}
    slots = arrays["slot"]
    for graph, module in modules.items():
        with torch.no_grad():
            reference = module(*(inputs[n] for n in names[graph])).numpy()
        error = np.abs(whole[graph] - reference).max()
        assert error < tolerance, (graph, error)
        yield f"{graph}: onnxruntime against torch, max error {error:.1e}"

    untouched = np.setdiff1d(np.arange(len(arrays["pool"])), slots)
    assert np.array_equal(whole["commit"][untouched], arrays["pool"][untouched])
    for graph in modules:
        for batch in BATCHES:
            for first in range(0, 16 - batch + 1, batch):
                rows = slice(first, first + batch)
                alone, among = run(graph, rows), whole[graph]
                if graph == "commit":
                    alone, among = alone[slots], among[slots]
                    alone, among = alone[rows], among[rows]
                else:
                    among = among[rows]
                assert np.array_equal(alone, among), (graph, batch, first, np.abs(alone - among).max())
    yield f"bit-identical for batches of {BATCHES}"

    dirty = dict(arrays)
    used = np.unique(arrays["table"][arrays["key_mask"]])
    dirty["pool"] = arrays["pool"].copy()
    unused = np.setdiff1d(np.arange(len(dirty["pool"])), used)
    dirty["pool"][unused] = np.float32("nan")
    dirty["table"] = np.where(arrays["key_mask"], arrays["table"], unused[0])
    assert np.array_equal(run("denoise", everything, dirty), whole["denoise"])
    assert np.array_equal(run("commit", everything, dirty)[slots], whole["commit"][slots])
    yield "NaN in unused blocks and masked slots changes nothing"

    pool = arrays["pool"].copy()
    value = ort.OrtValue.ortvalue_from_numpy(pool)
    binding = sessions["commit"].io_binding()
    for name in names["commit"]:
        bound = value if name == "pool" else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(arrays[name]))
        binding.bind_ortvalue_input(name, bound)
    binding.bind_ortvalue_output("pool_out", value)
    sessions["commit"].run_with_iobinding(binding)
    assert np.array_equal(pool, whole["commit"])
    yield "commit in place gives the same pool"
