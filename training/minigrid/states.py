"""The parameters of a model as a small .npz of half floats, by name: what is kept of models that are not shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training.minigrid.model import ModelConfig, WorldModel

FOLDER = Path("training/minigrid/weights")
TEACHER = FOLDER / "teacher.npz"


def save_state(model: WorldModel, path: Path) -> None:
    """Writes every parameter that is not all zero, rounded to float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: p.detach().numpy().astype(np.float16) for name, p in model.named_parameters() if p.any()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_state(path: Path, config: ModelConfig | None = None) -> WorldModel:
    """A frozen model. Parameters that the file lacks are zero, and do nothing.

    Raises ValueError for a file of another model.
    """
    model = WorldModel(config or ModelConfig()).eval().requires_grad_(False)
    with np.load(path) as arrays:
        found = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files}
    for name, p in model.named_parameters():
        if name in found:
            p.copy_(found.pop(name))
        elif p.any():
            raise ValueError(f"{path} has no {name}")
    if found:
        raise ValueError(f"{path} has {sorted(found)}, which the model has not")
    return model
