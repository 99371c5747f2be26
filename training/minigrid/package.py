"""A model package in onnxruntime, without the video service: paged pool, block tables, in-place commit as there.

Its `denoise` may be run with other parameters than its own: a .npz by name, as `training.minigrid.states` writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import yaml

from training.minigrid import pose

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]


BUFFERS = ("codebook", "offsets", "ego", "frequencies")  # the same in every model


def to_pixels(x: Floats) -> UInt8:
    """Model range [-1, 1] to uint8 RGB."""
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def from_pixels(frames: UInt8) -> Floats:
    return frames.astype(np.float32) / np.float32(127.5) - np.float32(1)


def initializers(graph: Path, parameters: Path) -> dict[str, ort.OrtValue]:
    """The parameters of a file, by the names of the graph's initialisers. What the file lacks is zero."""
    values: dict[str, ort.OrtValue] = {}
    with np.load(parameters) as arrays:
        for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
            if not tensor.name.startswith("model.") or tensor.name.removeprefix("model.") in BUFFERS:
                continue
            name = tensor.name.removeprefix("model.")
            turned = name.removesuffix(".T")
            value = arrays[turned].astype(np.float32) if turned in arrays else None
            if value is None:
                value = np.zeros(tuple(tensor.dims), np.float32)
            elif turned != name:
                value = np.ascontiguousarray(value.T)
            values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(value)
    return values


class Package:
    """The graphs and the manifest of a package folder, and one pool of blocks."""

    def __init__(self, folder: Path, *, block_count: int, threads: int = 1, parameters: Path | None = None) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        files = self.manifest["files"]
        providers = ["CPUExecutionProvider"]
        self._commit = ort.InferenceSession(str(folder / files["commit"]), options, providers=providers)
        values = {} if parameters is None else initializers(folder / files["denoise"], parameters)
        if values:
            options.add_external_initializers(list(values), list(values.values()))
        self._denoise = ort.InferenceSession(str(folder / files["denoise"]), options, providers=providers)
        self._marked: bool = self.manifest.get("cache_quality", False)
        kv = self.manifest["kv"]
        self.window: int = kv["window"]
        shape = (block_count, kv["layers"], 2, kv["heads"], kv["tokens"], kv["head_dim"])
        self.pool = np.zeros(shape, np.float32)
        self._pool_value = ort.OrtValue.ortvalue_from_numpy(self.pool)  # shares the array's memory

    def denoise(
        self,
        x: Floats,
        t: float,
        action: Ints,
        position: Ints,
        table: Ints,
        key_mask: npt.NDArray[np.bool_],
        quality: Floats,
    ) -> Floats:
        feeds = {
            "x": x,
            "t": np.full(len(x), t, np.float32),
            "action": action,
            "position": position,
            "table": table,
            "key_mask": key_mask,
        }
        if self._marked:
            feeds["cache_quality"] = quality
        values = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for name, v in feeds.items()}
        values["pool"] = self._pool_value
        answer: Floats = self._denoise.run_with_ort_values(["x0"], values)[0].numpy()
        return answer

    def commit(
        self,
        x0: Floats,
        action: Ints,
        position: Ints,
        table: Ints,
        key_mask: npt.NDArray[np.bool_],
        quality: Floats,
        slot: Ints,
    ) -> None:
        binding = self._commit.io_binding()
        feeds = {"x0": x0, "action": action, "position": position, "table": table, "key_mask": key_mask, "slot": slot}
        if self._marked:
            feeds["cache_quality"] = quality
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)))
        binding.bind_ortvalue_input("pool", self._pool_value)
        binding.bind_ortvalue_output("pool_out", self._pool_value)
        self._commit.run_with_iobinding(binding)

    def schedule(self, nfe: int) -> list[float]:
        levels: list[float] = self.manifest["sampler"]["schedules"][nfe]
        return levels


class Histories:
    """A batch of sessions in lockstep under a sliding window; each owns window + 1 blocks of the pool."""

    def __init__(self, package: Package, batch: int, *, seed: int) -> None:
        assert batch * (package.window + 1) <= len(package.pool), (batch, len(package.pool))
        self._package = package
        self._batch = batch
        self._chunk = 0
        self._seed = seed
        self._quality = np.zeros(package.window + 1, np.float32)  # evaluations by block of the ring; 0: given

    def _table(self) -> tuple[Ints, Ints, npt.NDArray[np.bool_], Floats]:
        """Position [B], table [B, W] oldest first, key mask [B, W], cache quality [B, W]."""
        window, ring = self._package.window, self._package.window + 1
        count = min(self._chunk, window)
        recent = (np.arange(self._chunk - count, self._chunk) % ring).astype(np.int64)
        row = np.concatenate([recent, np.zeros(window - count, np.int64)])
        table = np.arange(self._batch, dtype=np.int64)[:, None] * ring + row
        mask = np.broadcast_to(np.arange(window) < count, table.shape).copy()
        quality = np.where(mask, self._quality[row], np.float32(0))
        return np.full(self._batch, count, np.int64), table, mask, quality

    def observe(self, frames: UInt8, actions: Ints, *, nfe: int = 0) -> None:
        """Commits frames [B, 56, 56, 3]; actions [B] led to them (NONE for a first frame); 0 evaluations: given."""
        x0 = from_pixels(frames)[:, None]
        position, table, mask, quality = self._table()
        ring = self._package.window + 1
        slot = np.arange(self._batch, dtype=np.int64) * ring + self._chunk % ring
        self._package.commit(x0, actions, position, table, mask, quality, slot)
        self._quality[self._chunk % ring] = nfe
        self._chunk += 1

    def step(self, actions: Ints, *, levels: list[float], kind: str) -> UInt8:
        """Generates and commits the next frames [B, 56, 56, 3]."""
        position, table, mask, quality = self._table()
        size = self._package.manifest["frame"]["height_px"]
        shape = (self._batch, 1, size, size, 3)
        x = self._noise(shape, 0)
        for k, t in enumerate(levels):
            x0 = self._package.denoise(x, t, actions, position, table, mask, quality)
            if k + 1 < len(levels):
                after = np.float32(levels[k + 1])
                noise = self._noise(shape, k + 1) if kind == "renoise" else (x - np.float32(1 - t) * x0) / np.float32(t)
                x = (1 - after) * x0 + after * noise
        frames = to_pixels(x0[:, 0])
        self.observe(frames, actions, nfe=len(levels))  # what is committed is what was shown, rounded
        return frames

    def _noise(self, shape: tuple[int, ...], step: int) -> Floats:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, self._chunk * 64 + step]))
        return generator.standard_normal(shape, dtype=np.float32)


def none_actions(batch: int) -> Ints:
    return np.full(batch, pose.NONE, np.int64)
