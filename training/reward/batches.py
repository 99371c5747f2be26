"""Groups as tensors: clips drawn, goals as word ids, and labels as people would give them, some of them wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.minigrid import pose, tiles
from training.reward.data import PAIRS, SIZE, STEPS, TIE, Candidate, Group
from training.reward.goals import tokenize

_LEFT, _RIGHT = (np.array(side) for side in zip(*PAIRS, strict=True))
_FORGOTTEN = 0.05  # share of a goal's words that are read as unknown ones


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups of one length. Labels are 1 where the first of a pair is said to be better, 0 where the second is, 0.5
    where they are alike, NaN where nobody can say.
    """

    frames: Tensor  # uint8 [groups * SIZE, t, 56, 56, 3]
    actions: Tensor  # [groups * SIZE, t]
    words: Tensor  # [groups * SIZE, words]
    categories: Tensor  # [groups]
    dimensions: Tensor  # [groups, pairs, dimensions]
    whole: Tensor  # [groups, pairs]


@dataclass(frozen=True, slots=True)
class Labels:
    """Of all groups of a split."""

    dimensions: npt.NDArray[np.float32]  # [groups, pairs, dimensions]
    whole: npt.NDArray[np.float32]  # [groups, pairs]


def labels_of(groups: list[Group], noise: float, seed: int) -> Labels:
    """What one who is wrong with chance `noise` says of each pair: asked again, the same."""
    truth = np.stack([[each.truth for each in group.candidates] for group in groups])
    rewards = np.stack([group.rewards for group in groups])
    rng = np.random.default_rng([seed, 71])
    return Labels(said(truth, noise, rng), said(rewards, noise, rng))


def said(values: npt.NDArray[np.float32], noise: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """[groups, SIZE, ...] -> [groups, pairs, ...]."""
    gap = values[:, _LEFT] - values[:, _RIGHT]
    with np.errstate(invalid="ignore"):
        right = (gap > 0).astype(np.float32)
        told = np.where(rng.random(gap.shape) < noise, 1 - right, right)
        told = np.where(np.abs(gap) <= TIE, np.float32(0.5), told)
    return np.where(np.isnan(gap), np.float32("nan"), told).astype(np.float32)


_OTHER_SIDE = np.arange(tiles.CELL_COUNT).reshape(tiles.VIEW_CELLS, tiles.VIEW_CELLS)[:, ::-1].flatten()
_MIRRORED = np.arange(pose.NONE + 1, dtype=np.uint8)
_MIRRORED[[pose.LEFT, pose.RIGHT]] = pose.RIGHT, pose.LEFT


def mirrored(group: Group) -> Group:
    """As it would be in the mirrored world: all that is true of its candidates stays true, and no goal tells sides."""

    def other(each: Candidate) -> Candidate:
        return replace(each, ids=each.ids[:, _OTHER_SIDE], actions=_MIRRORED[each.actions])

    return replace(group, candidates=[other(each) for each in group.candidates])


def clips(groups: list[Group]) -> tuple[Tensor, Tensor]:
    """Frames and actions of groups of one length."""
    frames = np.stack([each.frames() for group in groups for each in group.candidates])
    actions = np.stack([each.actions for group in groups for each in group.candidates])
    return torch.from_numpy(frames), torch.from_numpy(actions.astype(np.int64))


def word_ids(goals: list[str], rng: np.random.Generator | None = None) -> Tensor:
    """[goals, words]; with `rng` some words are forgotten."""
    ids = np.stack([tokenize(goal) for goal in goals])
    if rng is not None:
        ids[(rng.random(ids.shape) < _FORGOTTEN) & (ids > 1)] = 1
    return torch.from_numpy(ids)


def batches(groups: list[Group], count: int, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """An epoch: rows of groups of one length, `count` each, in random order."""
    lengths = np.array([len(group.candidates[0].ids) for group in groups])
    found = []
    for length in {steps + 1 for steps in STEPS}:
        rows = rng.permutation(np.flatnonzero(lengths == length))
        found += [rows[first : first + count] for first in range(0, len(rows) - count + 1, count)]
    return [found[k] for k in rng.permutation(len(found))]


def batch(groups: list[Group], labels: Labels, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Batch:
    """Groups `rows` of all, half of them mirrored."""
    chosen = [mirrored(groups[row]) if rng.random() < 0.5 else groups[row] for row in rows]
    frames, actions = clips(chosen)
    return Batch(
        frames,
        actions,
        word_ids([group.goal for group in chosen], rng).repeat_interleave(SIZE, dim=0),
        torch.tensor([group.category for group in chosen]),
        torch.from_numpy(labels.dimensions[rows]),
        torch.from_numpy(labels.whole[rows]),
    )
