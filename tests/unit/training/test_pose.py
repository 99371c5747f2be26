"""Poses and world coordinates against the simulator's own."""

from __future__ import annotations

import gymnasium
import minigrid  # noqa: F401
import numpy as np
import pytest

from training.minigrid import pose
from training.minigrid.data import record


def test_four_turns_come_back() -> None:
    here = (3, -2, 1)
    for _ in range(4):
        here = pose.step_pose(here, pose.LEFT, can_move=True)
    assert here == (3, -2, 1)
    for _ in range(4):
        here = pose.step_pose(here, pose.RIGHT, can_move=True)
    assert here == (3, -2, 1)


def test_a_blocked_forward_stays() -> None:
    assert pose.step_pose((0, 0, 3), pose.FORWARD, can_move=False) == (0, 0, 3)
    assert pose.step_pose((0, 0, 3), pose.FORWARD, can_move=True) == (0, -1, 3)


@pytest.mark.parametrize("action", [pose.PICKUP, pose.DROP, pose.TOGGLE, pose.DONE, pose.NONE])
def test_handling_does_not_move(action: int) -> None:
    assert pose.step_pose((1, 2, 0), action, can_move=True) == (1, 2, 0)


def test_composed_poses_follow_the_simulator() -> None:
    episode = record("MiniGrid-DoorKey-8x8-v0", 3, length=200)
    here = tuple(int(v) for v in episode.poses[0])
    for k in range(1, 200):
        here = pose.step_pose(here, int(episode.actions[k]), can_move=bool(episode.can_move[k - 1]))  # type: ignore[arg-type]
        assert here == tuple(episode.poses[k]), k


def test_poses_composed_from_zero_are_the_relative_poses() -> None:
    episode = record("MiniGrid-FourRooms-v0", 5, length=100)
    relative = pose.relative_poses(episode.poses[7:])
    here = (0, 0, 0)
    for k in range(1, len(relative)):
        here = pose.step_pose(here, int(episode.actions[7 + k]), can_move=bool(episode.can_move[6 + k]))
        assert here == tuple(relative[k])


@pytest.mark.parametrize("heading", range(4))
def test_cell_coordinates_agree_with_get_view_coords(heading: int) -> None:
    env = gymnasium.make("MiniGrid-FourRooms-v0").unwrapped
    env.reset(seed=0)
    env.agent_dir = heading  # type: ignore[attr-defined]
    x, y = env.agent_pos  # type: ignore[attr-defined]
    cells = pose.cell_coordinates(np.array([x, y, heading]))
    for index, (cx, cy) in enumerate(cells):
        row, column = divmod(index, 7)
        assert tuple(env.get_view_coords(cx, cy)) == (column, row)  # type: ignore[attr-defined]
