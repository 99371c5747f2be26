"""Sessions as they are served, in torch: paged blocks, a sliding window, and how each cached frame was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.minigrid import pose
from training.minigrid.batches import known_cells
from training.minigrid.graphs import STATE_SIZE, TOKENS, Commit, biases_of, past_of, to_frames
from training.minigrid.model import CELLS, Past, WorldModel
from training.minigrid.tiles import DARK

FRESH_CELLS = 3  # a frame that shows this many new cells has something to make up


class Sessions:
    """A batch of sessions in lockstep. `writer` is the frozen model whose blocks all models here read."""

    def __init__(self, writer: WorldModel, batch: int) -> None:
        config = writer.config
        self._commit = Commit(writer)
        self._ring = config.window + 1
        self._batch, self._window = batch, config.window
        shape = (batch * self._ring, len(config.memory_layers), 2, config.heads, TOKENS, config.head_dim)
        self._pool = torch.zeros(shape)
        self._quality = torch.zeros(batch, self._ring)
        self._chunk = 0

    def copy(self) -> Sessions:
        """The same sessions, from here on apart."""
        twin = Sessions(self._commit.model, self._batch)
        twin._pool, twin._quality, twin._chunk = self._pool.clone(), self._quality.clone(), self._chunk
        return twin

    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Position [B], table [B, W] oldest first, key mask [B, W], cache quality [B, W]."""
        count = min(self._chunk, self._window)
        recent = torch.arange(self._chunk - count, self._chunk) % self._ring
        row = torch.cat([recent, torch.zeros(self._window - count, dtype=torch.int64)])
        table = torch.arange(self._batch)[:, None] * self._ring + row
        mask = (torch.arange(self._window) < count).expand(table.shape)
        quality = torch.where(mask, self._quality[:, row], torch.zeros(()))
        return torch.full((self._batch,), count), table, mask, quality

    def pasts(self, models: Sequence[WorldModel], action: Tensor, keep: Tensor) -> list[Past]:
        """What chunks after `action` [B] see, for each model; `keep` bool [B, W]: slots that may be seen.

        Models that have never seen a marked frame read it as if it were given, so they share what they read.
        """
        position, table, mask, quality = self._table()
        mask = mask & (keep | (torch.arange(self._window) == position[:, None] - 1))
        given = torch.zeros_like(quality)
        plain = past_of(self._commit.model, self._pool, table, mask, position, action, given)
        pasts = []
        for model in models:
            if model.quality_value.requires_grad and quality.any():
                pasts.append(past_of(model, self._pool, table, mask, position, action, quality))
            else:
                pasts.append(replace(plain, biases=biases_of(model, mask, position, given)))
        return pasts

    @torch.no_grad()
    def observe(self, patches: Tensor, action: Tensor, quality: int) -> None:
        """Commits frames [B, 49, PATCH] that `action` [B] led to; `quality`: evaluations they took, 0 when given."""
        position, table, mask, _ = self._table()
        here = self._chunk % self._ring
        frames = ((to_frames(patches) + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1  # what is shown is committed
        slots = torch.arange(self._batch) * self._ring + here
        self._pool[slots] = self._commit.block(frames, action, position, self._pool, table, mask)
        self._quality[:, here] = quality
        self._chunk += 1

    def places(self) -> Tensor:
        """Pose and gate of each session's latest frame, [B, 4]."""
        here = torch.arange(self._batch) * self._ring + (self._chunk - 1) % self._ring
        return self._pool[here, 0, 0, 0, CELLS, :STATE_SIZE].clone()


class Crops:
    """Crops of the recorded episodes, those that show something new preferred."""

    def __init__(self, path: Path, *, length: int) -> None:
        with np.load(path) as data:
            self._ids, self._actions, self._poses = (data[name] for name in ("ids", "actions", "poses"))
        self._length = length

    def draw(
        self, rng: np.random.Generator, count: int, *, new_from: int, window: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tile ids [count, T, 49], actions [count, T] and which cells are new [count, T, 49].

        Of twice as many crops, those with the most frames from `new_from` on that show something new.
        """
        episode = rng.integers(len(self._ids), size=2 * count)[:, None]
        first = rng.integers(self._ids.shape[1] - self._length + 1, size=2 * count)[:, None]
        frame = first + np.arange(self._length)
        ids = torch.from_numpy(self._ids[episode, frame].astype(np.int64))
        poses = torch.from_numpy(pose.relative_poses(self._poses[episode, frame].astype(np.int64)))
        new = ~known_cells(ids, poses, window) & (ids != DARK)
        fresh = new.sum(-1) >= FRESH_CELLS
        chosen = fresh[:, new_from:].sum(-1).argsort(descending=True, stable=True)[:count]
        actions: npt.NDArray[np.int64] = self._actions[episode, frame].astype(np.int64)
        actions[:, 0] = pose.NONE
        return ids[chosen], torch.from_numpy(actions)[chosen], new[chosen]


def seeds(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random numbers of one step: a function of the two, so that a resumed run is the run."""
    return np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 1_000_003 + step)


def open_sessions(writer: WorldModel, ids: Tensor, actions: Tensor, start_count: int) -> Sessions:
    """Sessions that were given the first `start_count` frames of crops [B, T, 49]."""
    sessions = Sessions(writer, len(ids))
    for k in range(start_count):
        sessions.observe(writer.codebook[ids[:, k]], actions[:, k], quality=0)
    return sessions


def gaps(count: int, window: int, generator: torch.Generator) -> Tensor:
    """Slots to be seen, bool [count, window]: one session in four lacks some, as under policies that forget."""
    keep = torch.rand(count, window, generator=generator) > 0.25
    return keep | (torch.rand(count, 1, generator=generator) > 0.25)
