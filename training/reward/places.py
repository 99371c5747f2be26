"""Where trained judges lie."""

from __future__ import annotations

from pathlib import Path

from training.reward.data import DEFAULT_FOLDER

COMPARED = "compare"  # the folder, in that of the data, of the shapes that are compared


def place_of(shape: str, noise: float, seed: int, folder: Path = DEFAULT_FOLDER) -> Path:
    """Where a trained judge lies."""
    return folder / f"{shape}-noise{round(100 * noise)}-seed{seed}.pt"
