"""Lively exploration: sticky walks, spins, errands to objects and doors, fidgeting with all seven actions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from training.minigrid import pose, tiles
from training.minigrid.worlds import World


@dataclass(frozen=True, slots=True)
class Temper:
    """Weights of the four moods, and the chance to break off what was planned (per step)."""

    walk: float
    spin: float
    errand: float
    fidget: float
    distraction: float

    @staticmethod
    def for_training(rng: np.random.Generator) -> Temper:
        """A different character every episode."""
        walk, spin, errand, fidget = rng.dirichlet([1.2, 0.8, 1.6, 0.4])
        return Temper(walk, spin, errand, fidget, distraction=float(rng.choice([0.0, 0.03, 0.1])))

    @staticmethod
    def lively() -> Temper:
        """The held-out policy: more turning, more objects handled, less straight walking than in training."""
        return Temper(walk=0.15, spin=0.25, errand=0.45, fidget=0.15, distraction=0.1)


class Explorer:
    """Chooses actions for one world; deterministic given the generator."""

    def __init__(self, rng: np.random.Generator, temper: Temper) -> None:
        self._rng = rng
        self._temper = temper
        self._plan: deque[int] = deque()

    def action(self, world: World) -> int:
        if self._plan and self._rng.random() < self._temper.distraction:
            self._plan.clear()
        if not self._plan:
            self._plan.extend(self._new_plan(world))
        return self._plan.popleft()

    def _new_plan(self, world: World) -> list[int]:
        temper, rng = self._temper, self._rng
        weights = np.array([temper.walk, temper.spin, temper.errand, temper.fidget])
        mood = rng.choice(4, p=weights / weights.sum())
        if mood == 1:
            turn = int(rng.integers(2))
            return [turn] * int(rng.choice([1, 2, 3, 4, 5], p=[0.25, 0.3, 0.15, 0.25, 0.05]))
        if mood == 2:
            plan = self._errand(world)
            if plan:
                return plan
        if mood == 3:
            return [int(a) for a in rng.choice(7, size=int(rng.integers(1, 4)))]
        ahead = world.ahead
        if not tiles.can_enter(ahead) or (ahead == tiles.LAVA and rng.random() < 0.8):
            return [int(rng.integers(2))]
        return [pose.FORWARD] * int(rng.integers(1, 5))

    def _errand(self, world: World) -> list[int]:
        """Walk to something and handle it; [] when there is nothing to be reached."""
        rng, carried = self._rng, world.carried
        x0, y0, _ = world.pose
        width, height = world.size
        targets: list[tuple[int, int]] = []
        for x in range(max(0, x0 - 8), min(width, x0 + 9)):
            for y in range(max(0, y0 - 8), min(height, y0 + 9)):
                code = world.code(x, y)
                if tiles.is_door(code) or tiles.is_carriable(code):
                    targets.append((x, y))
        if carried is not None and (not targets or rng.random() < 0.5):
            near = [(x0 + dx, y0 + dy) for dx in range(-3, 4) for dy in range(-3, 4) if (dx, dy) != (0, 0)]
            targets = [(x, y) for x, y in near if world.code(x, y) == tiles.EMPTY]
        if not targets:
            return []
        nearest_first = sorted(targets, key=lambda cell: abs(cell[0] - x0) + abs(cell[1] - y0) + 4 * rng.random())
        for target in nearest_first[:3]:
            path = path_to_face(world, target)
            if path is not None:
                return path + self._handle(world.code(*target), carried)
        return []

    def _handle(self, code: int, carried: int | None) -> list[int]:
        rng = self._rng
        if tiles.is_door(code):
            after = [[], [pose.FORWARD] * 2, [pose.FORWARD] * 3, [pose.TOGGLE], [pose.LEFT]]
            return [pose.TOGGLE, *after[int(rng.integers(len(after)))]]
        if code == tiles.EMPTY:
            return [pose.DROP]
        if carried is not None:
            return [int(rng.choice([pose.PICKUP, pose.TOGGLE, pose.DROP, pose.LEFT, pose.RIGHT]))]
        if "box" in tiles.object_names()[code] and rng.random() < 0.3:
            return [pose.TOGGLE]
        after = [[], [pose.LEFT], [pose.RIGHT], [pose.DROP], [pose.FORWARD], [pose.LEFT, pose.DROP]]
        return [pose.PICKUP, *after[int(rng.integers(len(after)))]]


def path_to_face(world: World, target: tuple[int, int], *, through_lava: bool = False) -> list[int] | None:
    """Actions that bring the agent to face `target`, opening unlocked doors on the way; None when unreachable."""
    start = world.pose
    parent: dict[tuple[int, int, int], tuple[tuple[int, int, int], list[int]] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        x, y, heading = state
        dx, dy = (int(v) for v in pose.DIRECTIONS[heading])
        ahead = (x + dx, y + dy)
        if ahead == target:
            actions: list[int] = []
            link = parent[state]
            while link is not None:
                before, moves = link
                actions = moves + actions
                link = parent[before]
            return actions
        if abs(x - start[0]) + abs(y - start[1]) > 12:
            continue
        code = world.code(*ahead)
        options: list[tuple[tuple[int, int, int], list[int]]] = [
            ((x, y, (heading + 3) % 4), [pose.LEFT]),
            ((x, y, (heading + 1) % 4), [pose.RIGHT]),
        ]
        if tiles.can_enter(code) and (through_lava or code != tiles.LAVA):
            options.append(((*ahead, heading), [pose.FORWARD]))
        elif tiles.is_closed_door(code):
            options.append(((*ahead, heading), [pose.TOGGLE, pose.FORWARD]))
        for after, moves in options:
            if after not in parent:
                parent[after] = (state, moves)
                queue.append(after)
    return None
