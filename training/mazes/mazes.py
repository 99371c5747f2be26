"""Mazes whose every two cells are joined by exactly one path: spanning trees, drawn by depth-first search.

A cell is told by the sides that can be crossed (`open_sides`), one bit a side; one of every few mazes has blocked
cells, whose sides are all closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

SMALLEST, LARGEST = 5, 10  # cells a side
UP, RIGHT, DOWN, LEFT = 1, 2, 4, 8
START, GOAL = 1, 2  # marks
NOWHERE = 0  # a label: the path does not leave this cell
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # of the labels 1 to 4: up, right, down, left
SPLITS = {"train": 1, "validation": 2, "test": 3}
_BLOCKED_SHARE = 0.2  # of the mazes that have blocked cells
_MOST_BLOCKED = 0.4  # of their cells, before those that cannot be reached either
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Maze:
    """A maze and its path. Cells are numbered row by row."""

    open_sides: Bytes  # [rows, columns]
    path: tuple[int, ...]  # from start to goal, both included

    @property
    def marks(self) -> Bytes:
        """[rows, columns]: START, GOAL or 0."""
        marks = np.zeros(self.open_sides.size, np.uint8)
        marks[self.path[0]], marks[self.path[-1]] = START, GOAL
        return marks.reshape(self.open_sides.shape)

    @property
    def labels(self) -> Bytes:
        """[rows, columns]: the side by which the path leaves each cell, 1 to 4; NOWHERE off it and at its goal."""
        columns = self.open_sides.shape[1]
        labels = np.zeros(self.open_sides.size, np.uint8)
        for cell, following in zip(self.path, self.path[1:], strict=False):
            labels[cell] = _label_of(following - cell, columns)
        return labels.reshape(self.open_sides.shape)


def draw(rng: np.random.Generator, rows: int, columns: int, *, blocked: bool = False) -> Maze:
    """One maze with a start and a goal, two different cells; `blocked`: with cells that nobody can enter."""
    neighbours = _neighbours(rows, columns)
    size = rows * columns
    while True:
        closed = rng.random(size) < (rng.random() * _MOST_BLOCKED if blocked else 0.0)
        root = int(rng.integers(size))
        seen = closed.tolist()
        if seen[root]:
            continue
        seen[root] = True
        sides, parents, reached, stack = [0] * size, {root: root}, [root], [root]
        luck = iter(rng.random(3 * size + 8).tolist())
        while stack:
            cell = stack[-1]
            free = [entry for entry in neighbours[cell] if not seen[entry[0]]]
            if not free:
                stack.pop()
                continue
            other, out, back = free[int(next(luck) * len(free))]
            sides[cell] |= out
            sides[other] |= back
            seen[other], parents[other] = True, cell
            reached.append(other)
            stack.append(other)
        if len(reached) > 1:
            break
    start, goal = (reached[i] for i in rng.choice(len(reached), 2, replace=False))
    return Maze(np.array(sides, np.uint8).reshape(rows, columns), _between(start, goal, parents))


def draw_batch(split: str, index: int, cell_budget: int) -> list[Maze]:
    """Mazes of one size, drawn with it: as many as have about `cell_budget` cells together. Each (split, index) is a
    stream of its own.
    """
    rng = np.random.default_rng([SPLITS[split], 0, index])
    rows, columns = (int(n) for n in rng.integers(SMALLEST, LARGEST + 1, 2))
    count = max(1, cell_budget // (rows * columns))
    return [draw(rng, rows, columns, blocked=bool(rng.random() < _BLOCKED_SHARE)) for _ in range(count)]


def draw_set(split: str, rows: int, columns: int, count: int, *, blocked: bool = False) -> list[Maze]:
    """Mazes of one size to measure with: always the same."""
    rng = np.random.default_rng([SPLITS[split], 1, rows, columns, int(blocked)])
    return [draw(rng, rows, columns, blocked=blocked) for _ in range(count)]


def _label_of(difference: int, columns: int) -> int:
    return {-columns: 1, 1: 2, columns: 3, -1: 4}[difference]


def _between(start: int, goal: int, parents: dict[int, int]) -> tuple[int, ...]:
    """The way up from the start to where the goal's way up meets it, and down again."""
    up = list(_ancestors(start, parents))
    place = {cell: index for index, cell in enumerate(up)}
    down: list[int] = []
    for cell in _ancestors(goal, parents):
        if cell in place:
            return (*up[: place[cell] + 1], *reversed(down))
        down.append(cell)
    raise AssertionError(f"cells {start} and {goal} are of two trees")


def _ancestors(cell: int, parents: dict[int, int]) -> Iterator[int]:
    while True:
        yield cell
        if parents[cell] == cell:
            return
        cell = parents[cell]


@lru_cache
def _neighbours(rows: int, columns: int) -> list[list[tuple[int, int, int]]]:
    """Of each cell: (neighbour, this cell's side, the neighbour's side)."""
    found: list[list[tuple[int, int, int]]] = []
    for cell in range(rows * columns):
        row, column = divmod(cell, columns)
        own = []
        for (down, right), out, back in zip(MOVES, (UP, RIGHT, DOWN, LEFT), (DOWN, LEFT, UP, RIGHT), strict=True):
            if 0 <= row + down < rows and 0 <= column + right < columns:
                own.append((cell + down * columns + right, out, back))
        found.append(own)
    return found
