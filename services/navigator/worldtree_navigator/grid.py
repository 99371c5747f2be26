"""A map of square cells: which sides can be crossed, what can be reached, the shortest way. Plain Python.

Cells are numbered row by row. A cell's open sides are bits: 1 up, 2 right, 4 down, 8 left.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

UP, RIGHT, DOWN, LEFT = 1, 2, 4, 8
_SIDES = {UP: "up", RIGHT: "right", DOWN: "down", LEFT: "left"}
_OPPOSITE = {UP: DOWN, RIGHT: LEFT, DOWN: UP, LEFT: RIGHT}


@dataclass(frozen=True, slots=True)
class Grid:
    """`open_sides`: a byte a cell. `free`: the same, 1 for cells that one can stand on."""

    rows: int
    columns: int
    open_sides: bytes
    free: bytes

    @classmethod
    def of_blocked(cls, rows: int, columns: int, blocked: bytes) -> "Grid":
        """Of an occupancy map, a byte a cell: a side is open where both of its cells are free (0)."""
        sides = bytearray(rows * columns)
        for cell, taken in enumerate(blocked):
            if taken:
                continue
            if (cell + 1) % columns and not blocked[cell + 1]:
                sides[cell] |= RIGHT
                sides[cell + 1] |= LEFT
            if cell + columns < len(blocked) and not blocked[cell + columns]:
                sides[cell] |= DOWN
                sides[cell + columns] |= UP
        return cls(rows, columns, bytes(sides), bytes(0 if taken else 1 for taken in blocked))

    @classmethod
    def of_sides(cls, rows: int, columns: int, open_sides: bytes) -> "Grid":
        """Of sides that agree (`sides_fault`). All cells are free: one whose sides are closed is a room of its own."""
        return cls(rows, columns, open_sides, bytes([1]) * (rows * columns))

    def place(self, cell: int) -> tuple[int, int]:
        """Row and column."""
        return divmod(cell, self.columns)

    def neighbours(self, cell: int) -> Iterator[int]:
        """Where one step leads."""
        sides = self.open_sides[cell]
        if sides & UP:
            yield cell - self.columns
        if sides & RIGHT:
            yield cell + 1
        if sides & DOWN:
            yield cell + self.columns
        if sides & LEFT:
            yield cell - 1

    def sides_fault(self) -> tuple[int, str] | None:
        """The first cell with a side that leads out of the map or that its neighbour does not share, and what is wrong
        with it.
        """
        steps = {UP: -self.columns, RIGHT: 1, DOWN: self.columns, LEFT: -1}
        for cell, sides in enumerate(self.open_sides):
            row, column = self.place(cell)
            edges = {UP: row == 0, RIGHT: column == self.columns - 1, DOWN: row == self.rows - 1, LEFT: column == 0}
            for side, name in _SIDES.items():
                if not sides & side:
                    continue
                if edges[side]:
                    return cell, f"its side {name} leads out of the map"
                if not self.open_sides[cell + steps[side]] & _OPPOSITE[side]:
                    other = self.place(cell + steps[side])
                    return cell, f"its side {name} is open, that of cell {other} {_SIDES[_OPPOSITE[side]]} is closed"
        return None

    def path_fault(self, path: Sequence[int], start: int, goal: int) -> str | None:
        """Why cells are no path from start to goal; None: they are one."""
        if not path or path[0] != start:
            return "it does not begin at the start"
        for cell, following in pairwise(path):
            if following not in self.neighbours(cell):
                return f"there is no step from {self.place(cell)} to {self.place(following)}"
        if path[-1] != goal:
            return f"it ends at {self.place(path[-1])}"
        return None

    def reachable(self, start: int) -> bytes:
        """A byte a cell: 1 where a way leads from the start."""
        reached = bytearray(self.rows * self.columns)
        reached[start] = 1
        waiting = deque([start])
        while waiting:
            for cell in self.neighbours(waiting.popleft()):
                if not reached[cell]:
                    reached[cell] = 1
                    waiting.append(cell)
        return bytes(reached)

    def shortest_path(self, start: int, goal: int) -> list[int] | None:
        """By A* (Hart, Nilsson and Raphael 1968), the steps that are left at least as its guess; None: there is no way.

        Of ways of one length, always the same.
        """
        goal_row, goal_column = self.place(goal)

        def left(cell: int) -> int:
            row, column = self.place(cell)
            return abs(row - goal_row) + abs(column - goal_column)

        came_from, steps = {start: start}, {start: 0}
        # Of those that promise as much, first whoever is nearest to the goal: on an open floor it goes straight there.
        waiting = [(left(start), left(start), start)]
        while waiting:
            _, _, cell = heappop(waiting)
            if cell == goal:
                return _back(goal, came_from)
            for other in self.neighbours(cell):
                if (known := steps.get(other)) is None or steps[cell] + 1 < known:
                    steps[other], came_from[other] = steps[cell] + 1, cell
                    heappush(waiting, (steps[other] + left(other), left(other), other))
        return None


def _back(cell: int, came_from: dict[int, int]) -> list[int]:
    path = [cell]
    while came_from[path[-1]] != path[-1]:
        path.append(came_from[path[-1]])
    path.reverse()
    return path
