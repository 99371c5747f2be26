"""Episodes in the simulator, many side by side, by a policy as it is served but without the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from worldtree_navigator.memory import Memory
from worldtree_navigator.policy import Draft, Policy

from training.minigrid.data import FIRST_SEED
from training.minigrid.worlds import World
from training.navigator.missions import Mission, mission_of, tokenize, world_of

TEST_OFFSET = 60_000_000  # of seeds, from those of other recipes


@dataclass
class Trial:
    """One episode. `steps`: until it was done, or the environment's limit."""

    world: World
    text: str
    mission: Mission
    limit: int
    memory: Memory
    steps: int = 0
    done: bool = False
    executed: list[int] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.done or self.steps >= self.limit


def trials(env_id: str, count: int, new_memory: Callable[[], Memory], *, first: int = 0) -> list[Trial]:
    """The first so many held-out episodes whose mission is one of ours."""
    env: Any = gymnasium.make(env_id).unwrapped
    env.reset(seed=0)
    limit = int(env.max_steps)  # BabyAI sets it when it resets
    found: list[Trial] = []
    seed = FIRST_SEED["test"] + TEST_OFFSET + first
    while len(found) < count:
        made = world_of(env_id, seed % (1 << 31))
        seed += 1
        if made is not None:
            mission = mission_of(made[1])
            assert mission is not None
            found.append(Trial(made[0], made[1], mission, limit, new_memory()))
            found[-1].memory.see(made[0].frame_ids())
    return found


def play(
    policy: Policy,
    planner: str,
    all_trials: Sequence[Trial],
    *,
    execute: int,
    rounds: int | None = None,
    temperature: float | None = None,
) -> None:
    """Each to its end. `execute`: actions of a chunk that are done before the next is asked for."""
    spec = next(each for each in policy.package.planners if each.name == planner)
    if temperature is not None:
        spec = spec.model_copy(update={"temperature": temperature})
    while going := [each for each in all_trials if not each.over]:
        for first in range(0, len(going), 32):
            some = going[first : first + 32]
            drafts = [
                Draft(
                    policy,
                    each.world.frame_ids(),
                    each.memory,
                    tokenize(each.text),
                    planner=spec,
                    rounds=rounds,
                    seed=(7, each.steps),
                )
                for each in some
            ]
            while not drafts[0].is_done:
                policy.step(drafts)
            for trial, draft in zip(some, drafts, strict=True):
                for action in draft.actions[:execute].tolist():
                    trial.world.step(action)
                    trial.executed.append(action)
                    trial.steps += 1
                    trial.memory.follow([action], trial.world.frame_ids())
                    trial.done = trial.mission.is_done(trial.world)
                    if trial.over:
                        break
