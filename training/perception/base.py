"""The base: learns what is free, wall, thing or unseen, through every camera. No expert's labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.learner import Learner, growing, save_checkpoint
from training.perception.cameras import CAMERAS, CLEAN, draw, shoot_mixed
from training.perception.data import Domain
from training.perception.model import Backbone, CoarseReader, ModelConfig
from training.perception.tasks import coarse_map

STEPS = 4500
BATCH = 64
RATE = 2e-3
LOWEST_SEVERITY = 0.5
_SAVE_EVERY = 500


class BaseModel(nn.Module):
    """The backbone and what it is taught with."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(ModelConfig())
        self.reader = CoarseReader(ModelConfig())


def train_base(
    domains: dict[str, Domain], seed: int, checkpoint: Path, *, steps: int = STEPS, say: Callable[[str], None] = print
) -> Backbone:
    """A frozen base, its moving average. Goes on from the checkpoint where there is one; the same seed gives the same
    base whether it was cut short or not.
    """
    torch.manual_seed(seed)
    model = BaseModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    learner = Learner(model, [optimizer], weight=growing(0.998))
    if checkpoint.exists():
        learner.load(torch.load(checkpoint, weights_only=True))
    ids = np.concatenate([domain.ids for domain in domains.values()])
    started, first = time.monotonic(), learner.step_count
    while learner.step_count < steps:
        step = learner.step_count
        rng = np.random.default_rng([seed, 1, step])
        chosen = ids[rng.integers(0, len(ids), BATCH)]
        cameras = rng.choice([*CAMERAS, CLEAN], BATCH)
        images = torch.from_numpy(shoot_mixed(draw(chosen), cameras, rng, LOWEST_SEVERITY))
        loss = model.reader.loss(model.backbone, images, torch.from_numpy(coarse_map(chosen)))
        learner.step(loss, min(1.0, (step + 1) / 100, 2.0 * (1 - step / steps)))
        if learner.step_count % _SAVE_EVERY == 0 or learner.step_count == steps:
            save_checkpoint(learner.state(), checkpoint)
            rate = BATCH * (learner.step_count - first) / (time.monotonic() - started)
            say(f"base, seed {seed}: step {learner.step_count}/{steps}, loss {loss.item():.3f}, {rate:.0f} images/s")
    return learner.averaged().backbone
