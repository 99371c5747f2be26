"""Trains the scene model on a CPU; resumes by itself. `python -m training.minigrid.scene_train --help`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from training.learner import Learner, adam, growing, keep_freed_memory, matrices_of, others, save_checkpoint
from training.minigrid import tiles
from training.minigrid.data import FIRST_SEED
from training.minigrid.scene_data import SceneBatch, Views
from training.minigrid.scene_model import SceneConfig, SceneModel
from training.minigrid.train import DEFAULT_DATA
from training.optim import Muon

DEFAULT_CHECKPOINT = Path("out/training/minigrid/scene.pt")
UNASKED = 0.12  # share of the views whose prompt is dropped
LR_MUON, LR_ADAM = 0.02, 3e-3
app = typer.Typer(add_completion=False)


def noise_levels(count: int, rng: np.random.Generator) -> Tensor:
    """A sixth at pure noise, the rest evenly in log((1 - t) / t) from t = 0.3 to 0.98, where tiles are told apart."""
    low, high = np.log(0.02 / 0.98), np.log(0.7 / 0.3)
    level = 1 / (1 + np.exp(rng.uniform(low, high, count)))
    return torch.from_numpy(np.where(rng.random(count) < 1 / 6, 1.0, level).astype(np.float32))


def loss_of(model: SceneModel, batch: SceneBatch, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the tiles of noisy views."""
    ids, tokens = torch.from_numpy(batch.ids), torch.from_numpy(batch.tokens)
    clean = model.codebook[ids]
    t = noise_levels(len(ids), rng)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    noisy = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
    likelihood = model.log_likelihood(noisy, t)
    logits = model.prior(noisy, t, likelihood, tokens) + likelihood
    per_cell = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").reshape(ids.shape)
    loss = per_cell.mean()
    with torch.no_grad():
        thing = (ids >= tiles.GOAL) & (ids < tiles.OBJECT_COUNT)
        pure, asked = (t == 1)[:, None], (tokens > 0).any(-1)[:, None]
        stats = {
            "loss": loss.item(),
            "asked": per_cell[(asked & pure).expand_as(ids)].mean().item(),
            "unasked": per_cell[(~asked & pure).expand_as(ids)].mean().item(),
            "things": per_cell[thing].mean().item(),
        }
    return loss, stats


def learner(config: SceneConfig) -> Learner[SceneModel]:
    """A model of this shape that has learnt nothing yet."""
    model = SceneModel(config)
    matrices = matrices_of(model.stack, model.of_text)
    optimizers = (Muon(matrices, lr=LR_MUON), adam(others(model, matrices), LR_ADAM))
    return Learner(model, optimizers, weight=growing(0.998))


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="what data.py made")] = DEFAULT_DATA,
    checkpoint: Annotated[Path, typer.Option(help="saved every two minutes, resumed when there")] = DEFAULT_CHECKPOINT,
    steps: Annotated[int, typer.Option(help="in all, resumed ones included")] = 3100,
    batch: Annotated[int, typer.Option(help="views a step")] = 32,
    seed: int = 0,
) -> None:
    """Trains for a number of steps: flat rates, then linear to nearly zero over the last 60%."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(seed)
    config = SceneConfig()
    trainer = learner(config)
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, weights_only=True))
    views = Views(data)
    source = views.batches(batch, seed=FIRST_SEED["train"] + seed, first=trainer.step_count, unasked=UNASKED)
    totals: dict[str, list[float]] = {}
    first, started = trainer.step_count, time.monotonic()
    saved = reported = started
    while trainer.step_count < steps:
        rng = np.random.default_rng([seed, trainer.step_count, 1])
        loss, stats = loss_of(trainer.model, next(source), rng)
        progress = trainer.step_count / steps
        trainer.step(loss, min(1.0, (trainer.step_count + 1) / 50, max(0.02, (1 - progress) / 0.6)))
        for name, value in stats.items():
            if value == value:  # no such cell in the batch gives NaN
                totals.setdefault(name, []).append(value)
        now = time.monotonic()
        if now - saved > 120 or trainer.step_count == steps:
            save_checkpoint({**trainer.state(), "config": config.to_dict()}, checkpoint)
            saved = now
        if now - reported > 30:
            reported = now
            left = (now - started) / (trainer.step_count - first) * (steps - trainer.step_count)
            means = {name: round(sum(v) / len(v), 4) for name, v in totals.items()}
            print(json.dumps({"step": trainer.step_count, "minutes_left": round(left / 60, 1), **means}), flush=True)
            totals = {}


if __name__ == "__main__":
    app()
