"""A MiniGrid or BabyAI environment as a robot in it sees it, and what became of an episode. Needs the extra `sim`."""

import heapq
import re
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from worldtree.errors import MissingExtra
from worldtree.types import Frames

TILE_PX = 8
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by heading
_THING = re.compile(r"\b(red|green|blue|purple|yellow|grey) (door|key|ball|box)\b")
Pose = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an episode. `shortest`: the fewest actions that it takes, None where nothing is known of it."""

    success: bool
    steps: int
    fell: bool
    collisions: int
    shortest: int | None

    @property
    def spl(self) -> float:
        """Success weighted by path length: Anderson et al., "On Evaluation of Embodied Navigation Agents"."""
        if not self.success or self.shortest is None:
            return 0.0
        return self.shortest / max(self.steps, self.shortest, 1)


class Simulator:
    """One episode. `goal`: its mission, in words; `limit`: actions after which it ends."""

    def __init__(self, env_id: str, seed: int) -> None:
        """Raises MissingExtra without MiniGrid, and gymnasium's error for an environment that there is not."""
        try:
            import gymnasium
            import minigrid  # noqa: F401  (registers the environments)
        except ImportError as error:
            raise MissingExtra("minigrid", extra="sim", purpose="a robot to be steered") from error
        env: Any = gymnasium.make(env_id).unwrapped
        self._env = env
        observation, _ = self._env.reset(seed=seed)
        self.goal = str(observation["mission"])
        self.limit = int(self._env.max_steps)
        self.steps = self.collisions = 0
        self.over = self._success = False
        self._shortest = self.shortest_from_here()

    def frame(self) -> Frames:
        """What is in view, [56, 56, 3] uint8: 7 x 7 cells, the agent in the middle of the last row, facing up."""
        return np.asarray(self._env.get_frame(tile_size=TILE_PX, agent_pov=True), np.uint8)

    def picture(self) -> Frames:
        """All of the grid from above, [height, width, 3] uint8."""
        return np.asarray(self._env.get_frame(tile_size=2 * TILE_PX), np.uint8)

    def step(self, action: int) -> None:
        """Does one action; nothing where the episode is over."""
        if self.over:
            return
        pose = self.pose
        _, reward, terminated, truncated, _ = self._env.step(action)
        self.steps += 1
        self.collisions += action == FORWARD and self.pose == pose and not terminated
        self._success = bool(terminated and reward > 0)
        self.over = bool(terminated or truncated)

    @property
    def pose(self) -> Pose:
        x, y = self._env.agent_pos
        return int(x), int(y), int(self._env.agent_dir)

    @property
    def outcome(self) -> Outcome:
        return Outcome(self._success, self.steps, self._fell, self.collisions, self._shortest)

    @property
    def _fell(self) -> bool:
        under = self._env.grid.get(*self._env.agent_pos)
        return self.over and under is not None and under.type == "lava"

    def shortest_from_here(self) -> int | None:
        """The fewest actions to the mission's end, by Dijkstra over poses with all of the grid known (a closed door
        takes two). None where there is no way, or the mission asks for what is not known here.
        """
        named = _THING.search(self.goal)
        if named is None and "goal" not in self.goal:
            return None
        wanted = ("green", "goal") if named is None else named.groups()
        last = 1 if named is None or self.goal.startswith("open") else 0
        start = self.pose
        costs: dict[Pose, int] = {start: 0}
        number = count()
        queue: list[tuple[int, int, Pose]] = [(0, next(number), start)]
        while queue:
            cost, _, pose = heapq.heappop(queue)
            if cost > costs[pose]:
                continue
            x, y, heading = pose
            ahead = (x + _STEPS[heading][0], y + _STEPS[heading][1])
            if not (0 <= ahead[0] < self._env.width and 0 <= ahead[1] < self._env.height):
                continue
            thing = self._env.grid.get(*ahead)
            if thing is not None and (thing.color, thing.type) == wanted:
                return max(cost + last, 1)
            options = [((x, y, (heading + 3) % 4), 1), ((x, y, (heading + 1) % 4), 1)]
            if thing is None or (thing.can_overlap() and thing.type != "lava"):
                options.append(((*ahead, heading), 1))
            elif thing.type == "door" and not thing.is_locked:
                options.append(((*ahead, heading), 2))
            for after, extra in options:
                if cost + extra < costs.get(after, 1 << 30):
                    costs[after] = cost + extra
                    heapq.heappush(queue, (cost + extra, next(number), after))
        return None
