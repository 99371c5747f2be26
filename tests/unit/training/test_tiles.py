"""The codebook and the fast mirror against MiniGrid's own pictures."""

from __future__ import annotations

import numpy as np
import pytest

from training.minigrid import tiles
from training.minigrid.data import record
from training.minigrid.explore import Explorer, Temper
from training.minigrid.worlds import ENVIRONMENTS, World


def test_sixty_distinct_tiles_with_names() -> None:
    book = tiles.codebook()
    assert book.shape == (60, 8, 8, 3)
    assert len(np.unique(book.reshape(60, -1), axis=0)) == 60
    assert len(set(tiles.tile_names())) == 60
    assert tiles.tile_names()[tiles.DARK] == "unseen"


def test_frames_split_into_the_tiles_they_were_drawn_from() -> None:
    ids = np.random.default_rng(0).integers(0, 60, (3, 49))
    found, errors = tiles.nearest_tile(tiles.draw_frame(ids))
    assert np.array_equal(found, ids)
    assert errors.max() == 0


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_the_mirror_draws_what_the_simulator_draws(env_id: str) -> None:
    world = World(env_id, 11)
    explorer = Explorer(np.random.default_rng(11), Temper.lively())
    for _ in range(40):
        world.check()
        world.step(explorer.action(world))
    world.check()


def test_the_agent_can_enter_what_the_simulator_lets_it_enter() -> None:
    names = tiles.object_names()
    enterable = {names[code] for code in range(tiles.OBJECT_COUNT) if tiles.can_enter(code)}
    assert enterable == {"empty", "goal", "lava"} | {n for n in names if n.startswith("open ")}


def test_an_episode_is_a_function_of_its_seed() -> None:
    first, second = (record("MiniGrid-Playground-v0", 9, length=50) for _ in range(2))
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.actions, second.actions)
