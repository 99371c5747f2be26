"""Chunks to learn from, masked in part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.navigator.data import HORIZON, Demonstrations
from training.navigator.missions import ENVIRONMENTS
from training.navigator.model import ACTION_MASK, FRAME_SIDE, FRAME_TOKENS, MASK, PATCH

# How often a chunk's actions, and its frames, are all masked; else each by a rate of its own (actions now and then from
# some place on: what a robot is executing while it plans stands before).
_ALL_ACTIONS, _PREFIX, _ALL_FRAMES, _NO_FRAMES = 0.5, 0.2, 0.45, 0.15


@dataclass(frozen=True)
class Batch:
    """n chunks. `actions` and `frames` are true; `shown_*` is what is not masked of them."""

    view: Tensor
    around: Tensor
    words: Tensor
    actions: Tensor  # [n, HORIZON]
    frames: Tensor  # [n, HORIZON, 49]
    shown_actions: Tensor
    shown_frames: Tensor


class Chooser:
    """Draws chunks: first the environment, by its weight, then the step."""

    def __init__(self, data: Demonstrations) -> None:
        environment = data.environment[data.episode[data.starts]]
        self._by_environment = [np.flatnonzero(environment == index) for index in range(len(ENVIRONMENTS))]
        weights = np.array(
            [
                weight if len(own) else 0.0
                for weight, own in zip(ENVIRONMENTS.values(), self._by_environment, strict=True)
            ]
        )
        self._weights = weights / weights.sum()

    def draw(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Indices into `starts`."""
        chosen = rng.choice(len(self._weights), count, p=self._weights)
        return np.array([rng.choice(self._by_environment[each]) for each in chosen])


def batch(data: Demonstrations, chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
    rows = data.starts[chosen]
    ahead = rows[:, None] + np.arange(HORIZON)
    count = len(rows)
    actions = data.actions[ahead].astype(np.int64)
    frames = data.views[ahead + 1].astype(np.int64)
    return Batch(
        view=torch.from_numpy(data.views[rows].astype(np.int64)),
        around=torch.from_numpy(data.maps[rows].astype(np.int64)),
        words=torch.from_numpy(data.words[data.episode[rows]].astype(np.int64)),
        actions=torch.from_numpy(actions),
        frames=torch.from_numpy(frames),
        shown_actions=torch.from_numpy(np.where(_masked_actions(count, rng), ACTION_MASK, actions)),
        shown_frames=torch.from_numpy(np.where(_masked_frames(count, rng), MASK, frames)),
    )


def _masked_actions(count: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    kind = rng.random(count)[:, None]
    by_rate = rng.random((count, HORIZON)) < rng.random((count, 1))
    from_place = np.arange(HORIZON) >= rng.integers(1, HORIZON, (count, 1))
    return np.where(kind < _ALL_ACTIONS, True, np.where(kind < _ALL_ACTIONS + _PREFIX, from_place, by_rate))


def _masked_frames(count: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Whole tokens of frames, as they are unmasked: [count, HORIZON, 49]."""
    kind = rng.random(count)[:, None, None]
    by_rate = rng.random((count, HORIZON, FRAME_TOKENS)) < rng.random((count, 1, 1))
    masked = np.where(kind < _ALL_FRAMES, True, np.where(kind < _ALL_FRAMES + _NO_FRAMES, False, by_rate))
    return masked[:, :, token_of_cell()]


def token_of_cell() -> npt.NDArray[np.int64]:
    """Which token of a future frame each of its 49 cells belongs to."""
    row, column = np.divmod(np.arange(49), 7)
    return row // PATCH * FRAME_SIDE + column // PATCH
