"""The map from preferences to coefficients, learned without labels (Pareto set learning, Lin et al. 2022).

Coefficients of a preference p are sum_k p_k corners[k]; the corners minimise the mean over preferences of
sum_k p_k KL(expert k's answers, merge's answers) on images of each task's own domain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from training.perception.data import Domain
from training.perception.experts import TaskVector
from training.perception.model import Backbone
from training.perception.tasks import TASK_NAMES

IMAGES = 512  # of each task
STEPS = 240
IMAGES_A_STEP = 24  # of each task
RATE = 0.04
START = 0.3


class Merger:
    """Merges as functions of coefficients, with exact gradients."""

    def __init__(
        self,
        base: Backbone,
        heads: dict[str, nn.Linear],
        task_vectors: dict[str, TaskVector],
        domains: dict[str, Domain],
    ) -> None:
        self._base, self._heads = base, heads
        self._layers = list(base.layers().values())
        self._start = dict(base.named_parameters())
        # Rounded as the package stores them, so that the map is of what is served.
        self._stacked = {
            name: torch.stack([task_vectors[task][name].half().float() for task in TASK_NAMES]) for name in self._start
        }
        rng = np.random.default_rng(17)
        self._images = {task: torch.from_numpy(domains[task].batch(IMAGES, rng)[0]) for task in TASK_NAMES}
        with torch.no_grad():
            own = torch.eye(len(TASK_NAMES)).unsqueeze(1).expand(-1, len(self._layers), -1)
            self._targets = {
                task: torch.cat([self.logits(own[k], task, part) for part in self._images[task].split(128)]).softmax(1)
                for k, task in enumerate(TASK_NAMES)
            }

    @property
    def layer_count(self) -> int:
        return len(self._layers)

    def logits(self, coefficients: Tensor, task: str, images: Tensor) -> Tensor:
        """[layers, experts] -> [images, classes]."""
        merged = {}
        for row, names in zip(coefficients, self._layers, strict=True):
            for name in names:
                merged[name] = self._start[name] + torch.tensordot(row, self._stacked[name], dims=1)
        head: nn.Linear = self._heads[task]
        known: Tensor = head(functional_call(self._base, merged, (images,)))
        return known

    def losses(self, coefficients: Tensor, rows: Tensor) -> Tensor:
        """KL from each task's expert, [tasks]."""
        each = []
        for task in TASK_NAMES:
            logs = self.logits(coefficients, task, self._images[task][rows]).log_softmax(1)
            each.append(nn.functional.kl_div(logs, self._targets[task][rows], reduction="batchmean"))
        return torch.stack(each)


def draw_preference(step: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """By turns: even ones, sharp ones, one task alone."""
    tasks = len(TASK_NAMES)
    if step % 3 == 2:
        return np.eye(tasks)[step // 3 % tasks]
    return rng.dirichlet(np.full(tasks, 1.0 if step % 3 == 0 else 0.3))


def learn_map(merger: Merger, seed: int, *, say: Callable[[str], None], steps: int = STEPS) -> Tensor:
    """Corners, float32 [tasks, layers, tasks]."""
    rng = np.random.default_rng([seed, 4])
    tasks = len(TASK_NAMES)
    # A task that alone matters begins at its own expert, all alike at task arithmetic.
    rest = (tasks * START - 1) / (tasks - 1)
    start = torch.full((tasks, tasks), rest).fill_diagonal_(1.0)
    corners = start.unsqueeze(1).repeat(1, merger.layer_count, 1).requires_grad_(True)
    optimizer = torch.optim.Adam([corners], lr=RATE)
    average = corners.detach().clone()
    for step in range(steps):
        preference = torch.from_numpy(draw_preference(step, rng)).float()
        rows = torch.from_numpy(rng.permutation(IMAGES)[:IMAGES_A_STEP])
        losses = merger.losses(torch.einsum("k,klj->lj", preference, corners), rows)
        loss = preference @ losses
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.lerp_(corners.detach(), 1 - min(0.97, step / (step + 10)))
        if (step + 1) % 60 == 0:
            say(f"map of preferences: step {step + 1}/{steps}, losses {losses.detach().numpy().round(2).tolist()}")
    return average
