"""Policies that are driven while they are in training."""

import pytest

torch = pytest.importorskip("torch", reason="the train extra")

from training.navigator.driving import drive, served  # noqa: E402
from training.navigator.model import SHAPES, Policy  # noqa: E402

ENVIRONMENTS = ("BabyAI-GoToObj-v0", "BabyAI-GoToObjMazeS4-v0")


def test_a_policy_that_learnt_nothing_is_driven_and_seldom_gets_there() -> None:
    torch.manual_seed(0)
    model = Policy(SHAPES["action-only"]).eval().requires_grad_(False)
    with served(model, "action-only") as policy:
        found = drive(policy, "action_only", ENVIRONMENTS, 4)
        assert drive(policy, "action_only", ENVIRONMENTS, 4) == found
    assert set(found) == set(ENVIRONMENTS)
    assert all(0.0 <= success < 1.0 for success in found.values())
