"""The same session gives the same uint8 frames, whatever happens around it and whoever carries it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest


def test_alone_in_one_call(client, walk, expected):
    world = client.world()
    assert np.array_equal(walk.chunks(world.step(list(walk.actions))), expected)
    world.close()


def test_in_a_batch_with_seven_others(client, walk, expected):
    worlds = [client.world(seed=seed) for seed in range(7, 15)]

    def drive(place):
        # Each neighbour walks its own way, so that the batch mixes noise levels, windows and actions.
        actions = walk.actions[place:] + walk.actions[:place]
        return np.stack([worlds[place].step([action]) for action in actions])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(drive, range(8)))
    assert np.array_equal(results[0], expected)
    assert len({result.tobytes() for result in results}) == 8, "other seeds and actions must give other frames"
    for world in worlds:
        world.close()


def test_forked_in_the_middle_while_the_parent_goes_elsewhere(client, walk, expected):
    half = len(walk.actions) // 2
    parent = client.world()
    first = walk.chunks(parent.step(list(walk.actions[:half])))
    child = parent.fork()
    parent.step([1] * 8)
    rest = walk.chunks(child.step(list(walk.actions[half:])))
    assert np.array_equal(np.concatenate([first, rest]), expected)
    parent.close()
    child.close()


@pytest.mark.parametrize("left", [-5, 4], ids=["within the reserve", "by replay"])
def test_rewound_and_replayed(client, walk, expected, left):
    left %= len(walk.actions)
    world = client.world()
    world.step(list(walk.actions))
    world.rewind(len(walk.actions) - left)
    assert np.array_equal(walk.chunks(world.step(list(walk.actions[left:]))), expected[left:])
    world.close()


@pytest.mark.parametrize("as_bytes", [False, True], ids=["by id", "by bytes"])
def test_saved_and_restored(client, walk, expected, as_bytes):
    half = len(walk.actions) // 2
    world = client.world()
    world.step(list(walk.actions[:half]))
    twin = world.saved_and_restored(as_bytes=as_bytes)
    world.close()
    assert np.array_equal(walk.chunks(twin.step(list(walk.actions[half:]))), expected[half:])
    twin.close()


def test_played(client, walk, expected):
    world = client.world()
    assert np.array_equal(walk.chunks(world.play(list(walk.actions))), expected)
    world.close()


def test_generated(client, walk, expected):
    assert np.array_equal(walk.chunks(client.generate(list(walk.actions))), expected)


def test_imagined_in_a_rollout_that_moves_nothing(client, walk, expected):
    world = client.world()
    world.step(list(walk.actions[:-16]))
    tail = list(walk.actions[-16:])
    futures = [walk.chunks(future) for future in world.rollout([tail, tail[:8], [*tail[:4], 1, 1]])]
    assert np.array_equal(futures[0], expected[-16:])
    assert np.array_equal(futures[1], futures[0][:8])
    assert np.array_equal(walk.chunks(world.step(tail)), futures[0])
    world.close()
