"""Where what is made of each seed of training lies."""

from __future__ import annotations

from pathlib import Path

from training.perception.data import DEFAULT_FOLDER
from training.perception.served import DEFAULT_PACKAGE

STRANGERS_FILE = Path("training/perception/weights/strangers.safetensors")


def folder_of(seed: int, folder: Path = DEFAULT_FOLDER) -> Path:
    return folder / f"seed-{seed}"


def package_of(seed: int, folder: Path = DEFAULT_FOLDER) -> Path:
    """The package of a seed; seed 0 is the one that is shipped."""
    return DEFAULT_PACKAGE if seed == 0 else folder_of(seed, folder) / "package"


def strangers_of(seed: int, folder: Path = DEFAULT_FOLDER) -> Path:
    """The experts nobody asks for."""
    return STRANGERS_FILE if seed == 0 else folder_of(seed, folder) / "strangers.safetensors"
