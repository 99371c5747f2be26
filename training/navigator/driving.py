"""How often a policy that is still in training gets there: exported, and played without a service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from worldtree_navigator.policy import Policy as Served
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.policy_package import PolicyPackage

from training.navigator.closed_loop import play, trials
from training.navigator.evaluate import EXECUTED
from training.navigator.export import PACKAGES, write
from training.navigator.model import Policy


@contextmanager
def served(model: Policy, shape: str) -> Iterator[Served]:
    """The policy of a package that is gone at the end."""
    name, _ = PACKAGES[shape]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / name / "1"
        write(model, shape, target)
        yield Served(ModelRepository(Path(folder), PolicyPackage).read(target))


def drive(policy: Served, planner: str, environments: tuple[str, ...], count: int) -> dict[str, float]:
    """The share of `count` held-out episodes of each environment in which it gets there."""
    found = {}
    for env_id in environments:
        own = trials(env_id, count, policy.memory)
        play(policy, planner, own, execute=EXECUTED)
        found[env_id] = float(np.mean([each.done for each in own]))
    return found
