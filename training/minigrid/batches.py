"""Training batches: random crops of episodes, noise levels, and which cells count how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.minigrid import pose, tiles

EASY_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor  # [S, T, 49] int64
    actions: Tensor  # [S, T] int64; NONE for each first frame
    poses: Tensor  # [S, T, 3] int64, relative to the first frame
    can_move: Tensor  # [S, T] float32
    known: Tensor  # [S, T, 49] bool: seen within the window before, or the agent's own cell


def known_cells(ids: Tensor, poses: Tensor, window: int) -> Tensor:
    """Cells seen in at least one of the `window` frames before: [S, T, 49]. Under the agent counts as unseen."""
    offsets = torch.from_numpy(pose.view_offsets())
    place = poses[..., None, :2] + offsets[poses[..., 2]]
    key = place[..., 0] * 1000 + place[..., 1]
    seen = ids != tiles.DARK
    seen[..., tiles.AGENT_CELL] = False
    past = torch.where(seen, key, torch.full_like(key, 1 << 40))
    known = torch.zeros_like(seen)
    for age in range(1, window + 1):
        match = key[:, age:, :, None] == past[:, :-age, None, :]
        known[:, age:] |= match.any(-1)
    known[:, 1:, tiles.AGENT_CELL] = True
    return known


def cell_weights(ids: Tensor, known: Tensor) -> Tensor:
    """Known objects count more: they are rare, and losing one is what a viewer sees.

    Only known cells, whose tile is not in doubt: weighting by the answer where it is would bias what is imagined.
    """
    common = (ids == tiles.EMPTY) | (ids == tiles.WALL) | (ids == tiles.DARK) | (ids == tiles.AGENT)
    return torch.ones(ids.shape) + 2.0 * (known & ~common)


def choose_frames(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which frames to denoise, as indices [M] into S * T, and their weights [M].

    Frames that show something new are where there is much to learn. Of the others a part is enough, with a weight that
    makes up for it, or the model would believe that there is always more to see.
    """
    fresh = (~batch.known & (batch.ids != tiles.DARK)).sum(-1) >= 3
    chance = torch.where(fresh, torch.ones(()), torch.tensor(EASY_SHARE)).flatten()
    chosen = torch.nonzero(torch.rand(chance.shape, generator=generator) < chance)[:, 0]
    return chosen, 1 / chance[chosen]


def noise_levels(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A fifth of the frames at pure noise; the rest in [0.2, 1], denser towards 1.

    Codebook tiles lie 1 (two colours of a box) to 15 (wall, unseen) apart, so they are told apart from t = 0.3 to 0.95.
    """
    u = torch.rand(shape, generator=generator)
    level = 1 - 0.8 * torch.rand(shape, generator=generator) ** 1.5
    return torch.where(u < 0.2, torch.ones(()), level)


def batches(path: Path, *, sequences: int, length: int, window: int, seed: int) -> Iterator[Batch]:
    """Endless random crops of the recorded episodes."""
    with np.load(path) as data:
        ids, actions, poses, can_move = (data[name] for name in ("ids", "actions", "poses", "can_move"))
    rng = np.random.default_rng(seed)
    while True:
        episode = rng.integers(len(ids), size=sequences)[:, None]
        frame = rng.integers(ids.shape[1] - length + 1, size=sequences)[:, None] + np.arange(length)
        crop_actions = actions[episode, frame].astype(np.int64)
        crop_actions[:, 0] = pose.NONE
        crop_ids = torch.from_numpy(ids[episode, frame].astype(np.int64))
        crop_poses = torch.from_numpy(pose.relative_poses(poses[episode, frame]))
        known = known_cells(crop_ids, crop_poses, window)
        yield Batch(
            ids=crop_ids,
            actions=torch.from_numpy(crop_actions),
            poses=crop_poses,
            can_move=torch.from_numpy(can_move[episode, frame].astype(np.float32)),
            known=known,
        )
