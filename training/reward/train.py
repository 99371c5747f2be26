"""Trains a judge. `python -m training.reward.train --shape double --seed 0`.

Labels are pairs, wrong in a share of the cases that is told: the loss is corrected for it (forward correction, Patrini
et al., "Making Deep Neural Networks Robust to Label Noise"). A run cut short goes on from its checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from training.learner import Learner, adam, growing, keep_freed_memory, save_checkpoint
from training.reward.batches import Batch, batch, batches, labels_of
from training.reward.data import DEFAULT_FOLDER, PAIRS, SIZE, load
from training.reward.model import Dense, DoubleLayer, OneExpert, Opinion, Verdict
from training.reward.places import place_of

SHAPES: dict[str, Callable[[], nn.Module]] = {
    "double": DoubleLayer,
    "one-expert": OneExpert,
    "dense": lambda: Dense(hidden=96),
    "single": Dense,
}
STEPS_OF_TRAINING = 5600
GROUPS_A_STEP = 16
RATE = 2e-3
_WARM, _KEEP_EVERY = 50, 200
_ALIKE = 0.1
_LEFT, _RIGHT = (list(side) for side in zip(*PAIRS, strict=True))


def chance_of(opinion: Opinion) -> Tensor:
    """[groups, SIZE, ...] -> [groups, pairs, ...]: that the first of a pair is better."""
    gap = opinion.mean[:, _LEFT] - opinion.mean[:, _RIGHT]
    spread = (opinion.deviation[:, _LEFT].square() + opinion.deviation[:, _RIGHT].square()).sqrt()
    return 0.5 * (1 + torch.erf(gap / spread / math.sqrt(2)))


def pair_loss(opinion: Opinion, labels: Tensor, noise: float) -> Tensor:
    """Mean over the pairs of which something is said, each dimension counting alike, however rare its differences are.

    Pairs said to be alike count less: where most are, they would keep an expert from finding what it is to look for.
    """
    told = torch.where(labels.isnan(), 0.0, torch.where(labels == 0.5, _ALIKE, 1.0))
    said = noise + (1 - 2 * noise) * chance_of(opinion)
    said = said.clamp(1e-4, 1 - 1e-4)
    y = labels.nan_to_num(0.5)
    losses = -(y * said.log() + (1 - y) * (1 - said).log())
    mean: Tensor = ((losses * told).sum((0, 1)) / told.sum((0, 1)).clamp(min=1)).mean()
    return mean


def loss_of(verdict: Verdict, given: Batch, noise: float) -> Tensor:
    groups = len(given.categories)
    column = given.categories.repeat_interleave(SIZE).unsqueeze(1)
    whole = Opinion(*(each.gather(1, column).reshape(groups, SIZE) for each in verdict.whole))
    total = pair_loss(whole, given.whole, noise)
    if verdict.dimensions is not None:
        each = Opinion(*(part.unflatten(0, (groups, SIZE)) for part in verdict.dimensions))
        total = total + 2 * pair_loss(each, given.dimensions, noise)
    return total


def train(
    shape: str,
    noise: float,
    seed: int,
    folder: Path,
    steps: int,
    say: Callable[[str], None] = lambda _: None,
    *,
    target: Path | None = None,
) -> None:
    """Learns from the data in `folder`; the result goes to `target`, or there."""
    place = place_of(shape, noise, seed, target or folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        return
    groups = load("train", folder)
    labels = labels_of(groups, noise, seed)
    torch.manual_seed(seed)
    model = SHAPES[shape]()
    learner = Learner(model, [adam(model.parameters(), RATE)], weight=growing(0.995))
    part = place.with_suffix(".checkpoint")
    if part.exists():
        learner.load(torch.load(part, weights_only=True))
    started, seen = time.monotonic(), []
    queue: list[np.ndarray] = []
    while learner.step_count < steps:
        step = learner.step_count
        rng = np.random.default_rng([seed, 3, step])
        epoch, place_in_epoch = divmod(step, len(groups) // GROUPS_A_STEP - 3)
        if not queue:
            queue = batches(groups, GROUPS_A_STEP, np.random.default_rng([seed, 2, epoch]))
        given = batch(groups, labels, queue[place_in_epoch], rng)
        loss = loss_of(model(given.frames, given.actions, given.words), given, noise)
        factor = min(1.0, (step + 1) / _WARM) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        learner.step(loss, factor)
        seen.append(float(loss.detach()))
        if place_in_epoch == len(groups) // GROUPS_A_STEP - 4:
            queue = []
        if learner.step_count % _KEEP_EVERY == 0:
            save_checkpoint(learner.state(), part)
            rate = len(seen) / (time.monotonic() - started)
            left = (steps - learner.step_count) / rate
            loss_s = f"loss {np.mean(seen[-_KEEP_EVERY:]):.4f}, {left:.0f} s left"
            say(f"{place.stem}: {learner.step_count}/{steps}, {loss_s}")
    save_checkpoint(learner.averaged().state_dict(), place)
    part.unlink(missing_ok=True)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    shape: Annotated[str, typer.Option(help=f"one of {', '.join(SHAPES)}")] = "double",
    noise: Annotated[float, typer.Option(help="share of the labels that are wrong")] = 0.3,
    seed: Annotated[int, typer.Option(help="of weights, labels and order")] = 0,
    steps: Annotated[int, typer.Option(help="of training")] = STEPS_OF_TRAINING,
    folder: Annotated[Path, typer.Option(help="where data and results lie")] = DEFAULT_FOLDER,
    target: Annotated[Path | None, typer.Option(help="where results go, if elsewhere")] = None,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
) -> None:
    """Trains one judge, if it is missing."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    train(shape, noise, seed, folder, steps, typer.echo, target=target)


if __name__ == "__main__":
    app()
