"""Who plans without a service, to compare with: at random, greedily, and the demonstrator as the ceiling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from worldtree.episodes import Episode
from worldtree.simulator import ACTIONS, Simulator
from worldtree_navigator.memory import Memory

from training.minigrid import pose, tiles
from training.navigator.expert import SIZE, ground, next_actions
from training.navigator.missions import Mission, mission_of

Decide = Callable[[np.ndarray], int]  # tile ids in view [49] -> an action


def play(env_id: str, seed: int, decider: Callable[[Mission, int], Decide]) -> Episode:
    """One episode; `decider` makes a player of a mission and a seed."""
    simulator = Simulator(env_id, seed)
    mission = mission_of(simulator.goal)
    assert mission is not None, simulator.goal
    decide = decider(mission, seed)
    while not simulator.over:
        ids, _ = tiles.nearest_tile(simulator.frame()[None])
        simulator.step(decide(ids[0].astype(np.uint8)))
    return Episode(env_id, seed, simulator.goal, simulator.outcome, (), (), ())


def at_random(_: Mission, seed: int) -> Decide:
    """Any action that moves or opens, alike."""
    rng = np.random.default_rng(seed)
    moves = (pose.LEFT, pose.RIGHT, pose.FORWARD, pose.TOGGLE)
    return lambda _: int(rng.choice(moves))


def greedy(mission: Mission, seed: int) -> Decide:
    """Straight to what it was sent to, if that is in view, whatever lies between; else ahead, turning where blocked."""
    rng = np.random.default_rng(seed)

    def decide(ids: np.ndarray) -> int:
        ahead = int(ids[tiles.AHEAD_CELL])
        found = np.flatnonzero(np.isin(ids, list(mission.codes)))
        if len(found):
            row, column = divmod(int(found[0]), tiles.VIEW_CELLS)
            aside, before = column - 3, 6 - row
            if before == 1 and aside == 0:
                return pose.TOGGLE if mission.kind == "open" else pose.FORWARD
            if before > 0 and (tiles.can_enter(ahead) or aside == 0):
                return pose.FORWARD
            return pose.RIGHT if aside > 0 else pose.LEFT
        if tiles.is_closed_door(ahead):
            return pose.TOGGLE
        return pose.FORWARD if tiles.can_enter(ahead) else int(rng.integers(2))

    return decide


def expert(mission: Mission, _: int) -> Decide:
    """The demonstrator: shortest paths over what it has seen."""
    memory = Memory(ground(), SIZE)
    done: list[int] = []

    def decide(ids: np.ndarray) -> int:
        if done:
            memory.follow(done[-1:], ids)
        else:
            memory.see(ids)
        done.append(next_actions(memory, mission)[0])
        return done[-1]

    return decide


BASELINES = {"random": at_random, "greedy": greedy, "expert": expert}
assert len(ACTIONS) == pose.ACTION_COUNT
