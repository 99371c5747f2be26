"""Mazes, what either objective is told of them, and the shipped package."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worldtree_navigator.maze_model import MazeModel as Served
from worldtree_runtime.maze_package import MazePackage
from worldtree_runtime.model_repository import ModelRepository

torch = pytest.importorskip("torch", reason="the train extra")

from training.mazes.batches import batch_of, steps_of  # noqa: E402
from training.mazes.decoding import grid_of, next_token_exact, next_token_paths  # noqa: E402
from training.mazes.evaluate import difference_interval, interval, measured, served_paths  # noqa: E402
from training.mazes.mazes import GOAL, NOWHERE, START, Maze, draw_batch, draw_set  # noqa: E402
from training.mazes.model import HIDDEN, NO_TARGET, MazeConfig, MazeModel  # noqa: E402
from training.mazes.states import BASELINE, load_state  # noqa: E402

ROOT = Path(__file__).parents[3]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    small = MazeModel(MazeConfig(width=24, heads=2, layers=2, hidden=32)).eval()
    for p in small.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return small


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (10, 7), (1, 4)])
def test_a_maze_has_one_path_between_any_two_cells(rows: int, columns: int) -> None:
    for maze in draw_set("train", rows, columns, 10):
        grid = grid_of(maze)
        assert grid.sides_fault() is None
        assert sum(bin(sides).count("1") for sides in grid.open_sides) == 2 * (rows * columns - 1)
        assert sum(grid.reachable(0)) == rows * columns
        assert tuple(grid.shortest_path(maze.path[0], maze.path[-1]) or ()) == maze.path


def test_blocked_cells_are_of_no_path() -> None:
    mazes = draw_set("train", 8, 8, 20, blocked=True)
    assert any((maze.open_sides == 0).any() for maze in mazes)
    for maze in mazes:
        assert (maze.open_sides.ravel()[list(maze.path)] > 0).all()
        assert grid_of(maze).path_fault(maze.path, maze.path[0], maze.path[-1]) is None


def test_splits_and_steps_are_streams_of_their_own() -> None:
    def drawn(split: str, index: int) -> list[bytes]:
        return [maze.open_sides.tobytes() for maze in draw_batch(split, index, 500)]

    assert drawn("train", 3) == drawn("train", 3)
    assert drawn("train", 3) != drawn("train", 4)
    sets = [
        {maze.open_sides.tobytes() for maze in draw_set(split, 7, 7, 50)} for split in ("train", "validation", "test")
    ]
    for one, other in combinations(sets, 2):
        assert not one & other


def test_marks_and_labels_tell_the_path() -> None:
    (maze,) = draw_set("test", 6, 9, 1)
    marks, labels = maze.marks.ravel(), maze.labels.ravel()
    assert (marks[maze.path[0]], marks[maze.path[-1]]) == (START, GOAL)
    assert set(np.flatnonzero(labels != NOWHERE).tolist()) == set(maze.path[:-1])


def test_steps_are_the_labels_along_the_path() -> None:
    mazes = draw_set("test", 6, 6, 4)
    steps = steps_of(mazes)
    for row, maze in enumerate(mazes):
        count, labels = len(maze.path) - 1, maze.labels.ravel()
        assert steps.path[row, :count].tolist() == list(maze.path[:-1])
        assert steps.targets[row, :count].tolist() == labels[list(maze.path[:-1])].tolist()
        assert steps.entered[row, 1:count].tolist() == steps.targets[row, : count - 1].tolist()
        assert steps.entered[row, 0] == NOWHERE
        assert (steps.targets[row, count:] == NO_TARGET).all()


def test_the_next_step_is_not_told_of_later_ones(model: Any) -> None:
    mazes = draw_set("test", 6, 6, 3)
    given, steps = batch_of(mazes), steps_of(mazes)
    cut = min(len(maze.path) for maze in mazes) // 2 + 1
    whole = model.follow(given.open_sides, given.marks, steps.path, steps.entered)
    short = model.follow(given.open_sides, given.marks, steps.path[:, :cut], steps.entered[:, :cut])
    assert torch.allclose(whole[:, :cut], short, atol=1e-5)


def test_hidden_labels_are_predicted_from_told_ones_on_either_side(model: Any) -> None:
    (maze,) = draw_set("test", 6, 6, 1)
    given = batch_of([maze])
    hidden = torch.full_like(given.labels, HIDDEN)
    nothing_told = model(given.open_sides, given.marks, hidden).flatten(1, 2)
    middle = maze.path[len(maze.path) // 2]
    for told in (maze.path[0], maze.path[-2]):
        labels = hidden.clone()
        labels.view(-1)[told] = given.labels.view(-1)[told]
        found = model(given.open_sides, given.marks, labels).flatten(1, 2)
        assert not torch.allclose(found[0, middle], nothing_told[0, middle])


def test_the_true_path_is_found_greedily_where_each_of_its_steps_is_the_likeliest(model: Any) -> None:
    mazes: list[Maze] = draw_set("test", 2, 3, 60)
    paths = next_token_paths(model, mazes)
    exact = [tuple(path) == maze.path for path, maze in zip(paths, mazes, strict=True)]
    assert exact == next_token_exact(model, mazes).tolist()
    assert any(exact)


def test_the_shipped_package_and_the_kept_baseline_are_what_the_card_says() -> None:
    served = Served(ModelRepository(ROOT / "models", MazePackage).read(ROOT / "models" / "mazes" / "1"))
    mazes = draw_set("test", 7, 7, 40)
    paths, rounds = served_paths(served, mazes)
    ours = measured(paths, mazes)
    theirs = measured(next_token_paths(load_state(ROOT / BASELINE), mazes), mazes)
    assert ours["exact"] >= theirs["exact"] + 0.15
    assert ours["valid"] >= ours["exact"]
    assert 1 <= rounds < 20


def test_the_package_is_as_large_as_the_baseline() -> None:
    path = ROOT / "models" / "mazes" / "1" / "path.onnx"
    parameters = sum(p.numel() for p in MazeModel().parameters())
    assert 4 * parameters < path.stat().st_size < 6_000_000


def test_intervals_hold_the_share() -> None:
    assert interval(0, 10)[0] == 0.0
    assert interval(10, 10)[1] == 1.0
    low, high = interval(300, 400)
    assert low < 0.75 < high
    assert high - low < 0.09
    difference, low, high = difference_interval([True] * 30 + [False] * 10, [True] * 10 + [False] * 30)
    assert low < difference == 0.5 < high
