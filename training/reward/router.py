"""Trains the router: which category a goal is of, or none. Labels are wrong in the usual share of the cases."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from training.reward.batches import word_ids
from training.reward.data import Group
from training.reward.goals import WORDS, foreign, routed
from training.reward.model import JudgeConfig, Router
from training.reward.rubric import CATEGORY_NAMES

STEPS = 600
_BATCH = 128
_FOREIGN_SHARE = 0.25


def train_router(groups: list[Group], noise: float, seed: int) -> Router:
    """Learns from the goals of groups, a share of whose categories is wrong, and from goals of other trades."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 5])
    labels = np.array([group.category for group in groups])
    # Half are said otherwise.
    goals = [group.goal if rng.random() < 0.5 else routed(CATEGORY_NAMES[group.category], rng) for group in groups]
    wrong = rng.random(len(labels)) < noise
    labels = np.where(wrong, (labels + rng.integers(1, len(CATEGORY_NAMES), len(labels))) % len(CATEGORY_NAMES), labels)
    router = Router(JudgeConfig())
    optimizer = torch.optim.AdamW(router.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(STEPS):
        known = rng.integers(0, len(goals), _BATCH)
        others = [_other(rng) for _ in range(round(_BATCH * _FOREIGN_SHARE))]
        words = word_ids([*(goals[row] for row in known), *others], rng)
        target = torch.from_numpy(np.concatenate([labels[known], np.full(len(others), len(CATEGORY_NAMES))]))
        loss = nn.functional.nll_loss(_said(router(words).softmax(1), noise).log(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return router.eval().requires_grad_(False)


def _said(truth: Tensor, noise: float) -> Tensor:
    """What labels say, where a share of those of categories is another category (forward correction)."""
    known = truth[:, :-1]
    other = noise / (known.shape[1] - 1)
    return torch.cat([known * (1 - noise - other) + known.sum(1, keepdim=True) * other, truth[:, -1:]], dim=1) + 1e-6


def _other(rng: np.random.Generator) -> str:
    """A goal of no category: a sentence of another trade, or one of words that nobody knows with some that all know."""
    if rng.random() < 0.5:
        return foreign("train", rng)
    common = [str(word) for word in rng.choice(WORDS, int(rng.integers(0, 3)))]
    strange = ["strange"] * int(rng.integers(2, 6))
    return " ".join(str(word) for word in rng.permutation([*common, *strange]))
