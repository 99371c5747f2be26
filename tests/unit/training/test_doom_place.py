"""What a block of the first-person world believes about where it is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vizdoom")

from training.doom import place, world  # noqa: E402

EAST = torch.tensor([[1.0, 2.0, 1.0, 0.0, 0.1, 0.1]])  # at (1, 2), facing along x, fairly sure


def belief(x: float, y: float, turns: float, doubt: float) -> torch.Tensor:
    return torch.tensor([[x, y, turns, 0.0, 0.0, doubt, doubt]])


def test_a_first_chunk_is_where_it_looks_to_be_and_stands_still() -> None:
    poses, after = place.corrected(torch.zeros(1, 4, 3), belief(0, 0, 0, 0), torch.tensor([False]), EAST)
    assert torch.allclose(poses, torch.tensor([1.0, 2.0, 0.0]).expand(1, 4, 3))
    assert torch.allclose(after[0, :5], torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0]))
    assert after[0, 5] == pytest.approx(place.CAUTION * 0.1)


def test_a_sure_belief_is_hardly_moved_by_a_look_and_an_unsure_one_follows_it() -> None:
    moved = torch.tensor([0.0, 0.0, 0.99]).expand(1, 4, 3)
    there = torch.tensor([True])
    sure, _ = place.corrected(moved, belief(0, 0, 0.99, 0.001), there, EAST)
    unsure, after = place.corrected(moved, belief(0, 0, 0.99, 10.0), there, EAST)
    assert torch.allclose(sure[0, -1], torch.tensor([0.0, 0.0, 0.99]), atol=0.01)
    assert torch.allclose(unsure[0, -1], torch.tensor([1.0, 2.0, 1.0]), atol=0.01)  # the short way round: 1.0 is 0.0
    assert min(after[0, 2], 1 - after[0, 2]) < 0.01
    assert after[0, 5] < 0.21


def test_standing_still_adds_no_doubt() -> None:
    still = torch.zeros(1, 4, 3)
    before = belief(0, 0, 0, 0.05)
    _, after = place.corrected(still, before, torch.tensor([True]), EAST)
    assert after[0, 5] < before[0, 5]


def test_turning_moves_the_heading_by_the_same_angle_each_frame() -> None:
    actions = torch.tensor([world.LEFT, world.RIGHT, world.FORWARD, world.NONE])
    poses = place.Odometer().eval()(torch.zeros(4, place.BELIEF), actions)
    assert torch.allclose(poses[:2, -1, 2], torch.tensor([30 / 360, -30 / 360]))
    assert torch.equal(poses[2:, :, 2], torch.zeros(2, 4))
