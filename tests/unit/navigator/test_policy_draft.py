"""Drafts of a chunk: what was decided stays, and what is no number breaks the draft as a whole."""

from pathlib import Path

import numpy as np
import pytest
from worldtree_navigator.policy import Draft, Policy
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.policy_package import PolicyPackage

SHIPPED = Path(__file__).parents[3] / "models" / "joint" / "1"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(ModelRepository(SHIPPED.parents[1], PolicyPackage).read(SHIPPED))


def draft(policy: Policy, *, executing: tuple[int, ...] = (), seed: int = 1) -> Draft:
    view = np.full(policy.package.ground.side**2, policy.ground.floor, np.uint8)
    memory = policy.memory()
    memory.see(view)
    words = policy.words(("go", "to", "the", "red", "ball"))
    planner = policy.package.planners[0]
    return Draft(policy, view, memory, words, planner=planner, executing=executing, seed=(seed,))


def finish(policy: Policy, *drafts: Draft) -> None:
    while going := [each for each in drafts if not each.is_done]:
        policy.step(going)


def logits(policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    package = policy.package
    cells = package.ground.side**2
    rng = np.random.default_rng(3)
    actions = rng.normal(size=(package.horizon, len(package.actions))).astype(np.float32)
    return actions, rng.normal(size=(package.horizon, cells, package.tile_count)).astype(np.float32)


def test_every_place_is_decided_and_what_is_executed_first_stays(policy: Policy) -> None:
    one = draft(policy, executing=(2, 1))
    finish(policy, one)
    assert one.actions[:2].tolist() == [2, 1]
    assert one.actions.max() < policy.action_mask
    assert one.frames.max() < policy.cell_mask
    assert one.context is None, "what was known is held no longer than it is needed"
    assert 0 < one.confidence(2) <= 1


@pytest.mark.parametrize("part", ["actions", "frames"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_logit_that_is_no_number_breaks_the_draft_and_decides_nothing(
    policy: Policy, part: str, value: float
) -> None:
    one = draft(policy, executing=(2,))
    actions, frames = logits(policy)
    (actions if part == "actions" else frames)[3, 0] = value
    before = one.actions.copy()
    for _ in range(one.rounds):
        one.decide(actions, frames)
    assert one.is_broken
    assert one.actions.tolist() == before.tolist()


def test_drafts_that_join_later_are_as_if_they_were_alone(policy: Policy) -> None:
    alone = [draft(policy, seed=seed) for seed in (1, 2)]
    for each in alone:
        finish(policy, each)
    first, second = draft(policy, seed=1), draft(policy, seed=2)
    policy.step([first])
    finish(policy, first, second)
    assert first.actions.tolist() == alone[0].actions.tolist()
    assert second.actions.tolist() == alone[1].actions.tolist()
