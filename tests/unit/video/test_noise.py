"""Noise by name: (seed, chunk, step) and nothing else."""

import itertools

import numpy as np
from worldtree_video.domain import SEED_MAX
from worldtree_video.noise import draw

SHAPE = (1, 16, 16, 3)


def test_the_same_name_draws_the_same_noise_whatever_was_drawn_before() -> None:
    first = draw(7, 3, 1, SHAPE)
    np.random.default_rng(0).normal(size=100)
    draw(8, 3, 1, SHAPE)
    assert np.array_equal(first, draw(7, 3, 1, SHAPE))


def test_any_other_seed_chunk_or_step_draws_other_noise() -> None:
    drawn = [draw(*name, SHAPE).tobytes() for name in itertools.product((0, 1, SEED_MAX), (0, 1, 2**40), (0, 1, 2))]
    assert len(set(drawn)) == len(drawn)


def test_neighbours_are_not_shifted_copies_of_one_another() -> None:
    noise = [draw(seed, chunk, step, (4096,)) for seed, chunk, step in itertools.product((0, 1), (0, 1), (0, 1))]
    for a, b in itertools.combinations(noise, 2):
        assert abs(float(np.corrcoef(a, b)[0, 1])) < 0.08
        assert not set(a[:64].tolist()) & set(b.tolist())


def test_noise_is_standard_normal() -> None:
    noise = draw(7, 0, 0, (100_000,))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.015
    assert abs(noise.std() - 1) < 0.015
    assert abs((np.abs(noise) < 1).mean() - 0.6827) < 0.01
