"""Trains the odometer and the localiser: minutes on one core. `python -m training.doom.train_place --help`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from training.doom import latents as coding
from training.doom import place
from training.doom.autoencoder import CHANNELS, COLUMNS, ROWS, load_autoencoder
from training.doom.data import DEFAULT_FOLDER

DEFAULT_CHECKPOINT = Path("out/training/doom/place.pt")
BATCH = 512
HELD_OUT = 40  # walks that are not trained on, the last ones
app = typer.Typer(add_completion=False)


def odometer_error(model: place.Odometer, poses: Tensor, actions: Tensor) -> Tensor:
    """Distance [N, FRAMES] in units of predicted from true places. poses [N, 2, FRAMES, 3]; actions int64 [N]."""
    predicted = model(place.last_belief(poses[:, 0]), actions)
    error: Tensor = (predicted - poses[:, 1])[..., :2].square().sum(-1).add(1e-8).sqrt()
    return error


def localiser_loss(places: Tensor, bearings: Tensor, poses: Tensor) -> Tensor:
    """Cross-entropy against soft labels around the true poses [N, 3]."""
    far = (place.cells() - poses[:, None, :2]).square().sum(-1)
    off = place.short(place.headings() - poses[:, 2:]).square()
    label = torch.softmax(-far / (2 * (0.6 * place.CELL) ** 2), dim=-1)
    turn_label = torch.softmax(-off / (2 * (0.6 / place.BEARINGS) ** 2), dim=-1)
    loss: Tensor = F.cross_entropy(places, label) + F.cross_entropy(bearings, turn_label)
    return loss


def localiser_error(places: Tensor, bearings: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """Distance in units [N] and in turns [N] of what a first chunk would be taken for, poses [N, 3]."""
    nothing = torch.zeros(len(poses), place.BELIEF)
    moved = torch.zeros(len(poses), 4, 3)
    _, belief = place.corrected(moved, nothing, torch.zeros(len(poses), dtype=torch.bool), places, bearings)
    return (belief[:, :2] - poses[:, :2]).norm(dim=-1), place.short(belief[:, 2] - poses[:, 2]).abs()


def rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def optimise(model: nn.Module, loss: Tensor, adam: torch.optim.Optimizer, factor: float, lr: float) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    for group in adam.param_groups:
        group["lr"] = lr * factor
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    adam.zero_grad(set_to_none=True)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="what data.py and latents.py made")] = DEFAULT_FOLDER,
    checkpoint: Annotated[
        Path, typer.Option(help="saved at the end of each part; a part that is there is kept")
    ] = DEFAULT_CHECKPOINT,
    autoencoder: Annotated[Path, typer.Option(help="what latents.py fitted")] = coding.DEFAULT_CHECKPOINT,
    odometer_steps: int = 8000,
    localiser_steps: int = 3000,
    seed: int = 0,
) -> None:
    """Trains both, and prints the errors on held-out walks, in map units."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    poses = place.beliefs(torch.from_numpy(np.load(data / "poses.npy")))  # [walks, chunks, FRAMES, 3]
    actions = torch.from_numpy(np.load(data / "actions.npy").astype(np.int64))
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {}
    train, chunks = len(poses) - HELD_OUT, poses.shape[1]
    if "odometer" not in state:
        odometer = place.Odometer()
        adam = torch.optim.AdamW(odometer.parameters(), weight_decay=1e-4)
        total = 0.0
        for step in range(odometer_steps):
            walk = torch.from_numpy(rng.integers(train, size=BATCH))
            chunk = torch.from_numpy(rng.integers(1, chunks, size=BATCH))
            pair = torch.stack([poses[walk, chunk - 1], poses[walk, chunk]], dim=1)
            loss = odometer_error(odometer, pair, actions[walk, chunk]).mean()
            total += loss.item()
            optimise(odometer, loss, adam, rate(step, odometer_steps), 2e-3)
            if (step + 1) % 500 == 0:
                with torch.no_grad():
                    pair = torch.stack([poses[train:, :-1], poses[train:, 1:]], dim=2).flatten(0, 1)
                    errors = odometer_error(odometer, pair, actions[train:, 1:].flatten())[:, -1] * place.UNIT
                told = {
                    "mean": errors.mean().item(),
                    "p50": errors.median().item(),
                    "p95": errors.quantile(0.95).item(),
                }
                print(
                    json.dumps({"odometer step": step + 1, "train": total / 5 * place.UNIT / 100, **told}), flush=True
                )
                total = 0.0
        state["odometer"] = odometer.state_dict()
        torch.save(state, checkpoint)
    if "localiser" not in state:
        codes = np.load(data / "latents.npy", mmap_mode="r").reshape(len(poses), chunks, ROWS, COLUMNS, -1, CHANNELS)
        localiser = place.Localiser()
        spread = load_autoencoder(autoencoder).spread
        localiser.weight.copy_((spread / spread[3]).sqrt())
        adam = torch.optim.AdamW(localiser.parameters(), weight_decay=0.05)
        held = torch.from_numpy(codes[train:, ::4, :, :, -1].astype(np.float32)).flatten(0, 1)
        for step in range(localiser_steps):
            one, two, three = (rng.integers(n, size=BATCH // 4) for n in (train, chunks, codes.shape[4]))
            latents = torch.from_numpy(codes[one, two, :, :, three].astype(np.float32))
            places, bearings = localiser(latents + 0.2 * torch.randn_like(latents))
            loss = localiser_loss(places, bearings, poses[one, two, three])
            optimise(localiser, loss, adam, rate(step, localiser_steps), 2e-3)
            if (step + 1) % 200 == 0:
                with torch.no_grad():
                    localiser.eval()
                    places, bearings = localiser(held)
                    far, off = localiser_error(places, bearings, poses[train:, ::4, -1].flatten(0, 1))
                    localiser.train()
                told = {f"p{q}": place.UNIT * far.quantile(q / 100).item() for q in (50, 75, 90)}
                told |= {f"degrees p{q}": 360 * off.quantile(q / 100).item() for q in (50, 75, 90)}
                print(json.dumps({"localiser step": step + 1, "loss": loss.item(), **told}), flush=True)
        state["localiser"] = localiser.state_dict()
        torch.save(state, checkpoint)


if __name__ == "__main__":
    app()
