"""Checks of an exported package: onnxruntime against torch, batch invariance, garbage, in-place commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from training.minigrid.graphs import Commit, Denoise
from training.minigrid.model import WorldModel

BATCHES = (1, 2, 3, 8, 16)


def verify(reader: WorldModel, writer: WorldModel, folder: Path, inputs: dict[str, torch.Tensor]) -> Iterator[str]:
    """Yields one line a check; raises AssertionError at the first that fails. `inputs` has a batch of 16."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    denoise = ort.InferenceSession(str(folder / "denoise.onnx"), options, providers=["CPUExecutionProvider"])
    commit = ort.InferenceSession(str(folder / "commit.onnx"), options, providers=["CPUExecutionProvider"])
    arrays = {name: value.numpy() for name, value in inputs.items()}
    arrays["x0"] = np.tanh(arrays["x"])

    def feeds(session: ort.InferenceSession, rows: slice) -> dict[str, np.ndarray]:
        names = [i.name for i in session.get_inputs()]
        return {n: arrays[n] if n == "pool" else arrays[n][rows] for n in names}

    whole = denoise.run(None, feeds(denoise, slice(0, 16)))[0]
    written = commit.run(None, feeds(commit, slice(0, 16)))[0]
    with torch.no_grad():
        names = [i.name for i in denoise.get_inputs()]
        reference = Denoise(reader)(*(inputs[n] for n in names)).numpy()
        names = [i.name for i in commit.get_inputs()]
        tensors = {**inputs, "x0": torch.from_numpy(arrays["x0"])}
        blocks = Commit(writer)(*(tensors[n] for n in names)).numpy()
    error, commit_error = np.abs(whole - reference).max(), np.abs(written - blocks).max()
    assert max(error, commit_error) < 1e-3, (error, commit_error)
    yield f"onnxruntime against torch: max error {error:.1e} (denoise), {commit_error:.1e} (commit)"

    slots = arrays["slot"]
    untouched = np.setdiff1d(np.arange(len(arrays["pool"])), slots)
    assert np.array_equal(written[untouched], arrays["pool"][untouched])
    for batch in BATCHES:
        for first in range(0, 16 - batch + 1, batch):
            rows = slice(first, first + batch)
            assert np.array_equal(denoise.run(None, feeds(denoise, rows))[0], whole[rows]), batch
            alone = commit.run(None, feeds(commit, rows))[0]
            assert np.array_equal(alone[slots[rows]], written[slots[rows]]), batch
    yield f"bit-identical for batches of {BATCHES}"

    dirty = dict(arrays)
    used = np.unique(arrays["table"][arrays["key_mask"]])
    dirty["pool"] = arrays["pool"].copy()
    unused = np.setdiff1d(np.arange(len(dirty["pool"])), used)
    dirty["pool"][unused] = np.float32("nan")
    dirty["table"] = np.where(arrays["key_mask"], arrays["table"], unused[0])
    clean, arrays = arrays, dirty
    assert np.array_equal(denoise.run(None, feeds(denoise, slice(0, 16)))[0], whole)
    assert np.array_equal(commit.run(None, feeds(commit, slice(0, 16)))[0][slots], written[slots])
    arrays = clean
    yield "NaN in unused blocks and masked slots changes nothing"

    pool = arrays["pool"].copy()
    value = ort.OrtValue.ortvalue_from_numpy(pool)
    binding = commit.io_binding()
    for name, array in feeds(commit, slice(0, 16)).items():
        bound = value if name == "pool" else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        binding.bind_ortvalue_input(name, bound)
    binding.bind_ortvalue_output("pool_out", value)
    commit.run_with_iobinding(binding)
    assert np.array_equal(pool, written)
    yield "commit in place gives the same pool"
