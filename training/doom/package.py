"""The model package in onnxruntime, without the video service: paged pool, block tables, in-place commit as there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import yaml

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]


def to_pixels(x: Floats) -> UInt8:
    """Model range [-1, 1] to uint8 RGB."""
    return np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)


def from_pixels(frames: UInt8) -> Floats:
    return frames.astype(np.float32) / np.float32(127.5) - np.float32(1)


class Package:
    """The four graphs and the manifest of a package folder."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        self.manifest: dict[str, Any] = yaml.safe_load((folder / "model.yaml").read_text())
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._sessions = {
            name: ort.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
            for name, file in self.manifest["files"].items()
        }
        self.window: int = self.manifest["kv"]["window"]
        self.action_names: list[str] = self.manifest["action"]["names"]

    def run(self, name: str, feeds: dict[str, Any]) -> Floats:
        """The one output of a graph."""
        answer: Floats = self._sessions[name].run(None, feeds)[0]
        return answer

    def commit(self, pool: Floats, feeds: dict[str, Any]) -> None:
        """Writes the blocks of `feeds` into the pool, in place."""
        value = ort.OrtValue.ortvalue_from_numpy(pool)  # shares the array's memory
        binding = self._sessions["commit"].io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        binding.bind_ortvalue_input("pool", value)
        binding.bind_ortvalue_output("pool_out", value)
        self._sessions["commit"].run_with_iobinding(binding)

    def levels(self, nfe: int | None = None) -> list[float]:
        """The schedule of `nfe` evaluations, of the default when None."""
        sampler = self.manifest["sampler"]
        levels: list[float] = sampler["schedules"][nfe or sampler["default_nfe"]]
        return levels


class Histories:
    """A batch of sessions in lockstep under a sliding window; each owns window + 1 blocks of one pool."""

    def __init__(self, package: Package, batch: int, *, seed: int) -> None:
        kv = package.manifest["kv"]
        self._package, self._batch, self._seed = package, batch, seed
        self._ring = package.window + 1
        shape = (batch * self._ring, kv["layers"], 2, kv["heads"], kv["tokens"], kv["head_dim"])
        self.pool = np.zeros(shape, np.float32)
        self._chunk = 0

    def _context(self, actions: Ints) -> dict[str, Any]:
        window = self._package.window
        count = min(self._chunk, window)
        recent = np.arange(self._chunk - count, self._chunk) % self._ring
        row = np.concatenate([recent, np.zeros(window - count, np.int64)]).astype(np.int64)
        table = np.arange(self._batch, dtype=np.int64)[:, None] * self._ring + row
        return {
            "action": actions,
            "position": np.full(self._batch, count, np.int64),
            "table": table,
            "key_mask": np.broadcast_to(np.arange(window) < count, table.shape).copy(),
        }

    @property
    def _slots(self) -> Ints:
        return np.arange(self._batch, dtype=np.int64) * self._ring + self._chunk % self._ring

    def observe(self, frames: UInt8, actions: Ints) -> None:
        """Commits chunks [B, F, 64, 80, 3]; actions [B] led to them (the action after the last name for a first)."""
        latents = self._package.run("encode", {"frames": from_pixels(frames)})
        self._package.commit(self.pool, {**self._context(actions), "x0": latents, "slot": self._slots})
        self._chunk += 1

    def step(self, actions: Ints, *, nfe: int | None = None) -> UInt8:
        """Generates and commits the next chunks [B, F, 64, 80, 3]; what is committed is what was shown."""
        context = {**self._context(actions), "pool": self.pool}
        levels, kind = self._package.levels(nfe), self._package.manifest["sampler"]["kind"]
        shape = (self._batch, *self._package.manifest["latent"]["shape"])
        x = x0 = self._noise(shape, 0)
        for k, t in enumerate(levels):
            x0 = self._package.run("denoise", {**context, "x": x, "t": np.full(self._batch, t, np.float32)})
            if k + 1 < len(levels):
                after = np.float32(levels[k + 1])
                noise = self._noise(shape, k + 1) if kind == "renoise" else (x - np.float32(1 - t) * x0) / np.float32(t)
                x = (1 - after) * x0 + after * noise
        frames = to_pixels(self._package.run("decode", {"latents": x0}))
        self.observe(frames, actions)
        return frames

    def _noise(self, shape: tuple[int, ...], step: int) -> Floats:
        generator = np.random.Generator(np.random.Philox(key=[self._seed, self._chunk * 64 + step]))
        return generator.standard_normal(shape, dtype=np.float32)
