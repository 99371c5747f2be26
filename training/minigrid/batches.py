"""Training batches: random crops of episodes, noise levels, and which cells count how much."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.minigrid import pose, tiles


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor  # [S, T, 49] int64
    actions: Tensor  # [S, T] int64; NONE for each first frame
    poses: Tensor  # [S, T, 3] int64, relative to the first frame
    can_move: Tensor  # [S, T] float32
    weights: Tensor  # [S, T, 49] float32
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


def cell_weights(ids: Tensor) -> Tensor:
    """Objects are rare and changes are what has to be learnt; the first frame of a crop has no past to go by."""
    rare = (ids != tiles.EMPTY) & (ids != tiles.WALL) & (ids != tiles.DARK) & (ids != tiles.AGENT)
    weights = torch.ones(ids.shape) + 3.0 * rare
    weights[:, 1:] += 1.0 * (ids[:, 1:] != ids[:, :-1])
    weights[:, 0] *= 0.3
    return weights


def noise_levels(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A third of the frames at pure noise; the rest in [0.4, 1], denser towards 1, where tiles are decided."""
    u = torch.rand(shape, generator=generator)
    level = 1 - 0.6 * torch.rand(shape, generator=generator) ** 1.5
    return torch.where(u < 0.35, torch.ones(()), level)


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
        yield Batch(
            ids=crop_ids,
            actions=torch.from_numpy(crop_actions),
            poses=crop_poses,
            can_move=torch.from_numpy(can_move[episode, frame].astype(np.float32)),
            weights=cell_weights(crop_ids),
            known=known_cells(crop_ids, crop_poses, window),
        )
