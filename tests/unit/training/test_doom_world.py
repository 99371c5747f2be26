"""The simulator behind the first-person world, and who walks in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("vizdoom")

from training.doom import world
from training.doom.data import ATTEMPTS, FIRST_SEED, record
from training.doom.explore import WHOLE_TURN, Explorer


@pytest.fixture(scope="module")
def game() -> Iterator[world.World]:
    each = world.World()
    yield each
    each.close()


def test_equal_seeds_record_equal_walks_and_others_do_not(game: world.World) -> None:
    one, same, other = (record(game, "test", index, chunks=5) for index in (3, 3, 4))
    assert np.array_equal(one.frames, same.frames)
    assert np.array_equal(one.actions, same.actions)
    assert not np.array_equal(one.frames, other.frames)
    assert one.frames.shape == (5, world.FRAMES, world.HEIGHT, world.WIDTH, 3)
    assert one.actions[0] == world.NONE


def test_twelve_turns_to_the_left_are_a_whole_turn(game: world.World) -> None:
    frames, poses = game.reset(FIRST_SEED["test"])
    apart = []
    for _ in range(WHOLE_TURN):
        step = game.step(world.LEFT)
        assert step is not None
        apart.append(np.abs(step[0][-1].astype(int) - frames[-1]).mean())
    assert WHOLE_TURN == 12
    assert np.allclose(step[1][-1], poses[-1], atol=1.0)
    # A walker that drifts by less than a unit sees other pixels of the same walls.
    assert apart[-1] == min(apart) < 0.2 * max(apart)


def test_no_walk_of_one_split_is_a_walk_of_another() -> None:
    firsts = sorted(FIRST_SEED.values())
    assert all(b - a > 100_000 * ATTEMPTS for a, b in pairwise(firsts))


def test_an_explorer_that_meets_a_wall_turns_away_and_walks_on() -> None:
    turned = 0
    for seed in range(200):
        explorer = Explorer(np.random.default_rng(seed))
        while explorer.act(100.0) != world.FORWARD:
            pass
        turned += explorer.act(0.0) in (world.LEFT, world.RIGHT)
    assert turned > 140
