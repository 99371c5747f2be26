"""What a block of the first-person world believes about where it is."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vizdoom")

from training.doom import place, world  # noqa: E402

CELL = place.GRID[1] * 12 + 5  # of the grid's cells, one to the north-east of the middle
THERE = place.cells()[CELL]


def look(share: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A localiser that sees `share` of the likelihood in one cell, the rest far away, and the heading at 0."""
    places = torch.full((1, place.GRID[0] * place.GRID[1]), -30.0)
    places[0, CELL], places[0, 0] = math.log(share), math.log(1 - share + 1e-12)
    bearings = torch.full((1, place.BEARINGS), -30.0)
    bearings[0, 0] = 0.0
    return places, bearings


def belief(x: float, y: float, turns: float, doubt: float) -> torch.Tensor:
    return torch.tensor([[x, y, turns, 0.0, 0.0, doubt, doubt]])


def correct(before: torch.Tensor, share: float = 1.0, *, there: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """After a chunk of standing still."""
    moved = before[:, None, :3].expand(1, world.FRAMES, 3)
    return place.corrected(moved, before, torch.tensor([there]), *look(share))


def test_a_first_chunk_is_where_it_looks_to_be_and_stands_still() -> None:
    poses, after = correct(belief(0, 0, 0.3, 0), there=False)
    assert torch.allclose(poses[0, :, :2], THERE.expand(world.FRAMES, 2), atol=1e-3)
    assert min(after[0, 2], 1 - after[0, 2]) < 1e-4
    assert torch.equal(after[0, 3:5], torch.zeros(2))
    assert after[0, 5] == pytest.approx(place.LEAST[0], rel=0.01)


def test_a_sure_belief_is_hardly_moved_by_a_look_and_an_unsure_one_follows_it() -> None:
    near = (float(THERE[0]) + 0.6, float(THERE[1]), 0.98)
    sure, _ = correct(belief(*near, 0.001))
    unsure, after = correct(belief(*near, 5.0))
    assert torch.allclose(sure[0, -1], torch.tensor(near), atol=0.01)
    assert torch.allclose(unsure[0, -1, :2], THERE, atol=0.02)
    assert min(after[0, 2], 1 - after[0, 2]) < 0.005  # the short way round
    assert after[0, 5] < 0.1


def test_a_look_that_says_elsewhere_moves_nothing_far() -> None:
    poses, _ = correct(belief(float(THERE[0]), float(THERE[1]) + 0.5, 0.0, 0.1), share=0.02)
    assert torch.allclose(poses[0, -1, :2], THERE + torch.tensor([0.0, 0.5]), atol=0.05)


def test_standing_still_adds_no_doubt() -> None:
    before = belief(float(THERE[0]), float(THERE[1]), 0.0, 0.05)
    assert correct(before)[1][0, 5] < before[0, 5]


def test_turning_moves_the_heading_by_the_same_angle_each_frame() -> None:
    actions = torch.tensor([world.LEFT, world.RIGHT, world.FORWARD, world.NONE])
    poses = place.Odometer().eval()(torch.zeros(4, place.BELIEF), actions)
    assert torch.allclose(poses[:2, -1, 2], torch.tensor([30 / 360, -30 / 360]))
    assert torch.equal(poses[2:, :, 2], torch.zeros(2, 4))
