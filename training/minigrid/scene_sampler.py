"""Draws scenes as the service does: fresh noise before each evaluation of the scene graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from training.minigrid import tiles
from training.minigrid.package import Floats, Ints, to_pixels
from training.minigrid.scene_manifest import FILE
from training.minigrid.vocabulary import tokenize

BATCH = 16


class SceneSampler:
    """`evaluate`: x [B, 1, 56, 56, 3], t [B], tokens [B, T] -> x0 like x."""

    def __init__(self, evaluate: Callable[[Floats, Floats, Ints], Floats]) -> None:
        self._evaluate = evaluate

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The scene graph of a package folder in onnxruntime, on one thread."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])

        def evaluate(x: Floats, t: Floats, tokens: Ints) -> Floats:
            x0: Floats = session.run(None, {"x": x, "t": t, "tokens": tokens})[0]
            return x0

        return cls(evaluate)

    def draw(self, prompts: Sequence[str], *, levels: Sequence[float], seed: int) -> npt.NDArray[np.uint8]:
        """One view a prompt, [n, 56, 56, 3]; an empty prompt asks for nothing."""
        parts = []
        for first in range(0, len(prompts), BATCH):
            tokens = np.stack([tokenize(prompt)[0] for prompt in prompts[first : first + BATCH]])
            shape = (len(tokens), 1, tiles.FRAME_PX, tiles.FRAME_PX, 3)
            x0 = np.zeros(shape, np.float32)
            for k, t in enumerate(levels):
                noise = np.random.Generator(np.random.Philox(key=[seed, first * 64 + k]))
                x = np.float32(1 - t) * x0 + np.float32(t) * noise.standard_normal(shape, dtype=np.float32)
                x0 = self._evaluate(x, np.full(len(tokens), t, np.float32), tokens)
            parts.append(to_pixels(x0[:, 0]))
        return np.concatenate(parts)
