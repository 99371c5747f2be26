"""Trains the world model on a CPU; resumes by itself. `python -m training.doom.train --help`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from training.doom import latents, place, world
from training.doom.autoencoder import CHANNELS, load_autoencoder
from training.doom.data import DEFAULT_FOLDER
from training.doom.model import PATCH, TOKENS, ModelConfig, WorldModel, gather_past
from training.learner import Learner, adam, growing, keep_freed_memory, matrices_of, others, save_checkpoint
from training.optim import Muon

DEFAULT_CHECKPOINT = Path("out/training/doom/model.pt")
PURE_SHARE = 0.5  # of the targets begin at pure noise, where a chunk begins in service
CONTEXT_NOISE = 0.4  # most noise on a context chunk, in standard deviations
OWN_FROM = 0.5  # of the training; from there on some context chunks are the model's own
TABLE_LR = 4.0  # of the rate of other parameters: a knot is seen seldom
MAP_BATCH = 384  # frames a step while the map alone is learnt
OWN_SHARE = 0.5
app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Batch:
    latents: Tensor  # [S, T, 80, 96]
    actions: Tensor  # [S, T] int64
    poses: Tensor  # [S, T, FRAMES, 3] x, y, turns


@dataclass(frozen=True, slots=True)
class Walks:
    """All that was recorded."""

    latents: npt.NDArray[np.float16]  # [walks, chunks, 8, 10, 96]
    actions: npt.NDArray[np.uint8]  # [walks, chunks]
    poses: npt.NDArray[np.float32]  # [walks, chunks, FRAMES, 3]

    @staticmethod
    def load(folder: Path) -> Walks:
        return Walks(*(np.load(folder / f"{name}.npy") for name in ("latents", "actions", "poses")))

    def batches(self, *, sequences: int, length: int, seed: int) -> Iterator[Batch]:
        """Endless random crops."""
        rng = np.random.default_rng(seed)
        while True:
            walk = rng.integers(len(self.actions), size=sequences)[:, None]
            first = rng.integers(self.actions.shape[1] - length + 1, size=sequences)[:, None]
            chunk = first + np.arange(length)
            yield Batch(
                torch.from_numpy(self.latents[walk, chunk].astype(np.float32)).reshape(
                    sequences, length, TOKENS, PATCH
                ),
                torch.from_numpy(self.actions[walk, chunk].astype(np.int64)),
                place.beliefs(torch.from_numpy(self.poses[walk, chunk])),
            )


def channel_weights(spread: Tensor) -> Tensor:
    """Of latents [96]: between all alike (the sharpness of what is seen) and by what they weigh in pixels."""
    weight = spread.repeat(world.FRAMES) ** 0.7
    return weight / weight.mean()


def distance(x0: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    return (F.smooth_l1_loss(x0, target, beta=0.2, reduction="none") * weights).mean()


def map_loss(model: WorldModel, batch: Batch, weights: Tensor) -> tuple[Tensor, dict[str, float]]:
    """What the map alone makes of one frame's pose: a tenth of the price of the whole model."""
    frame = torch.randint(world.FRAMES, (len(batch.poses),))
    pick = torch.arange(len(frame))
    codes = batch.latents.flatten(0, 1).reshape(-1, TOKENS, world.FRAMES, CHANNELS)
    target = codes[pick, :, frame]
    guess = model.map.guess(model.map(batch.poses[pick, 0, frame][:, None]))[:, 0]
    loss = distance(guess, target, weights[:CHANNELS])
    return loss, {"map_loss": loss.item(), "map_mse": (guess.detach() - target).square().mean().item()}


def loss_of(
    model: WorldModel, batch: Batch, weights: Tensor, generator: torch.Generator, *, own: bool
) -> tuple[Tensor, dict[str, float]]:
    """Denoises every chunk but the first ones from clean, noisy or self-made chunks before it."""
    shape = batch.latents.shape[:2]
    window = model.config.window
    chosen = torch.nonzero((torch.arange(shape[1]) > 0).repeat(shape[0]))[:, 0]
    seen, guess = model.see(batch.poses.flatten(0, 1))
    target = batch.latents.flatten(0, 1)[chosen]
    action = batch.actions.flatten()[chosen]

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    clean = batch.latents
    keep = rand(len(chosen), window) > 0.1
    if own:
        with torch.no_grad():
            past = gather_past(model, clean, seen.reshape(*shape, TOKENS, -1), batch.actions, chosen, keep)
            made = model.denoise(
                randn(*target.shape), torch.ones(len(chosen)), seen[chosen], guess[chosen], action, past
            )
            answer = clean.flatten(0, 1).clone()
            answer[chosen] = made
        clean = torch.where(rand(*shape, 1, 1) < OWN_SHARE, answer.reshape(clean.shape), clean)
    level = CONTEXT_NOISE * rand(*shape, 1, 1) * (rand(*shape, 1, 1) < 0.5)
    clean = clean + level * randn(*clean.shape)
    past = gather_past(model, clean, seen.reshape(*shape, TOKENS, -1), batch.actions, chosen, keep)

    t = torch.where(rand(len(chosen)) < PURE_SHARE, torch.ones(()), 0.2 + 0.8 * rand(len(chosen)))
    x = (1 - t)[:, None, None] * target + t[:, None, None] * randn(*target.shape)
    x0 = model.denoise(x, t, seen[chosen], guess[chosen], action, past)
    loss = distance(x0, target, weights)
    pure = t == 1
    error = (x0.detach() - target).square().mean((1, 2))
    return loss, {"loss": loss.item(), "pure_mse": error[pure].mean().item(), "mse": error.mean().item()}


