"""Mazes as tensors, for either objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.mazes.mazes import NOWHERE, Maze
from training.mazes.model import NO_TARGET


class Batch(NamedTuple):
    """Mazes of one size, all [batch, rows, columns] int64."""

    open_sides: Tensor
    marks: Tensor
    labels: Tensor


class Steps(NamedTuple):
    """The paths as sequences, all [batch, steps] int64; shorter ones are filled up."""

    path: Tensor  # cells, the goal left out
    entered: Tensor  # the label of the cell before; NOWHERE for the first
    targets: Tensor  # the label of each cell; NO_TARGET beyond the path


def batch_of(mazes: Sequence[Maze]) -> Batch:
    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(maze, name) for maze in mazes]).astype(np.int64))

    return Batch(stacked("open_sides"), stacked("marks"), stacked("labels"))


def steps_of(mazes: Sequence[Maze]) -> Steps:
    longest = max(len(maze.path) for maze in mazes) - 1
    path = np.zeros((len(mazes), longest), np.int64)
    entered, targets = np.full_like(path, NOWHERE), np.full_like(path, NO_TARGET)
    for row, maze in enumerate(mazes):
        cells = list(maze.path[:-1])
        labels = maze.labels.ravel()[cells]
        path[row, : len(cells)], targets[row, : len(cells)] = cells, labels
        entered[row, 1 : len(cells)] = labels[:-1]
    return Steps(torch.from_numpy(path), torch.from_numpy(entered), torch.from_numpy(targets))
