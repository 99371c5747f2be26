"""Where the agent is, and where in the world each cell of its view lies.

A pose is (x, y, dir) in MiniGrid's convention: x right, y down, dir 0 right, 1 down, 2 left, 3 up. All are small
integers; a session's first frame is at (0, 0, 0). Poses follow from the actions, apart from one bit: whether
`forward` was blocked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE, NONE = range(8)
ACTION_NAMES = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
ACTION_COUNT = 7
VIEW_CELLS = 7

Int = npt.NDArray[np.int64]

DIRECTIONS: Int = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # [dir, (x, y)]


def step_pose(pose: tuple[int, int, int], action: int, *, can_move: bool) -> tuple[int, int, int]:
    """Pose after one action; `can_move` says whether the cell ahead may be entered."""
    x, y, heading = pose
    if action == LEFT:
        return x, y, (heading + 3) % 4
    if action == RIGHT:
        return x, y, (heading + 1) % 4
    if action == FORWARD and can_move:
        dx, dy = DIRECTIONS[heading]
        return x + int(dx), y + int(dy), heading
    return x, y, heading


def relative_poses(poses: Int) -> Int:
    """Poses [..., frame, 3] seen from the first frame, which becomes (0, 0, 0)."""
    first = poses[..., :1, :]
    shift = poses[..., :2] - first[..., :2]
    turn = first[..., 2]
    forward = DIRECTIONS[turn]  # [..., 1, 2]
    right = np.stack([-forward[..., 1], forward[..., 0]], axis=-1)
    along, across = (shift * forward).sum(-1), (shift * right).sum(-1)
    relative: Int = np.stack([along, across, (poses[..., 2] - turn) % 4], axis=-1)
    return relative


def view_offsets() -> Int:
    """World offset of each view cell from the agent, by heading: [dir, 49, (x, y)]."""
    rows, columns = np.divmod(np.arange(VIEW_CELLS * VIEW_CELLS), VIEW_CELLS)
    ahead, aside = VIEW_CELLS - 1 - rows, columns - VIEW_CELLS // 2
    forward = DIRECTIONS[:, None, :]
    right = np.stack([-forward[..., 1], forward[..., 0]], axis=-1)
    offsets: Int = (ahead[None, :, None] * forward + aside[None, :, None] * right).astype(np.int64)
    return offsets


_OFFSETS = view_offsets()


def cell_coordinates(poses: Int) -> Int:
    """World coordinates of the 49 cells seen from poses: [..., 3] -> [..., 49, (x, y)]."""
    return poses[..., None, :2] + _OFFSETS[poses[..., 2]]
