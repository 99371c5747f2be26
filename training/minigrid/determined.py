"""Which cells of a future frame follow from what was seen: the bookkeeping behind the accuracy figures.

A cell of a true frame is *determined* when all of this holds:
- it is visible there, and not hidden by the agent;
- it was visible in one of the start frames (the real frames that the model was given), and in the true trajectory
  since then it never went unseen for more than `window` frames, so that an unbroken chain of frames carries it;
- what the agent did to it follows from what was known: handling a cell that is not known leaves it unknown, and so
  does opening a box (its contents were never seen) or dropping something unknown.
The agent's own tile is determined as long as what it carries is.

*Strictly* determined also asks that the agent's pose is known: walking towards a cell that was never seen may or may
not have been blocked, and after that no view follows for certain.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from training.minigrid import pose, tiles

Bools = npt.NDArray[np.bool_]
Cell = tuple[int, int]


@dataclass(slots=True)
class Knowledge:
    """What an observer of the start frames knows while the true trajectory goes on."""

    window: int
    last_seen: dict[Cell, int] = field(default_factory=dict)  # known cells and when they were last in view
    carried_known: bool = True
    pose_known: bool = True

    def act(self, action: int, ahead: Cell, code: int, carrying: bool, *, now: int) -> None:
        """Accounts for an action of the frame before `now`; `code` is what truly stood ahead."""
        known = self._knows(ahead, now)
        if action == pose.FORWARD:
            self.pose_known = self.pose_known and known
        if action == pose.PICKUP:
            if not known:
                self.carried_known = self.carried_known and carrying
            elif tiles.is_carriable(code) and not self.carried_known:
                self.last_seen.pop(ahead)
        if action == pose.DROP:
            if not known:
                self.carried_known = self.carried_known and not carrying
            elif code == tiles.EMPTY and not self.carried_known:
                self.last_seen.pop(ahead)
        if action == pose.TOGGLE and known:
            box = tiles.is_carriable(code) and "box" in tiles.object_names()[code]
            locked = tiles.is_door(code) and (code - 4) % 3 == 2
            if box or (locked and not self.carried_known):
                self.last_seen.pop(ahead)

    def look(self, cells: list[Cell], visible: Bools, *, now: int, start: bool) -> Bools:
        """Updates the chains with the frame `now` and says which of its 49 cells are determined."""
        determined = np.zeros(len(cells), np.bool_)
        for index, cell in enumerate(cells):
            if index == tiles.AGENT_CELL:
                determined[index] = self.carried_known
            elif visible[index]:
                if start:
                    self.last_seen[cell] = now
                elif self._knows(cell, now):
                    determined[index] = True
                    self.last_seen[cell] = now
        return determined

    def _knows(self, cell: Cell, now: int) -> bool:
        last = self.last_seen.get(cell)
        if last is None:
            return False
        if now - last > self.window:
            del self.last_seen[cell]
            return False
        return True


def determined_cells(
    ids: npt.NDArray[np.uint8],
    poses: npt.NDArray[np.int64],
    actions: npt.NDArray[np.uint8],
    *,
    start_count: int,
    window: int,
) -> tuple[Bools, Bools]:
    """Determined and strictly determined cells of one true trajectory, [n, 49] each; False in the start frames.

    ids [n, 49]; poses [n, 3]; actions [n], actions[k] led to frame k.
    """
    knowledge = Knowledge(window)
    coordinates = pose.cell_coordinates(poses)
    plain = np.zeros(ids.shape, np.bool_)
    strict = np.zeros(ids.shape, np.bool_)
    for now in range(len(ids)):
        cells = [(int(x), int(y)) for x, y in coordinates[now]]
        visible: Bools = ids[now] != tiles.DARK
        if now >= start_count:
            ahead_index = tiles.AHEAD_CELL
            before = coordinates[now - 1][ahead_index]
            ahead = (int(before[0]), int(before[1]))
            carrying = int(ids[now - 1][tiles.AGENT_CELL]) != tiles.AGENT
            knowledge.act(int(actions[now]), ahead, int(ids[now - 1][ahead_index]), carrying, now=now)
        determined = knowledge.look(cells, visible, now=now, start=now < start_count)
        if now >= start_count:
            plain[now] = determined
            strict[now] = determined & knowledge.pose_known
    return plain, strict
