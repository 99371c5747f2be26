"""The environments that are learnt, and a fast exact mirror of their egocentric frames.

MiniGrid's own `gen_obs_grid` and renderer cost about a millisecond a frame. The mirror keeps the world as one array
of object codes, of which an action changes at most the cell ahead, and computes the same tile ids 20 times faster;
`check` compares it with `env.get_frame` pixel by pixel.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import numpy as np
import numpy.typing as npt

from training.minigrid import pose, tiles

# Rooms, doors of all colours and states, keys, balls, boxes, lava, goals; nothing that moves by itself.
ENVIRONMENTS: dict[str, float] = {  # id -> how often it is drawn
    "MiniGrid-FourRooms-v0": 1.5,
    "MiniGrid-MultiRoom-N4-S5-v1": 1.0,
    "MiniGrid-MultiRoom-N6-v0": 1.5,
    "MiniGrid-DoorKey-6x6-v0": 0.7,
    "MiniGrid-DoorKey-8x8-v0": 1.0,
    "MiniGrid-DoorKey-16x16-v0": 0.5,
    "MiniGrid-Unlock-v0": 1.0,
    "MiniGrid-UnlockPickup-v0": 1.0,
    "MiniGrid-BlockedUnlockPickup-v0": 1.0,
    "MiniGrid-KeyCorridorS3R3-v0": 1.0,
    "MiniGrid-KeyCorridorS5R3-v0": 0.7,
    "MiniGrid-LavaCrossingS9N2-v0": 0.7,
    "MiniGrid-LavaCrossingS11N5-v0": 0.7,
    "MiniGrid-LavaGapS7-v0": 0.7,
    "MiniGrid-SimpleCrossingS9N2-v0": 0.5,
    "MiniGrid-SimpleCrossingS11N5-v0": 0.7,
    "MiniGrid-Fetch-8x8-N3-v0": 1.2,
    "MiniGrid-GoToDoor-8x8-v0": 1.0,
    "MiniGrid-PutNear-8x8-N3-v0": 1.0,
    "MiniGrid-RedBlueDoors-8x8-v0": 0.7,
    "MiniGrid-LockedRoom-v0": 0.7,
    "MiniGrid-ObstructedMaze-1Dlhb-v0": 0.7,
    "MiniGrid-ObstructedMaze-2Dlhb-v1": 0.7,
    "MiniGrid-ObstructedMaze-Full-v1": 0.7,
    "MiniGrid-Playground-v0": 2.0,
    "MiniGrid-Empty-Random-6x6-v0": 0.3,
    "BabyAI-GoToLocal-v0": 0.8,
    "BabyAI-GoTo-v0": 0.8,
    "BabyAI-PutNextLocal-v0": 0.8,
    "BabyAI-BossLevel-v0": 0.8,
}

_PAD = 7  # MiniGrid shows walls outside of the grid
_OFFSETS = pose.view_offsets()


class World:
    """One episode of an environment. Stepping goes on after a goal, lava or the time limit: nothing resets it."""

    def __init__(self, env_id: str, seed: int) -> None:
        env: Any = gymnasium.make(env_id).unwrapped
        env.reset(seed=seed)
        self.env = env
        self.env_id = env_id
        env.max_steps = 1 << 30
        env.gen_obs = dict  # the mirror below replaces it
        self._codes = np.full((env.width + 2 * _PAD, env.height + 2 * _PAD), tiles.WALL, np.int64)
        for y in range(env.height):
            for x in range(env.width):
                self._codes[x + _PAD, y + _PAD] = tiles.object_code(env.grid.get(x, y))

    @property
    def pose(self) -> tuple[int, int, int]:
        x, y = self.env.agent_pos
        return int(x), int(y), int(self.env.agent_dir)

    @property
    def size(self) -> tuple[int, int]:
        return self.env.width, self.env.height

    @property
    def carried(self) -> int | None:
        """Object code of what the agent carries."""
        return None if self.env.carrying is None else tiles.object_code(self.env.carrying)

    @property
    def ahead(self) -> int:
        """Object code of the cell ahead."""
        x, y, heading = self.pose
        dx, dy = pose.DIRECTIONS[heading]
        return self.code(x + int(dx), y + int(dy))

    def code(self, x: int, y: int) -> int:
        """Object code of a cell; a wall outside of the grid (within 7 cells of it)."""
        return int(self._codes[x + _PAD, y + _PAD])

    def step(self, action: int) -> None:
        x, y, heading = self.pose
        dx, dy = pose.DIRECTIONS[heading]
        ax, ay = x + int(dx), y + int(dy)
        if not (0 <= ax < self.env.width and 0 <= ay < self.env.height):
            # In an open outer door, facing out, MiniGrid's step asserts; beyond the grid it draws walls, so act so.
            self.env.agent_dir = pose.step_pose((x, y, heading), action, can_move=False)[2]
            return
        self.env.step(action)
        self._codes[ax + _PAD, ay + _PAD] = tiles.object_code(self.env.grid.get(ax, ay))

    def frame_ids(self) -> npt.NDArray[np.uint8]:
        """Tile ids of the current egocentric frame, [49]."""
        x, y, heading = self.pose
        offsets = _OFFSETS[heading]
        codes = self._codes[x + _PAD + offsets[:, 0], y + _PAD + offsets[:, 1]]
        seen = [True] * tiles.CELL_COUNT if self.env.see_through_walls else seen_cells(codes.tolist())
        ids = np.where(seen, codes, tiles.DARK).astype(np.uint8)
        carried = self.carried
        ids[tiles.AGENT_CELL] = tiles.AGENT if carried is None else tiles.AGENT + 1 + carried - tiles.FIRST_CARRIABLE
        return ids

    def check(self) -> None:
        """Raises AssertionError when the mirror differs from MiniGrid's own picture."""
        truth = np.asarray(self.env.get_frame(tile_size=tiles.TILE_PX, agent_pov=True))
        drawn = tiles.draw_frame(self.frame_ids())
        assert np.array_equal(truth, drawn), f"{self.env_id}: the mirror differs from get_frame at {self.pose}"


def seen_cells(codes: list[int]) -> list[bool]:
    """MiniGrid's `Grid.process_vis` on the 49 object codes of a view, row-major."""
    side = tiles.VIEW_CELLS
    clear = [not tiles.blocks_sight(code) for code in codes]
    seen = [False] * (side * side)
    seen[tiles.AGENT_CELL] = True
    for row in range(side - 1, -1, -1):
        base, above = row * side, (row - 1) * side
        for step, columns in ((1, range(side - 1)), (-1, range(side - 1, 0, -1))):
            for column in columns:
                here = base + column
                if not (seen[here] and clear[here]):
                    continue
                seen[here + step] = True
                if row > 0:
                    seen[above + column + step] = True
                    seen[above + column] = True
    return seen
