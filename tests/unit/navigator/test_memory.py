"""What a walker remembers turns and shifts with it, also where it was not seen what it did."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_navigator.memory import Ground, Memory, Tiles

FLOOR, WALL, MARK, DOOR, OPEN, AGENT, UNSEEN = range(7)
LEFT, RIGHT, FORWARD, TOGGLE = range(4)
GROUND = Ground(3, UNSEEN, FLOOR, frozenset({FLOOR, MARK, OPEN}), LEFT, RIGHT, FORWARD)
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))


class Walker:
    """The truth: a grid, and somebody who walks on it and sees 3 x 3 cells ahead."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.grid = rng.choice([FLOOR, FLOOR, WALL, MARK, DOOR], (15, 15)).astype(np.uint8)
        self.grid[[0, 1, -1, -2]] = WALL
        self.grid[:, [0, 1, -1, -2]] = WALL
        self.row = self.column = 7
        self.grid[7, 7] = FLOOR
        self.heading = 0

    def view(self) -> Tiles:
        turned = np.rot90(self.grid, self.heading)
        row, column = self._turned()
        seen = turned[row - 2 : row + 1, column - 1 : column + 2].copy()
        seen[-1, 1] = AGENT
        return seen.reshape(-1)

    def do(self, action: int) -> None:
        row, column = self.row + STEPS[self.heading][0], self.column + STEPS[self.heading][1]
        if action in (LEFT, RIGHT):
            self.heading = (self.heading + (1 if action == RIGHT else 3)) % 4
        elif action == FORWARD and self.grid[row, column] in GROUND.enterable:
            self.row, self.column = row, column
        elif action == TOGGLE and self.grid[row, column] in (DOOR, OPEN):
            self.grid[row, column] = OPEN if self.grid[row, column] == DOOR else DOOR

    def around(self) -> Tiles:
        """What is there, the walker in the middle, facing up; cells beyond the grid are unseen."""
        padded = np.pad(self.grid, 15, constant_values=UNSEEN)
        turned = np.rot90(padded, self.heading)
        row, column = self._turned(15)
        return turned[row - 5 : row + 6, column - 5 : column + 6]

    def _turned(self, pad: int = 0) -> tuple[int, int]:
        last = 14 + 2 * pad
        row, column = self.row + pad, self.column + pad
        for _ in range(self.heading):
            row, column = last - column, row
        return row, column


def agrees(memory: Memory, walker: Walker) -> bool:
    remembered, truth = memory.around(11), walker.around()
    known = remembered != UNSEEN
    return bool((remembered[known] == truth[known]).all())


@given(st.integers(0, 2**31), st.lists(st.sampled_from([LEFT, RIGHT, FORWARD, FORWARD, TOGGLE]), max_size=40))
def test_what_is_remembered_is_there(seed: int, actions: list[int]) -> None:
    walker, memory = Walker(seed), Memory(GROUND, 13)
    memory.see(walker.view())
    for action in actions:
        walker.do(action)
        memory.follow([action], walker.view())
        assert agrees(memory, walker)


def test_a_way_that_was_not_seen_is_found_by_what_is_seen_after_it() -> None:
    for seed in range(20):
        walker, memory = Walker(seed), Memory(GROUND, 13)
        walker.grid[5:10, 5:10] = FLOOR
        walker.grid[5, 5] = walker.grid[9, 8] = MARK
        memory.see(walker.view())
        for action in (LEFT, RIGHT, RIGHT, RIGHT, RIGHT):  # all around once
            walker.do(action)
            memory.follow([action], walker.view())
        blind = [FORWARD, LEFT, FORWARD, RIGHT, FORWARD]
        for action in blind:
            walker.do(action)
        memory.follow(blind, walker.view())
        assert agrees(memory, walker)


def test_a_door_that_was_opened_unseen_was_walked_through() -> None:
    walker, memory = Walker(3), Memory(GROUND, 13)
    walker.grid[4:10, 5:10] = FLOOR
    walker.grid[6, 7] = DOOR
    walker.grid[4, 6] = MARK
    memory.see(walker.view())
    for action in (TOGGLE, FORWARD):
        walker.do(action)
    memory.follow([TOGGLE, FORWARD], walker.view())
    assert walker.row == 6
    walker.grid[6, 7] = FLOOR  # what it stands on was never seen open
    assert agrees(memory, walker)


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_door_that_stayed_shut_was_not_walked_through(steps: int) -> None:
    walker, memory = Walker(3), Memory(GROUND, 13)
    walker.grid[4:10, 5:10] = FLOOR
    walker.grid[6, 7] = WALL  # as a locked door is: what is done to it changes nothing
    memory.see(walker.view())
    memory.follow([TOGGLE, *[FORWARD] * steps], walker.view())
    assert agrees(memory, walker)


def test_a_turn_does_not_make_sure_of_what_was_acted_upon() -> None:
    walker, memory = Walker(3), Memory(GROUND, 13)
    walker.grid[3:10, 5:10] = FLOOR
    walker.grid[6, 7] = DOOR
    walker.grid[4, 6] = walker.grid[7, 6] = MARK
    memory.see(walker.view())
    blind = [TOGGLE, LEFT, RIGHT, FORWARD]
    for action in blind:
        walker.do(action)
    memory.follow(blind, walker.view())
    walker.grid[6, 7] = FLOOR  # what it stands on was never seen open
    assert agrees(memory, walker)


def test_nothing_but_tiles_is_kept_of_a_guess() -> None:
    memory = Memory(GROUND, 13)
    memory.follow([FORWARD, FORWARD, LEFT, FORWARD], np.full(9, UNSEEN, np.uint8))
    assert set(np.unique(memory.cells)) <= set(range(7))


def test_a_copy_goes_its_own_way() -> None:
    walker, memory = Walker(1), Memory(GROUND, 13)
    memory.see(walker.view())
    before = memory.cells.copy()
    twin = memory.copy()
    twin.act(LEFT)
    twin.see(walker.view())
    assert np.array_equal(memory.cells, before)


def test_guesses_are_bounded() -> None:
    memory = Memory(GROUND, 13)
    memory.follow([FORWARD] * 200, np.full(9, UNSEEN, np.uint8))
    assert memory.cells.shape == (13, 13)


@pytest.mark.parametrize("size", [3, 7, 13])
def test_what_is_around_has_the_walker_in_the_middle(size: int) -> None:
    memory = Memory(GROUND, 13)
    assert memory.around(size)[size // 2, size // 2] == FLOOR
    assert (memory.around(size) == UNSEEN).sum() == size * size - 1
