"""The contact sheet: held-out walks, the real frames above, the served ones below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
COLUMNS = (1, 2, 3, 4, 6, 8, 12, 16)  # depths shown


def save_sheet(path: Path, last: UInt8, truth: UInt8, made: UInt8, *, walks: int = 6) -> None:
    """Last frames of chunks: last [N, 64, 80, 3], real frames that both were given; truth and made
    [N, T, F, 64, 80, 3]. Of the N those `walks` whose real frames differ most: a wall met for long shows little.
    """
    shown = np.concatenate([last[:, None], truth[:, :, -1]], axis=1).astype(np.float32)
    variety = shown.std(axis=1).mean(axis=(1, 2, 3))
    width = last.shape[2]
    blocks = []
    for k in np.argsort(-variety)[:walks]:
        rows = [
            np.concatenate([last[k], *(chunks[k, depth - 1, -1] for depth in COLUMNS)], axis=1)
            for chunks in (truth, made)
        ]
        for row in rows:
            row[:, width - 1 : width + 1] = 255  # left of it, what both were given
        gap = np.full((4, rows[0].shape[1], 3), 255, np.uint8)
        blocks += [*rows, gap]
    Image.fromarray(np.concatenate(blocks[:-1])).save(path, optimize=True)
