"""Does a better picture of the future make a better driver? `python -m training.navigator.mismatch`.

Three checkpoints of one network, on the way and at the end: how well it foretells frames (with the actions known, as a
world model is measured), and how often it gets there. After Lambert et al., "Objective Mismatch in Model-based
Reinforcement Learning": likelihood alone does not say what a world model is worth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from training.navigator.batches import batch
from training.navigator.data import DEFAULT_FOLDER, Demonstrations
from training.navigator.driving import drive, served
from training.navigator.evaluate import JOINT
from training.navigator.figures import FOLDER
from training.navigator.missions import MULTI_ROOM, ONE_ROOM
from training.navigator.model import MASK, SHAPES, Policy

_CHUNKS = 512  # of the held-out demonstrations


def foretold(model: Policy, data: Demonstrations) -> tuple[float, float]:
    """Of frames whose actions are known: nats a cell, and the share of cells whose likeliest picture is right."""
    rng = np.random.default_rng(3)
    losses, right = [], []
    for _ in range(_CHUNKS // 32):
        given = batch(data, rng.integers(0, len(data.starts), 32), rng)
        masked = torch.full_like(given.frames, MASK)
        with torch.no_grad():
            _, logits = model(given.view, given.around, given.words, given.actions, masked)
        losses.append(float(F.cross_entropy(logits.flatten(0, 2), given.frames.flatten())))
        right.append(float((logits.argmax(-1) == given.frames).float().mean()))
    return float(np.mean(losses)), float(np.mean(right))


def mean_of(found: dict[str, float]) -> float:
    return float(np.mean(list(found.values())))


app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="where checkpoints and data lie")] = DEFAULT_FOLDER,
    count: Annotated[int, typer.Option(help="episodes of each environment")] = 100,
    seed: Annotated[int, typer.Option(help="of training")] = 0,
    json_file: Annotated[Path, typer.Option("--json", help="where the figures go")] = (FOLDER / "mismatch.json"),
) -> None:
    """Prints likelihood and accuracy of frames against success, checkpoint by checkpoint."""
    data = Demonstrations.load("validation", folder)
    snapshots = sorted(folder.glob(f"joint-seed{seed}-step*.pt"), key=lambda path: int(path.stem.split("step")[1]))
    table = Table(title="what is foretold, and what is done")
    for name in ("steps of training", "nats a cell", "cells right", "one room", "several rooms"):
        table.add_column(name, justify="right")
    rows = []
    for path in snapshots:
        model = Policy(SHAPES[JOINT])
        model.load_state_dict(torch.load(path, weights_only=True))
        model.eval().requires_grad_(False)
        nats, right = foretold(model, data)
        with served(model, JOINT) as policy:
            one, several = (mean_of(drive(policy, JOINT, group, count)) for group in (ONE_ROOM, MULTI_ROOM))
        step = int(path.stem.split("step")[1])
        rows.append({"steps": step, "nats": nats, "right": right, "one_room": one, "several_rooms": several})
        table.add_row(f"{step:,}", f"{nats:.3f}", f"{right:.3f}", f"{one:.3f}", f"{several:.3f}")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(rows, indent=1) + "\n")
    Console(width=120).print(table)


if __name__ == "__main__":
    app()
