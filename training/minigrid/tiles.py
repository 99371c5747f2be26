"""The codebook: every 8x8 picture a MiniGrid cell can show in an egocentric frame.

A frame is `env.get_frame(tile_size=8, agent_pov=True)`: 56x56 pixels, 7x7 cells, row-major, the agent at column 3
of row 6, facing up. Objects are drawn upright whatever the heading, so a cell's picture depends only on what stands
there and on whether it is seen; there are 60 pictures. They are drawn here by MiniGrid's own renderer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Goal, Key, Lava, Wall, WorldObj

TILE_PX = 8
VIEW_CELLS = 7
FRAME_PX = TILE_PX * VIEW_CELLS
CELL_COUNT = VIEW_CELLS * VIEW_CELLS
AGENT_CELL = 6 * VIEW_CELLS + 3
AHEAD_CELL = 5 * VIEW_CELLS + 3

UInt8 = npt.NDArray[np.uint8]

EMPTY, WALL, GOAL, LAVA = 0, 1, 2, 3
DOOR_STATES = ("open", "closed", "locked")
_CARRIABLES: tuple[tuple[str, Callable[[str], WorldObj]], ...] = (("key", Key), ("ball", Ball), ("box", Box))


def _make_door(color: str, state: str) -> Door:
    return Door(color, is_open=state == "open", is_locked=state == "locked")


@cache
def object_names() -> tuple[str, ...]:
    """Names of the object codes 0..39: empty, wall, goal, lava, doors, keys, balls, boxes."""
    names = ["empty", "wall", "goal", "lava"]
    names += [f"{state} {color} door" for color in COLOR_NAMES for state in DOOR_STATES]
    names += [f"{color} {kind}" for kind, _ in _CARRIABLES for color in COLOR_NAMES]
    return tuple(names)


OBJECT_COUNT = 4 + 3 * 6 + 3 * 6
FIRST_CARRIABLE = 4 + 3 * 6
AGENT = OBJECT_COUNT  # the agent with empty hands; AGENT + 1 + k carries carriable k
DARK = AGENT + 1 + 3 * 6
TILE_COUNT = DARK + 1


@cache
def tile_names() -> tuple[str, ...]:
    """Names of the tile ids 0..TILE_COUNT-1: seen objects, then the agent with what it carries, then unseen."""
    objects = object_names()
    carried = [f"agent with {name}" for name in objects[FIRST_CARRIABLE:]]
    return (*objects, "agent", *carried, "unseen")


def object_code(thing: WorldObj | None) -> int:
    """Code of what stands in a cell.

    Raises ValueError for an object that the codebook does not hold (a coloured floor, say).
    """
    if thing is None:
        return EMPTY
    if thing.type == "wall" and thing.color == "grey":
        return WALL
    if thing.type == "goal":
        return GOAL
    if thing.type == "lava":
        return LAVA
    if isinstance(thing, Door):
        state = 0 if thing.is_open else 2 if thing.is_locked else 1
        return 4 + 3 * COLOR_NAMES.index(thing.color) + state
    for kind_index, (kind, _) in enumerate(_CARRIABLES):
        if thing.type == kind:
            return FIRST_CARRIABLE + 6 * kind_index + COLOR_NAMES.index(thing.color)
    raise ValueError(f"no tile for a {thing.color} {thing.type}")


def can_enter(code: int) -> bool:
    """Whether the agent may walk onto an object code: empty, goal, lava and open doors."""
    return code in (EMPTY, GOAL, LAVA) or is_open_door(code)


def is_door(code: int) -> bool:
    return 4 <= code < FIRST_CARRIABLE


def is_open_door(code: int) -> bool:
    return is_door(code) and (code - 4) % 3 == 0


def is_closed_door(code: int) -> bool:
    return is_door(code) and (code - 4) % 3 == 1


def is_carriable(code: int) -> bool:
    return FIRST_CARRIABLE <= code < OBJECT_COUNT


def blocks_sight(code: int) -> bool:
    """Walls and doors that are not open hide what is behind them."""
    return code == WALL or (is_door(code) and not is_open_door(code))


@cache
def codebook() -> UInt8:
    """All tiles, [TILE_COUNT, 8, 8, 3] uint8 RGB, in the order of `tile_names`."""
    things: list[WorldObj | None] = [None, Wall(), Goal(), Lava()]  # type: ignore[no-untyped-call]
    things += [_make_door(color, state) for color in COLOR_NAMES for state in DOOR_STATES]
    things += [make(color) for _, make in _CARRIABLES for color in COLOR_NAMES]

    def draw(thing: WorldObj | None, agent: bool, seen: bool) -> UInt8:
        direction = 3 if agent else None
        return np.asarray(Grid.render_tile(thing, agent_dir=direction, highlight=seen, tile_size=TILE_PX), np.uint8)

    tiles = [draw(thing, False, True) for thing in things]
    tiles += [draw(thing, True, True) for thing in (None, *things[FIRST_CARRIABLE:])]
    tiles.append(draw(None, False, False))
    book = np.stack(tiles)
    distinct = len(np.unique(book.reshape(len(book), -1), axis=0))
    assert distinct == len(book) == TILE_COUNT, (distinct, len(book), TILE_COUNT)
    return book


def draw_frame(ids: npt.NDArray[np.integer]) -> UInt8:
    """Frames from tile ids: [..., 49] -> [..., 56, 56, 3] uint8."""
    lead = ids.shape[:-1]
    tiles = codebook()[ids.reshape(-1, VIEW_CELLS, VIEW_CELLS)]  # [n, row, column, 8, 8, 3]
    frames: UInt8 = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(*lead, FRAME_PX, FRAME_PX, 3)
    return frames


def split_frame(frames: UInt8) -> UInt8:
    """Tiles of frames: [..., 56, 56, 3] -> [..., 49, 8, 8, 3]."""
    lead = frames.shape[:-3]
    cells = frames.reshape(-1, VIEW_CELLS, TILE_PX, VIEW_CELLS, TILE_PX, 3).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(*lead, CELL_COUNT, TILE_PX, TILE_PX, 3)


def nearest_tile(frames: UInt8) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Nearest codebook tile of every cell, and the mean absolute pixel error to it (0 to 255).

    [..., 56, 56, 3] -> ids [..., 49], errors [..., 49].
    """
    tiles = split_frame(frames)
    flat = tiles.reshape(-1, TILE_PX * TILE_PX * 3).astype(np.float32)
    book = codebook().reshape(TILE_COUNT, -1).astype(np.float32)
    scores = flat @ book.T - 0.5 * (book**2).sum(1)  # the largest score is the least squared distance
    ids = scores.argmax(1)
    errors = np.abs(flat - book[ids]).mean(1)
    return ids.reshape(tiles.shape[:-3]), errors.reshape(tiles.shape[:-3]).astype(np.float32)
