"""The same session gives the same uint8 frames, whatever happens around it and whoever carries it: 64 chunks."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

_CHANCE = random.Random(20261124)
ACTIONS = [_CHANCE.choice((0, 1, 2, 2, 2, 3, 5)) for _ in range(64)]


def test_alone_in_one_call(client, expected):
    world = client.world()
    assert np.array_equal(world.step(ACTIONS), expected(ACTIONS))
    world.close()


def test_in_a_batch_with_seven_others(client, expected):
    worlds = [client.world(seed=seed) for seed in range(7, 15)]

    def drive(place):
        # Each neighbour walks its own way, so that the batch mixes noise levels, windows and actions.
        actions = ACTIONS if place == 0 else ACTIONS[place:] + ACTIONS[:place]
        return np.concatenate([worlds[place].step([action]) for action in actions])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(drive, range(8)))
    assert np.array_equal(results[0], expected(ACTIONS))
    assert len({result.tobytes() for result in results}) == 8, "other seeds and actions must give other frames"
    for world in worlds:
        world.close()


def test_forked_in_the_middle_while_the_parent_goes_elsewhere(client, expected):
    parent = client.world()
    first = parent.step(ACTIONS[:32])
    child = parent.fork()
    parent.step([1] * 8)
    assert np.array_equal(np.concatenate([first, child.step(ACTIONS[32:])]), expected(ACTIONS))
    parent.close()
    child.close()


@pytest.mark.parametrize("back", [5, 60], ids=["within the reserve", "by replay"])
def test_rewound_and_replayed(client, expected, back):
    world = client.world()
    world.step(ACTIONS)
    world.rewind(back)
    assert np.array_equal(world.step(ACTIONS[-back:]), expected(ACTIONS)[-back:])
    world.close()


@pytest.mark.parametrize("as_bytes", [False, True], ids=["by id", "by bytes"])
def test_saved_and_restored(client, expected, as_bytes):
    world = client.world()
    world.step(ACTIONS[:32])
    twin = world.saved_and_restored(as_bytes=as_bytes)
    world.close()
    assert np.array_equal(twin.step(ACTIONS[32:]), expected(ACTIONS)[32:])
    twin.close()


def test_played(client, expected):
    world = client.world()
    assert np.array_equal(world.play(ACTIONS), expected(ACTIONS))
    world.close()


def test_generated(client, expected):
    assert np.array_equal(client.generate(ACTIONS), expected(ACTIONS))


def test_imagined_in_a_rollout_that_moves_nothing(client, expected):
    world = client.world()
    world.step(ACTIONS[:48])
    tail = ACTIONS[48:]
    futures = world.rollout([tail, tail[:8], [*tail[:4], 1, 1]])
    assert np.array_equal(futures[0], expected(ACTIONS)[48:])
    assert np.array_equal(futures[1], futures[0][:8])
    assert np.array_equal(world.step(tail), futures[0])
    world.close()
