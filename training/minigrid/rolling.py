"""Rollouts of a package over held-out episodes, and what is known of their true futures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.minigrid import pose, tiles
from training.minigrid.data import Episode
from training.minigrid.determined import determined_cells
from training.minigrid.package import Histories, Package, none_actions

START_COUNT = 8
REAL_TOLERANCE = 2.0  # of 255, mean absolute error of a tile
DEPTHS = (1, 8, 16, 32)
LONG_DEPTH = 64
TURNS = 4  # left, and the view is the first again
BATCH = 16


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Generated frames of many episodes, judged tile by tile."""

    ids: npt.NDArray[np.int64]  # [episode, depth, 49] nearest tiles
    real: npt.NDArray[np.bool_]  # [episode, depth, 49]
    frames: npt.NDArray[np.uint8]  # [episode, depth, 56, 56, 3]


@dataclass(frozen=True, slots=True)
class Run:
    """All rollouts of one model with one number of evaluations."""

    made: Rollouts  # of all episodes, to the last of DEPTHS
    far: Rollouts  # of the first episodes, to LONG_DEPTH
    loop_closure: float


def generate(
    package: Package,
    episodes: Sequence[Episode],
    actions: npt.NDArray[np.int64],
    *,
    levels: list[float],
    kind: str,
    seed: int,
) -> Rollouts:
    """Feeds each episode's first START_COUNT frames, then rolls out `actions` [episode, depth]."""
    parts: list[npt.NDArray[np.uint8]] = []
    for first in range(0, len(episodes), BATCH):
        group = episodes[first : first + BATCH]
        history = Histories(package, len(group), seed=seed + first)
        for k in range(START_COUNT):
            frames = tiles.draw_frame(np.stack([e.ids[k] for e in group]))
            led = none_actions(len(group)) if k == 0 else np.array([e.actions[k] for e in group], np.int64)
            history.observe(frames, led)
        steps = actions[first : first + BATCH].T
        made = [history.step(np.ascontiguousarray(a), levels=levels, kind=kind) for a in steps]
        parts.append(np.stack(made, axis=1))
    frames = np.concatenate(parts)
    ids, errors = tiles.nearest_tile(frames)
    return Rollouts(ids, errors <= REAL_TOLERANCE, frames)


def future_actions(episodes: Sequence[Episode], depth: int) -> npt.NDArray[np.int64]:
    return np.stack([e.actions[START_COUNT : START_COUNT + depth] for e in episodes]).astype(np.int64)


def roll(package: Package, episodes: Sequence[Episode], *, levels: list[float], long_count: int) -> Run:
    """The first `long_count` episodes go on to LONG_DEPTH: of them the first part is a part of `made`."""
    kind = package.manifest["sampler"]["kind"]
    long, others = episodes[:long_count], episodes[long_count:]
    depth = max(DEPTHS)
    far = generate(package, long, future_actions(long, LONG_DEPTH), levels=levels, kind=kind, seed=1)
    parts = [Rollouts(far.ids[:, :depth], far.real[:, :depth], far.frames[:, :depth])]
    if others:
        parts.append(generate(package, others, future_actions(others, depth), levels=levels, kind=kind, seed=1001))
    made = Rollouts(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("ids", "real", "frames")))
    turns = np.full((len(episodes), TURNS), pose.LEFT, np.int64)
    closed = generate(package, episodes, turns, levels=levels, kind=kind, seed=2)
    last = np.stack([e.ids[START_COUNT - 1] for e in episodes])
    return Run(made, far, float((closed.ids[:, -1] == last).mean()))


@dataclass(frozen=True, slots=True)
class Truth:
    """True futures and which of their cells are determined, [episode, depth, 49]."""

    ids: npt.NDArray[np.uint8]
    plain: npt.NDArray[np.bool_]
    strict: npt.NDArray[np.bool_]
    last: npt.NDArray[np.uint8]  # [episode, 49], the last real frame
    first_actions: npt.NDArray[np.int64]  # [episode, depth]
    env_ids: list[str]


def truth_of(episodes: Sequence[Episode], *, depth: int, window: int) -> Truth:
    total = START_COUNT + depth
    masks = [
        determined_cells(e.ids[:total], e.poses[:total], e.actions[:total], start_count=START_COUNT, window=window)
        for e in episodes
    ]
    return Truth(
        ids=np.stack([e.ids[START_COUNT:total] for e in episodes]),
        plain=np.stack([plain[START_COUNT:] for plain, _ in masks]),
        strict=np.stack([strict[START_COUNT:] for _, strict in masks]),
        last=np.stack([e.ids[START_COUNT - 1] for e in episodes]),
        first_actions=future_actions(episodes, depth),
        env_ids=[e.env_id for e in episodes],
    )


def share(hits: npt.NDArray[np.bool_], where: npt.NDArray[np.bool_]) -> float | None:
    """Share of hits among the cells of `where`; None when there are none."""
    return float(hits[where].mean()) if where.any() else None
