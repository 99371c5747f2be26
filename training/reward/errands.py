"""What a goal asks of the simulator: how far it is from done, how it is done, and what would be the wrong thing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.minigrid import pose, tiles
from training.minigrid.explore import path_to_face
from training.minigrid.worlds import World

REACH, FACE, PICKUP, OPEN = "reach", "face", "pickup", "open"
_LAST: dict[str, list[int]] = {REACH: [pose.FORWARD], FACE: [], PICKUP: [pose.PICKUP], OPEN: [pose.TOGGLE]}


@dataclass(frozen=True, slots=True)
class Errand:
    """To do something with the thing of object code `code` at `cell`, in the environment's coordinates."""

    kind: str
    cell: tuple[int, int]
    code: int

    @property
    def thing(self) -> str:
        """As a goal names it: a door by its colour, whatever its state."""
        name = tiles.object_names()[self.code]
        return " ".join(name.split()[1:]) if tiles.is_door(self.code) else name

    def is_done(self, world: World) -> bool:
        x, y, heading = world.pose
        if self.kind == REACH:
            return (x, y) == self.cell
        if self.kind == FACE:
            dx, dy = pose.DIRECTIONS[heading]
            return (x + int(dx), y + int(dy)) == self.cell
        if self.kind == PICKUP:
            return world.carried == self.code
        return tiles.is_open_door(world.code(*self.cell))

    def plan(self, world: World, *, through_lava: bool = False) -> list[int] | None:
        """The fewest actions from here, nearly; None where there is no way within a dozen cells."""
        if self.is_done(world):
            return []
        if self.kind == PICKUP and (world.carried is not None or world.code(*self.cell) != self.code):
            return None
        path = path_to_face(world, self.cell, through_lava=through_lava)
        return None if path is None else path + _LAST[self.kind]

    def went_wrong(self, world: World, first: dict[tuple[int, int], int], carried: int | None) -> bool:
        """Whether another thing is held, or another door stands open, than at first."""
        if world.carried is not None and world.carried not in (carried, self.code):
            return True
        return any(
            cell != self.cell and tiles.is_door(code) and not tiles.is_open_door(code)
            and tiles.is_open_door(world.code(*cell))
            for cell, code in first.items()
        )  # fmt: skip


def visible_things(world: World) -> dict[tuple[int, int], int]:
    """Object codes of what is seen from here, by cell; floor and walls are no things."""
    ids = world.frame_ids().astype(int)
    cells = pose.cell_coordinates(np.array([world.pose]))[0]
    return {
        (int(x), int(y)): int(code)
        for place, ((x, y), code) in enumerate(zip(cells, ids, strict=True))
        if tiles.GOAL <= code < tiles.OBJECT_COUNT and place != tiles.AGENT_CELL
    }


def errands_of(world: World, category: str) -> list[Errand]:
    """Those that a category's goals may ask for in this view, not done yet."""
    found: list[Errand] = []
    for cell, code in visible_things(world).items():
        if code == tiles.LAVA:
            continue
        if code == tiles.GOAL:
            if category != "manipulation":
                found.append(Errand(REACH, cell, code))
        elif category != "manipulation":
            found.append(Errand(FACE, cell, code))
        elif tiles.is_carriable(code):
            if world.carried is None:
                found.append(Errand(PICKUP, cell, code))
        elif not tiles.is_open_door(code) and (tiles.is_closed_door(code) or _has_key(world, code)):
            found.append(Errand(OPEN, cell, code))
    names = [each.thing for each in found]
    # A goal must mean one thing.
    return [each for each in found if names.count(each.thing) == 1 and not each.is_done(world)]


def _has_key(world: World, door: int) -> bool:
    """Whether the agent holds the key of a locked door."""
    color = (door - 4) // 3
    return world.carried == tiles.FIRST_CARRIABLE + color
