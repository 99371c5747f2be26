"""Trains a policy: `python -m training.navigator.train --shape joint`. A run cut short goes on from its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from training.learner import (
    Learner,
    adam,
    growing,
    keep_freed_memory,
    matrices_of,
    others,
    save_checkpoint,
    with_average,
)
from training.navigator.batches import Batch, Chooser, batch
from training.navigator.data import DEFAULT_FOLDER, Demonstrations
from training.navigator.model import ACTION_MASK, MASK, SHAPES, Policy
from training.optim import Muon

STEPS = {"joint": 6000, "action-only": 6000, "reactive": 1500}  # by shape
BATCH = 32
MUON_RATE, RATE = 0.01, 2e-3
KEPT_AT = (0.1, 0.3, 1.0)  # shares of training after which the policy is kept, for `mismatch`
_WARM, _KEEP_EVERY = 50, 200


def place_of(shape: str, seed: int, folder: Path = DEFAULT_FOLDER) -> Path:
    """Where a trained policy lies."""
    return folder / f"{shape}-seed{seed}.pt"


def snapshot_of(shape: str, seed: int, step: int, folder: Path = DEFAULT_FOLDER) -> Path:
    """Where a policy lies as it was on the way."""
    return folder / f"{shape}-seed{seed}-step{step}.pt"


def losses(model: Policy, given: Batch) -> dict[str, Tensor]:
    """Mean over what is masked: of actions, and of cells of frames."""
    config = model.config
    horizon = config.horizon
    actions = given.shown_actions[:, :horizon]
    logits = model(given.view, given.around, given.words, actions, given.shown_frames[:, :horizon])
    masked = actions == ACTION_MASK
    found = {"actions": F.cross_entropy(logits[0][masked], given.actions[:, :horizon][masked])}
    if config.frames:
        hidden = given.shown_frames == MASK
        found["frames"] = F.cross_entropy(logits[1][hidden], given.frames[hidden])
    return found


def train(shape: str, seed: int, folder: Path, steps: int, say: Callable[[str], None] = lambda _: None) -> None:
    place = place_of(shape, seed, folder)
    if place.exists():
        return
    data = Demonstrations.load("train", folder)
    chooser = Chooser(data)
    torch.manual_seed(seed)
    model = Policy(SHAPES[shape])
    matrices = matrices_of(model.stack)
    learner = Learner(model, [Muon(matrices, MUON_RATE), adam(others(model, matrices), RATE)], weight=growing(0.998))
    part = place.with_suffix(".checkpoint")
    if part.exists():
        learner.load(torch.load(part, weights_only=True))
    started, first, seen = time.monotonic(), learner.step_count, []
    while learner.step_count < steps:
        step = learner.step_count
        rng = np.random.default_rng([seed, 5, step])
        given = batch(data, chooser.draw(BATCH, rng), rng)
        each = losses(model, given)
        left = min(1.0, 2 * (1 - step / steps))  # the second half falls
        learner.step(sum(each.values(), torch.zeros(())), min(1.0, (step + 1) / _WARM) * (0.02 + 0.98 * left))
        seen.append([float(loss.detach()) for loss in each.values()])
        if learner.step_count % _KEEP_EVERY == 0 or learner.step_count == steps:
            save_checkpoint(learner.state(), part)
            left_s = (steps - learner.step_count) * (time.monotonic() - started) / (learner.step_count - first)
            means = np.mean(seen[-_KEEP_EVERY:], axis=0)
            told = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(each, means, strict=True))
            say(f"{place.stem}: {learner.step_count}/{steps}, {told}, {left_s:.0f} s left")
        if learner.step_count in {round(share * steps) for share in KEPT_AT}:
            save_checkpoint(learner.averaged().state_dict(), snapshot_of(shape, seed, learner.step_count, folder))
    save_checkpoint(learner.averaged().state_dict(), place)
    part.unlink(missing_ok=True)


def load_policy(shape: str, seed: int, folder: Path = DEFAULT_FOLDER) -> Policy:
    """A trained policy, for inference; where it is still in training, as it stands."""
    model, place = Policy(SHAPES[shape]), place_of(shape, seed, folder)
    if not place.exists():
        return with_average(model, torch.load(place.with_suffix(".checkpoint"), weights_only=True)["average"])
    model.load_state_dict(torch.load(place, weights_only=True))
    return model.eval().requires_grad_(False)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    shape: Annotated[str, typer.Option(help=f"one of {', '.join(SHAPES)}")] = "joint",
    seed: Annotated[int, typer.Option(help="of weights and order")] = 0,
    steps: Annotated[int, typer.Option(help="of training; 0: as many as the shape is given")] = 0,
    folder: Annotated[Path, typer.Option(help="where data and results lie")] = DEFAULT_FOLDER,
) -> None:
    """Trains one policy, if it is missing."""
    torch.set_num_threads(1)
    keep_freed_memory()
    train(shape, seed, folder, steps or STEPS[shape], typer.echo)


if __name__ == "__main__":
    app()
