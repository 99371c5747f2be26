"""The demonstrator: shortest paths over what has been seen, and to the nearest unseen cell where that is not enough.

It knows no more than who learns from it (a planner with the whole map would teach turns that nothing in view explains).
"""

from __future__ import annotations

from collections import deque
from functools import cache

import numpy as np
from worldtree_navigator.memory import Ground, Memory

from training.minigrid import pose, tiles
from training.navigator.missions import FACE, OPEN, REACH, Mission

SIZE = 51  # cells of the demonstrator's memory: more than any world here
_STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # by heading; the walker faces up
_WALL, _FREE, _DOOR, _UNSEEN = range(4)


@cache
def ground() -> Ground:
    return Ground(
        side=tiles.VIEW_CELLS,
        unseen=tiles.DARK,
        floor=tiles.EMPTY,
        enterable=frozenset(code for code in range(tiles.OBJECT_COUNT) if tiles.can_enter(code)),
        left=pose.LEFT,
        right=pose.RIGHT,
        forward=pose.FORWARD,
    )


@cache
def _ways() -> np.ndarray:
    """How each tile is crossed. Lava is not."""
    ways = np.full(tiles.TILE_COUNT, _WALL)
    for code in range(tiles.OBJECT_COUNT):
        if tiles.can_enter(code) and code != tiles.LAVA:
            ways[code] = _FREE
        elif tiles.is_closed_door(code):
            ways[code] = _DOOR
    ways[tiles.DARK] = _UNSEEN
    return ways


def next_actions(memory: Memory, mission: Mission) -> list[int]:
    """The way to the mission's end, or to what is unseen; [DONE] where there is neither, or nothing left to do."""
    cells = memory.cells
    targets = np.isin(cells, list(mission.codes))
    if mission.kind == OPEN:
        targets &= ~np.isin(cells, [code for code in mission.codes if tiles.is_open_door(code)])
    ways = _ways()[cells]
    if targets.any():
        path = _path(ways, targets)
        if path is not None:
            return path + {REACH: [pose.FORWARD], FACE: [], OPEN: [pose.TOGGLE]}[mission.kind] or [pose.DONE]
    path = _path(ways, ways == _UNSEEN)
    return path or [pose.DONE]


def _path(ways: np.ndarray, targets: np.ndarray) -> list[int] | None:
    """The fewest actions, nearly (a door counts as one), until a target cell is ahead."""
    grid, wanted = ways.tolist(), targets.tolist()
    middle = len(grid) // 2
    start = (middle, middle, 0)
    parent: dict[tuple[int, int, int], tuple[tuple[int, int, int], tuple[int, ...]] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        row, column, heading = state
        ahead_row, ahead_column = row + _STEPS[heading][0], column + _STEPS[heading][1]
        if not (0 <= ahead_row < len(grid) and 0 <= ahead_column < len(grid)):
            continue
        if wanted[ahead_row][ahead_column]:
            actions: list[int] = []
            link = parent[state]
            while link is not None:
                before, moves = link
                actions[:0] = moves
                link = parent[before]
            return actions
        way = grid[ahead_row][ahead_column]
        if way == _FREE:
            ahead = (ahead_row, ahead_column, heading)
            if ahead not in parent:
                parent[ahead] = (state, (pose.FORWARD,))
                queue.append(ahead)
        elif way == _DOOR:
            ahead = (ahead_row, ahead_column, heading)
            if ahead not in parent:
                parent[ahead] = (state, (pose.TOGGLE, pose.FORWARD))
                queue.append(ahead)
        for turn, quarter in ((pose.LEFT, 3), (pose.RIGHT, 1)):
            after = (row, column, (heading + quarter) % 4)
            if after not in parent:
                parent[after] = (state, (turn,))
                queue.append(after)
    return None
