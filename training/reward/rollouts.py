"""Candidates: what different players make of one start, and what the simulator knows of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.minigrid import pose, tiles
from training.minigrid.explore import Explorer, Temper
from training.minigrid.worlds import World
from training.reward.errands import Errand, visible_things
from training.reward.rubric import DIMENSION_NAMES

FAR = 3  # cells from lava that are as good as more
BUMPS = 3  # that bring `collision` to 0

Truth = dict[str, float]


@dataclass(frozen=True, slots=True)
class Start:
    """A moment of an episode, to be gone back to: the simulator is deterministic."""

    env_id: str
    seed: int
    actions: tuple[int, ...]

    def world(self) -> World:
        world = World(self.env_id, self.seed)
        for action in self.actions:
            world.step(action)
        return world


@dataclass(frozen=True, slots=True)
class Rollout:
    """T steps from a start, as they were."""

    ids: npt.NDArray[np.uint8]  # [T + 1, 49]
    actions: npt.NDArray[np.uint8]  # [T + 1]; the first is NONE
    poses: npt.NDArray[np.int64]  # [T + 1, 3]
    truth: Truth  # of what was played; pictures and told actions are as they should be
    success: bool


class Player:
    """Chooses actions; `errand` None: explores."""

    def __init__(self, rng: np.random.Generator, errand: Errand | None, *, slips: float, style: str) -> None:
        """`slips`: the chance, a step, to do something else. `style`: `done` does the errand; `short` stops before
        its end; `lava` walks through lava; `wander` explores.
        """
        self._rng, self._errand, self._slips, self._style = rng, errand, slips, style
        self._explorer = Explorer(rng, Temper.lively())
        self._plan: list[int] | None = None
        self._cut = int(rng.integers(1, 3))

    def action(self, world: World) -> int:
        rng = self._rng
        if self._errand is None or self._style == "wander":
            return self._explorer.action(world)
        if rng.random() < self._slips:
            self._plan = None
            return int(rng.choice([pose.LEFT, pose.RIGHT, pose.FORWARD, pose.TOGGLE, pose.PICKUP], p=_SLIPS))
        if self._plan is None:
            plan = self._errand.plan(world, through_lava=self._style == "lava")
            if plan is None:
                return self._explorer.action(world)
            self._plan = plan[: -self._cut] if self._style == "short" and plan else plan
        if not self._plan:
            return pose.DONE
        return self._plan.pop(0)


_SLIPS = [0.25, 0.25, 0.3, 0.1, 0.1]


def play(start: Start, player: Player, errand: Errand | None, steps: int) -> Rollout:
    """`steps` steps from a start, measured against the errand that was asked for."""
    world = start.world()
    first, carried = visible_things(world), world.carried
    begin = errand.plan(world) if errand else None
    ids, actions, poses = [world.frame_ids()], [pose.NONE], [world.pose]
    known = {_state(world, carried)}
    bumps = returns = counted = 0
    nearest = _lava_distance(world)
    arrived = False
    for _ in range(steps):
        action = player.action(world)
        if action == pose.FORWARD and not tiles.can_enter(world.ahead):
            bumps += 1
        world.step(action)
        state = _state(world, carried)
        if not arrived:  # what is done after the errand is no detour
            counted += 1
            returns += state in known
        known.add(state)
        nearest = min(nearest, _lava_distance(world))
        arrived = arrived or (errand is not None and errand.is_done(world))
        ids.append(world.frame_ids())
        actions.append(action)
        poses.append(world.pose)
    truth = dict.fromkeys(DIMENSION_NAMES, 1.0)
    truth["collision"] = max(0.0, 1 - bumps / BUMPS)
    truth["efficiency"] = 1 - returns / max(counted, 1)
    truth["hazard"] = nearest / FAR
    truth["progress"] = truth["handling"] = float("nan")
    if errand is not None and begin is not None:
        end = errand.plan(world)
        left = len(begin) + steps if end is None else len(end)
        truth["progress"] = 0.5 + 0.5 * float(np.clip((len(begin) - left) / max(len(begin), 1), -1, 1))
        if errand.kind in ("pickup", "open"):
            done, wrong = errand.is_done(world), errand.went_wrong(world, first, carried)
            truth["handling"] = 1.0 if done else 0.0 if wrong else 0.5
    return Rollout(
        np.stack(ids), np.array(actions, np.uint8), np.array(poses), truth, errand is not None and errand.is_done(world)
    )


def _state(world: World, carried: int | None) -> tuple[object, ...]:
    return (world.pose, world.carried, world.ahead, carried)


def _lava_distance(world: World) -> int:
    """Cells to the nearest lava in view, diagonals counting as one, at most FAR; 0 where the agent stands in it."""
    x, y, _ = world.pose
    if world.code(x, y) == tiles.LAVA:
        return 0
    seen = world.frame_ids() == tiles.LAVA
    return min(FAR, int(_DISTANCES[seen].min())) if seen.any() else FAR


_ROWS, _COLUMNS = np.divmod(np.arange(tiles.CELL_COUNT), tiles.VIEW_CELLS)
_DISTANCES = np.maximum(np.abs(_ROWS - (tiles.VIEW_CELLS - 1)), np.abs(_COLUMNS - tiles.VIEW_CELLS // 2))
