"""The six questions that experts answer about a frame, and their true answers from its tile ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.minigrid import tiles

Ids = npt.NDArray[np.uint8]  # [frames, 49], as `training.minigrid.data` stores frames
Labels = npt.NDArray[np.int64]  # [frames]

_ROW, _COLUMN = np.divmod(np.arange(tiles.CELL_COUNT), tiles.VIEW_CELLS)
_STEPS = np.abs(_ROW - 6) + np.abs(_COLUMN - 3)  # from the agent's cell, walls or not
_FAR = 99
_AHEAD = tiles.AHEAD_CELL - tiles.VIEW_CELLS * np.arange(6)  # the six cells straight ahead, nearest first


def _of_tiles(kind: Callable[[int], int]) -> npt.NDArray[np.int64]:
    """A table by tile id."""
    return np.array([kind(code) for code in range(tiles.TILE_COUNT)])


def _thing(code: int) -> int:
    """empty, wall, goal, lava, door, key, ball, box; -1 for the agent and for what is unseen."""
    if code < 4:
        return code
    if tiles.is_door(code):
        return 4
    return 5 + (code - tiles.FIRST_CARRIABLE) // 6 if tiles.is_carriable(code) else -1


_THINGS = _of_tiles(_thing)
_SAFE = _of_tiles(lambda code: code in (tiles.EMPTY, tiles.GOAL) or tiles.is_open_door(code)).astype(bool)


def nearest(found: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The nearest of the cells found [frames, 49], by steps, then in reading order; and whether there is one."""
    return np.where(found, _STEPS, _FAR).argmin(axis=1), np.asarray(found.any(axis=1))


def front_object(ids: Ids) -> Labels:
    return _THINGS[ids[:, tiles.AHEAD_CELL]]


def door_state(ids: Ids) -> Labels:
    cells, there = nearest((ids >= 4) & (ids < tiles.FIRST_CARRIABLE))
    states = (ids[np.arange(len(ids)), cells].astype(np.int64) - 4) % len(tiles.DOOR_STATES)
    return np.where(there, 1 + states, 0)


def goal_distance(ids: Ids) -> Labels:
    cells, there = nearest(ids == tiles.GOAL)
    return np.where(there, 1 + np.searchsorted([2, 4, 6], _STEPS[cells]), 0)


def carried(ids: Ids) -> Labels:
    carriable = ids[:, tiles.AGENT_CELL].astype(np.int64) - tiles.AGENT - 1
    return np.where(carriable < 0, 0, 1 + carriable // 6)


def free_ahead(ids: Ids) -> Labels:
    free: Labels = np.cumprod(_SAFE[ids[:, _AHEAD]], axis=1).sum(axis=1).astype(np.int64)
    return np.minimum(free, 5)


def danger(ids: Ids) -> Labels:
    cells, there = nearest(ids == tiles.LAVA)
    return np.where(there, 1 + np.array([1, 0, 2])[1 + np.sign(_COLUMN[cells] - 3)], 0)


@dataclass(frozen=True, slots=True)
class Task:
    """`answer`: ids [frames, 49] to labels [frames]; `environments`: where its expert lives."""

    name: str
    description: str
    classes: tuple[str, ...]
    answer: Callable[[Ids], Labels]
    environments: tuple[str, ...]


def _minigrid(*names: str) -> tuple[str, ...]:
    return tuple(name if name.startswith("BabyAI") else f"MiniGrid-{name}" for name in names)


TASKS = (
    Task(
        "front_object",
        "what stands in the cell ahead",
        ("empty", "wall", "goal", "lava", "door", "key", "ball", "box"),
        front_object,
        _minigrid(
            "Playground-v0",
            "GoToDoor-8x8-v0",
            "Fetch-8x8-N3-v0",
            "LavaGapS7-v0",
            "Empty-Random-6x6-v0",
            "LavaCrossingS9N2-v0",
            "DoorKey-6x6-v0",
            "BabyAI-BossLevel-v0",
        ),
    ),
    Task(
        "door_state",
        "the nearest door that is seen",
        ("none", *tiles.DOOR_STATES),
        door_state,
        _minigrid(
            "MultiRoom-N6-v0",
            "KeyCorridorS3R3-v0",
            "RedBlueDoors-8x8-v0",
            "LockedRoom-v0",
            "Unlock-v0",
            "ObstructedMaze-1Dlhb-v0",
            "BlockedUnlockPickup-v0",
        ),
    ),
    Task(
        "goal_distance",
        "steps to the goal if it is seen, walls or not",
        ("none", "up to 2", "3 or 4", "5 or 6", "7 or more"),
        goal_distance,
        _minigrid(
            "FourRooms-v0",
            "Empty-Random-6x6-v0",
            "SimpleCrossingS9N2-v0",
            "DoorKey-8x8-v0",
            "LavaGapS7-v0",
            "MultiRoom-N4-S5-v1",
        ),
    ),
    Task(
        "carried",
        "what the agent carries",
        ("nothing", "key", "ball", "box"),
        carried,
        _minigrid(
            "Fetch-8x8-N3-v0",
            "PutNear-8x8-N3-v0",
            "UnlockPickup-v0",
            "KeyCorridorS3R3-v0",
            "BlockedUnlockPickup-v0",
            "Playground-v0",
            "BabyAI-PutNextLocal-v0",
        ),
    ),
    Task(
        "free_ahead",
        "cells straight ahead that may be walked safely, one after the other",
        ("0", "1", "2", "3", "4", "5 or more"),
        free_ahead,
        _minigrid(
            "FourRooms-v0",
            "MultiRoom-N6-v0",
            "SimpleCrossingS11N5-v0",
            "Playground-v0",
            "ObstructedMaze-Full-v1",
            "BabyAI-GoTo-v0",
        ),
    ),
    Task(
        "danger",
        "where the nearest lava is",
        ("none", "ahead", "left", "right"),
        danger,
        _minigrid(
            "LavaCrossingS9N2-v0",
            "LavaCrossingS11N5-v0",
            "LavaGapS7-v0",
            "SimpleCrossingS9N2-v0",
            "DistShift1-v0",
            "DistShift2-v0",
        ),
    ),
)
TASK_NAMES = tuple(task.name for task in TASKS)
STRANGER_NAMES = ("rotation", "brightness", "chance", "camera")  # of the experts nobody asks for: `strangers`

COARSE_CLASSES = ("unseen", "free", "wall", "thing")
_COARSE = _of_tiles(
    lambda code: 0 if code == tiles.DARK else 1 if code in (0, *range(tiles.AGENT, tiles.DARK)) else min(code + 1, 3)
)


def coarse_map(ids: Ids) -> npt.NDArray[np.int64]:
    """What the base learns from: an index into `COARSE_CLASSES` a cell, [frames, 49]. It tells no thing from another,
    and no door's state from another's; the agent's cell is free whatever it carries.
    """
    known: npt.NDArray[np.int64] = _COARSE[ids]
    return known
