"""Paths from a model in torch, as either objective finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from worldtree_navigator.grid import Grid
from worldtree_navigator.maze_model import Filling, advance
from worldtree_navigator.maze_path import follow

from training.mazes.batches import batch_of, steps_of
from training.mazes.mazes import MOVES, NOWHERE, Maze
from training.mazes.model import NO_TARGET, MazeModel

ROUNDS, SURE = 32, 0.999  # found on validation mazes, as is what is served
Ids = npt.NDArray[np.int64]


@torch.no_grad()
def mlm_u_paths(
    model: MazeModel, mazes: Sequence[Maze], *, rounds: int = ROUNDS, sure: float = SURE
) -> list[list[int]]:
    """In rounds, as it is served (`worldtree_navigator.maze_model.advance`): cells of each path, as far as it came."""

    def predict(open_sides: Ids, marks: Ids, labels: Ids) -> npt.NDArray[np.float32]:
        logits = model(*(torch.from_numpy(each) for each in (open_sides, marks, labels)))
        return logits.softmax(-1).numpy()  # type: ignore[no-any-return]

    fillings = [Filling(m.open_sides.astype(np.int64), m.marks.astype(np.int64), rounds=rounds) for m in mazes]
    while still := [each for each in fillings if not each.done]:
        advance(predict, still, sure=sure)
    return [path_of(each, maze)[0] for each, maze in zip(fillings, mazes, strict=True)]


def path_of(filling: Filling, maze: Maze) -> tuple[list[int], float]:
    """The path that labels tell, and its probability."""
    labels, chances = filling.labels.ravel().tolist(), filling.chances.ravel().tolist()
    return follow(grid_of(maze), labels, chances, maze.path[0], maze.path[-1])


def grid_of(maze: Maze) -> Grid:
    return Grid.of_sides(*maze.open_sides.shape, maze.open_sides.tobytes())


@torch.no_grad()
def next_token_paths(model: MazeModel, mazes: Sequence[Maze]) -> list[list[int]]:
    """Greedily, one step after the other, until the goal, a step that leads nowhere or off the map, or as many steps as
    the maze has cells.
    """
    given = batch_of(mazes)
    rows, columns = mazes[0].open_sides.shape
    paths, entered = [[maze.path[0]] for maze in mazes], [[NOWHERE] for _ in mazes]
    open_ends = list(range(len(mazes)))
    for _ in range(rows * columns):
        if not open_ends:
            break
        path = torch.tensor([paths[i] for i in open_ends])
        before = torch.tensor([entered[i] for i in open_ends])
        logits = model.follow(given.open_sides[open_ends], given.marks[open_ends], path, before)[:, -1]
        still = []
        for i, label in zip(open_ends, logits.argmax(-1).tolist(), strict=True):
            if label == NOWHERE:
                continue
            row, column = divmod(paths[i][-1], columns)
            row, column = row + MOVES[label - 1][0], column + MOVES[label - 1][1]
            if not (0 <= row < rows and 0 <= column < columns):
                continue
            paths[i].append(row * columns + column)
            entered[i].append(label)
            if paths[i][-1] != mazes[i].path[-1]:
                still.append(i)
        open_ends = still
    return paths


@torch.no_grad()
def next_token_exact(model: MazeModel, mazes: Sequence[Maze]) -> npt.NDArray[np.bool_]:
    """[mazes]: whether `next_token_paths` finds the path. It does where each step of the true path is the likeliest
    after those before it, which one pass tells.
    """
    given, steps = batch_of(mazes), steps_of(mazes)
    logits = model.follow(given.open_sides, given.marks, steps.path, steps.entered)
    right = (logits.argmax(-1) == steps.targets) | (steps.targets == NO_TARGET)
    return right.all(1).numpy()  # type: ignore[no-any-return]
