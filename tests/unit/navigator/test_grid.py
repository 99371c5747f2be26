"""Maps: sides from occupancy, paths, and what can be reached."""

import random

import pytest
from worldtree_navigator.grid import DOWN, LEFT, RIGHT, UP, Grid
from worldtree_navigator.maze_path import follow

#  S . #
#  # . .
#  . # G
BLOCKED = bytes([0, 0, 1, 1, 0, 0, 0, 1, 0])


def random_grid(rows: int, columns: int, share: float, seed: int) -> Grid:
    rng = random.Random(seed)
    return Grid.of_blocked(rows, columns, bytes(rng.random() < share for _ in range(rows * columns)))


def steps_to(grid: Grid, start: int) -> dict[int, int]:
    """Of every cell that can be reached, ring by ring: how many steps it takes."""
    found, ring = {start: 0}, [start]
    while ring:
        ring = [other for cell in ring for other in grid.neighbours(cell) if other not in found]
        found |= dict.fromkeys(ring, max(found.values()) + 1)
    return found


def test_a_side_is_open_where_both_of_its_cells_are_free() -> None:
    grid = Grid.of_blocked(3, 3, BLOCKED)
    assert list(grid.open_sides) == [RIGHT, DOWN | LEFT, 0, 0, UP | RIGHT, DOWN | LEFT, 0, 0, UP]
    assert list(grid.free) == [1, 1, 0, 0, 1, 1, 1, 0, 1]
    assert grid.sides_fault() is None


def test_rows_do_not_wrap_around() -> None:
    grid = Grid.of_blocked(2, 2, bytes(4))
    assert {cell: set(grid.neighbours(cell)) for cell in range(4)} == {0: {1, 2}, 1: {0, 3}, 2: {0, 3}, 3: {1, 2}}


def test_the_shortest_path_steps_only_where_it_may() -> None:
    grid = Grid.of_blocked(3, 3, BLOCKED)
    assert grid.shortest_path(0, 8) == [0, 1, 4, 5, 8]
    assert grid.shortest_path(8, 8) == [8]


def test_where_there_is_no_way_the_reachable_cells_are_told() -> None:
    grid = Grid.of_blocked(3, 3, BLOCKED)
    assert grid.shortest_path(0, 6) is None
    assert list(grid.reachable(0)) == [1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert list(grid.reachable(6)) == [0, 0, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_a_star_is_as_short_as_a_search_ring_by_ring(seed: int) -> None:
    grid = random_grid(9, 13, 0.3, seed)
    start = next(cell for cell, free in enumerate(grid.free) if free)
    known = steps_to(grid, start)
    assert [cell for cell, reached in enumerate(grid.reachable(start)) if reached] == sorted(known)
    for cell, free in enumerate(grid.free):
        path = grid.shortest_path(start, cell) if free else None
        assert (path is None) == (cell not in known)
        if path is not None:
            assert len(path) == known[cell] + 1
            assert grid.path_fault(path, start, cell) is None


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ([], "it does not begin at the start"),
        ([1, 4, 5, 8], "it does not begin at the start"),
        ([0, 3, 4, 5, 8], "there is no step from (0, 0) to (1, 0)"),
        ([0, 1, 5, 8], "there is no step from (0, 1) to (1, 2)"),
        ([0, 1, 4], "it ends at (1, 1)"),
    ],
)
def test_a_path_that_does_not_hold_is_told_why(path: list[int], fault: str) -> None:
    assert Grid.of_blocked(3, 3, BLOCKED).path_fault(path, 0, 8) == fault


@pytest.mark.parametrize(
    ("sides", "fault"),
    [
        ([RIGHT, LEFT, UP, 0], None),
        ([UP, 0, 0, 0], (0, "its side up leads out of the map")),
        ([0, RIGHT, 0, 0], (1, "its side right leads out of the map")),
        ([0, 0, DOWN, 0], (2, "its side down leads out of the map")),
        ([0, 0, LEFT, 0], (2, "its side left leads out of the map")),
        ([RIGHT, 0, 0, 0], (0, "its side right is open, that of cell (0, 1) left is closed")),
        ([0, 0, 0, UP], (3, "its side up is open, that of cell (0, 1) down is closed")),
    ],
)
def test_sides_agree_and_stay_on_the_map(sides: list[int], fault: tuple[int, str] | None) -> None:
    if fault is None:
        sides = [RIGHT | DOWN, LEFT, UP, 0]
    assert Grid.of_sides(2, 2, bytes(sides)).sides_fault() == fault


def test_labels_are_followed_to_the_goal_with_the_chance_that_all_are_right() -> None:
    grid = Grid.of_blocked(3, 3, BLOCKED)
    labels, chances = [2, 3, 0, 0, 2, 3, 0, 0, 0], [0.5, 0.5, 0.9, 0.9, 1.0, 0.5, 0.9, 0.9, 0.1]
    assert follow(grid, labels, chances, 0, 8) == ([0, 1, 4, 5, 8], 0.125)


def test_labels_that_lead_nowhere_off_the_map_or_in_a_circle_end_the_path() -> None:
    grid, sure = Grid.of_blocked(2, 2, bytes(4)), [1.0] * 4
    assert follow(grid, [2, 0, 0, 0], sure, 0, 3)[0] == [0, 1]
    assert follow(grid, [1, 0, 0, 0], sure, 0, 3)[0] == [0]
    assert follow(grid, [2, 4, 0, 0], sure, 0, 3)[0] == [0, 1]
    assert follow(grid, [2, 3, 1, 4], sure, 0, 2)[0] == [0, 1, 3, 2]
