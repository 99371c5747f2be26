"""What is kept of the two trainings: the weights of the model that is not shipped, and both learning curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.mazes.model import MazeModel
from training.mazes.train import OBJECTIVES, Objective, place_of

FOLDER = Path("training/mazes/weights")
BASELINE = FOLDER / "next_token.npz"
CURVES = FOLDER / "curves.json"


def read_trained(objective: Objective, folder: Path) -> MazeModel:
    """What `training.mazes.train` left: a frozen model."""
    model = MazeModel().eval().requires_grad_(False)
    model.load_state_dict(torch.load(place_of(objective, folder), weights_only=True)["model"])
    return model


def save_state(model: MazeModel, path: Path) -> None:
    """Every parameter by name, rounded to float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: p.numpy().astype(np.float16) for name, p in model.named_parameters()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_state(path: Path) -> MazeModel:
    """A frozen model. Raises KeyError or ValueError for a file of another one."""
    model = MazeModel().eval().requires_grad_(False)
    with np.load(path) as arrays:
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(arrays[name].astype(np.float32)))
    return model


def save_curves(folder: Path) -> None:
    """Both learning curves, as points (minutes, share exact), and how many steps each took."""
    kept: dict[str, Any] = {}
    for objective in OBJECTIVES:
        state = torch.load(place_of(objective, folder), weights_only=True)
        points = [[round(at, 2), round(share, 4)] for at, share in state["curve"]]
        kept[objective] = {"steps": state["steps"], "points": points}
    CURVES.parent.mkdir(parents=True, exist_ok=True)
    CURVES.write_text(json.dumps(kept) + "\n")
