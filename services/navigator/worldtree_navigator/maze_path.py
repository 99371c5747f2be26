"""A path read off the labels of cells. Plain Python."""

from collections.abc import Sequence
from math import prod

from worldtree_navigator.grid import Grid

_STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # of the labels 1 to 4


def follow(
    grid: Grid, labels: Sequence[int], chances: Sequence[float], start: int, goal: int
) -> tuple[list[int], float]:
    """The cells from the start on, each by the label of the one before, until the goal, a cell that leads nowhere, the
    edge of the map or a cell of before; and the probability that all those labels are right.
    """
    path, met = [start], {start}
    while path[-1] != goal and (label := labels[path[-1]]):
        row, column = grid.place(path[-1])
        row, column = row + _STEPS[label - 1][0], column + _STEPS[label - 1][1]
        if not (0 <= row < grid.rows and 0 <= column < grid.columns) or (cell := row * grid.columns + column) in met:
            break
        path.append(cell)
        met.add(cell)
    return path, prod(chances[cell] for cell in path if cell != goal)
