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

from training.doom import place
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


def localiser_loss(located: Tensor, poses: Tensor) -> Tensor:
    """Negative log likelihood where errors fall off exponentially; located [N, 6], poses [N, FRAMES, 3]."""
    far, off = localiser_error(located, poses)
    place_sigma, heading_sigma = located[:, 4], located[:, 5]
    return (far / place_sigma + 2 * place_sigma.log() + off / heading_sigma + heading_sigma.log()).mean()


def localiser_error(located: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """Distance in units [N] and in heading (chord of the unit circle) [N], at the last frame."""
    far = (located[:, :2] - poses[:, -1, :2]).square().sum(-1).add(1e-8).sqrt()
    turn = poses[:, -1, 2:] * (2 * torch.pi)
    off = (located[:, 2:4] - torch.cat([turn.cos(), turn.sin()], dim=-1)).square().sum(-1).add(1e-8).sqrt()
    return far, off


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
        codes = np.load(data / "latents.npy", mmap_mode="r")
        localiser = place.Localiser()
        adam = torch.optim.AdamW(localiser.parameters(), weight_decay=0.05)
        for step in range(localiser_steps):
            at = rng.integers(train, size=BATCH // 8), rng.integers(chunks, size=BATCH // 8)
            latents = torch.from_numpy(codes[at].astype(np.float32))
            latents = latents + 0.1 * torch.randn_like(latents)
            loss = localiser_loss(localiser(latents), poses[at])
            optimise(localiser, loss, adam, rate(step, localiser_steps), 2e-3)
            if (step + 1) % 200 == 0:
                with torch.no_grad():
                    held = torch.from_numpy(codes[train:, ::4].astype(np.float32)).flatten(0, 1)
                    located = localiser(held)
                    far, off = localiser_error(located, poses[train:, ::4].flatten(0, 1))
                    sure = located[:, 4] < 0.2
                    beyond = (far > 2 * place.CAUTION * located[:, 4]).float().mean().item()
                told = {name: place.UNIT * far.quantile(q).item() for name, q in (("p50", 0.5), ("p90", 0.9))}
                told |= {"sure": sure.float().mean().item(), "sure p90": place.UNIT * far[sure].quantile(0.9).item()}
                told |= {"heading p50": off.median().item(), "beyond": beyond}
                print(json.dumps({"localiser step": step + 1, "loss": loss.item(), **told}), flush=True)
        state["localiser"] = localiser.state_dict()
        torch.save(state, checkpoint)


if __name__ == "__main__":
    app()
