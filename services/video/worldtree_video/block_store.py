"""The blocks of one storage format on the device, and the graphs that read and write them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from worldtree_runtime.inference import open_session
from worldtree_runtime.video_package import StoredVideo

from worldtree_video import formats
from worldtree_video.domain import Storage, Summary, SummaryKind
from worldtree_video.stored_block import StoredBlock

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[Any]]


class BlockStore:
    """A pool of blocks of one format. Every method but `frames` belongs to the engine's thread.

    Each stored tensor [blocks, ...] is one OrtValue on the device and stays where it is: graphs gather from it, and
    write it in place because their output is bound to their own input (an unbound ScatterND copies the pool: 1 s at
    2 GB). So nothing here but single blocks, when they are asked for, ever crosses between device and host.

    CUDA graphs are not used: one is captured for fixed shapes and addresses, and each tick has its own number of
    members, so there would be one to capture, to keep and to warm up for each batch size and format.
    """

    def __init__(
        self,
        stored: StoredVideo,
        storage: Storage,
        *,
        block_count: int,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        kv = stored.package.kv
        self._pose = kv.pose
        self.storage = storage
        self.block_count = block_count
        self.device = device
        self.spec = formats.block_spec(kv, storage)
        self.block_bytes = formats.block_bytes(kv, storage)
        # One block more than is handed out, always zero, fills up short tables: a NaN in a block that somebody holds
        # would get past a mask (0 x NaN is NaN) into every session whose padding pointed there.
        self.blank = block_count

        def session(path: Path, graph: bytes | None) -> ort.InferenceSession:
            return open_session(path, graph=graph, device=device, threads=threads)

        files = stored.package.files
        denoise, commit = stored.folder / files.denoise, stored.folder / files.commit
        own = storage is Storage.FP32  # what the package's graphs are written for
        self.denoise = session(denoise, None if own else formats.denoise_graph(denoise, kv, storage))
        self.commit = session(commit, None if own else formats.commit_graph(commit, kv, storage))
        self._read = session(stored.folder / "read", formats.read_graph(kv, storage))
        self._write = session(stored.folder / "write", formats.write_graph(kv, storage))
        self._summarise = session(stored.folder / "summary", formats.summary_graph(kv, storage))
        self._table = "table" if own else formats.TABLE
        self._inputs = {"pool": "kv"} if own else {formats.stored(name): name for name in self.spec}
        self._outputs = {"pool_out": "kv"} if own else {formats.written(name): name for name in self.spec}
        # After the graphs, which say plainly what a device lacks. These are zeros that the system hands out as they are
        # touched: a pool that nobody uses costs address space only.
        self._tensors = {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros((block_count + 1, *form.shape), form.dtype), device, 0)
            for name, form in self.spec.items()
        }
        self._pixels = np.zeros((block_count, *stored.package.chunk_shape), np.uint8)  # [blocks, frames, h, w, 3]

    def run_denoise(self, inputs: Inputs, table: NDArray[np.int64]) -> Array:
        """x0 [batch, *sample_shape] of the package's denoiser over the blocks that `table` lists."""
        binding = self._bind(self.denoise, {**inputs, self._table: table}, self._inputs)
        binding.bind_output("x0", "cpu")
        self.denoise.run_with_iobinding(binding)
        x0: Array = binding.get_outputs()[0].numpy()
        return x0

    def run_commit(self, inputs: Inputs, table: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Writes the blocks `inputs["slot"]` of these chunks in place, and keeps their pixels."""
        binding = self._bind(self.commit, {**inputs, self._table: table}, self._inputs)
        for output, name in self._outputs.items():
            binding.bind_ortvalue_output(output, self._tensors[name])
        self.commit.run_with_iobinding(binding)
        self._pixels[inputs["slot"]] = pixels

    def frames(self, block_id: int) -> bytes:
        """Pixels of a committed chunk. Any thread, while the block is held."""
        return bytes(self._pixels[block_id])

    def read(self, block_ids: Sequence[int]) -> list[StoredBlock]:
        """Copies of blocks."""
        if not block_ids:
            return []
        index = np.array(block_ids, np.int64)
        binding = self._bind(self._read, {"index": index}, self._pool_inputs())
        for name in self.spec:
            binding.bind_output(name, "cpu")
        self._read.run_with_iobinding(binding)
        rows = dict(zip(self.spec, (value.numpy() for value in binding.get_outputs()), strict=True))
        # Each a copy of its own: a block that is kept must not keep those read with it.
        return [
            StoredBlock({name: row[place].copy() for name, row in rows.items()}, self._pixels[block_id].copy())
            for place, block_id in enumerate(block_ids)
        ]

    def write(self, block_ids: Sequence[int], blocks: Sequence[StoredBlock]) -> None:
        """Puts copies back, into blocks that were allocated for them; they must fit `spec`."""
        if not block_ids:
            return
        index = np.array(block_ids, np.int64)
        rows = {name: np.stack([block.tensors[name] for block in blocks]) for name in self.spec}
        binding = self._bind(self._write, {"index": index, **rows}, self._pool_inputs())
        for name in self.spec:
            binding.bind_ortvalue_output(formats.written(name), self._tensors[name])
        self._write.run_with_iobinding(binding)
        self._pixels[index] = np.stack([block.pixels for block in blocks])

    def summaries(self, block_ids: Sequence[int]) -> list[Summary]:
        """What a policy may compare of each block: its pose where the package keeps one, else a mean of its keys."""
        if not block_ids:
            return []
        index = np.array(block_ids, np.int64)  # held until it was read: older bindings do not
        binding = self._bind(self._summarise, {"index": index}, self._pool_inputs())
        binding.bind_output("summary", "cpu")
        self._summarise.run_with_iobinding(binding)
        return [self._summary(row) for row in binding.get_outputs()[0].numpy().tolist()]

    def addresses(self) -> dict[str, int]:
        """Where each stored tensor lies: it never moves."""
        return {name: value.data_ptr() for name, value in self._tensors.items()}

    def _summary(self, numbers: list[float]) -> Summary:
        pose = self._pose
        if pose is None:
            return Summary(SummaryKind.KEY, tuple(numbers))
        x, y, turns = numbers[0] / pose.step, numbers[1] / pose.step, numbers[2] / pose.turn % 1.0
        # Rounded, so that what is a whole number of steps away is told as one.
        x += round(pose.ahead * math.cos(math.tau * turns), 9)
        y += round(pose.ahead * math.sin(math.tau * turns), 9)
        return Summary(SummaryKind.POSE, (x, y, turns))

    def _pool_inputs(self) -> dict[str, str]:
        return {formats.stored(name): name for name in self.spec}

    def _bind(self, session: ort.InferenceSession, inputs: Inputs, pool: Mapping[str, str]) -> ort.IOBinding:
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
        # A commit may read nothing of some stored tensors but still writes them, so each graph takes them all.
        for name, tensor in pool.items():
            binding.bind_ortvalue_input(name, self._tensors[tensor])
        return binding