class Trainer(Learner[WorldModel]):
    """The learner of the world model; the map's tables learn faster."""

    def __init__(self, config: ModelConfig, *, lr_muon: float, lr_adam: float) -> None:
        model = WorldModel(config)
        # Not the map's: orthogonalizing its wide matrices would cost as much as the step.
        matrices = matrices_of(model.stack)
        tables = [p for name, p in model.named_parameters() if name.endswith("table")]
        groups = [{"params": others(model, [*matrices, *tables])}, {"params": tables, "lr": TABLE_LR * lr_adam}]
        super().__init__(model, (Muon(matrices, lr=lr_muon), adam(groups, lr_adam)), weight=growing(0.995))
        self.trained_s = 0.0

    def state(self) -> dict[str, Any]:
        return {**super().state(), "config": self.model.config.to_dict(), "trained_s": self.trained_s}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.trained_s = state["trained_s"]


def lr_schedule(progress: float) -> float:
    """Flat, then linear to nearly zero over the last 60% of the time."""
    return min(1.0, max(0.02, (1 - progress) / 0.6))


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="what data.py and latents.py made")] = DEFAULT_FOLDER,
    checkpoint: Annotated[Path, typer.Option(help="saved every two minutes, resumed when there")] = DEFAULT_CHECKPOINT,
    autoencoder: Annotated[Path, typer.Option(help="what latents.py fitted")] = latents.DEFAULT_CHECKPOINT,
    minutes: Annotated[float, typer.Option(help="resumed time included")] = 80.0,
    map_minutes: Annotated[float, typer.Option(help="of these, for the map alone")] = 60.0,
    sequences: Annotated[int, typer.Option(help="sequences a step")] = 4,
    length: Annotated[int, typer.Option(help="chunks a sequence")] = 12,
    lr_muon: float = 0.02,
    lr_adam: float = 2e-3,
    seed: int = 0,
) -> None:
    """Trains until the minutes are over. The schedule follows the clock: the machine's speed does not stand still."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(seed)
    trainer = Trainer(ModelConfig(), lr_muon=lr_muon, lr_adam=lr_adam)
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, weights_only=True))
    draw = seed * 1000 + trainer.step_count
    generator = torch.Generator().manual_seed(draw)
    walks = Walks.load(data)
    source = walks.batches(sequences=sequences, length=length, seed=draw)
    spots = walks.batches(sequences=MAP_BATCH, length=1, seed=draw)
    weights = channel_weights(load_autoencoder(autoencoder).spread)
    started, before_s = time.monotonic(), trainer.trained_s
    saved = reported = started
    totals: dict[str, list[float]] = {}
    finished = False
    while not finished:
        now = time.monotonic()
        trainer.trained_s = before_s + now - started
        progress = trainer.trained_s / 60 / minutes
        finished = progress >= 1
        if finished or now - saved > 120:
            save_checkpoint(trainer.state(), checkpoint)
            saved = now
        if trainer.trained_s / 60 < map_minutes:
            loss, stats = map_loss(trainer.model, next(spots), weights)
        else:
            loss, stats = loss_of(trainer.model, next(source), weights, generator, own=progress > OWN_FROM)
        trainer.step(loss, min(1.0, (trainer.step_count + 1) / 50) * lr_schedule(progress))
        for name, value in stats.items():
            totals.setdefault(name, []).append(value)
        if now - reported > 30:
            reported = now
            means = {name: round(sum(v) / len(v), 4) for name, v in totals.items()}
            left = round(minutes - trainer.trained_s / 60, 1)
            print(json.dumps({"step": trainer.step_count, "left": left, **means}), flush=True)
            totals = {}


if __name__ == "__main__":
    app()
