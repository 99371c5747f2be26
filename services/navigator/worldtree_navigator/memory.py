"""What a walker has seen around it: a square of tiles that turns and shifts as it does, so that it always faces up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Tiles: TypeAlias = npt.NDArray[np.uint8]

_MOST_GUESSES = 64
_ENTERED, _BLOCKED = 254, 255  # marks of a guess: what stands there is not known, but that it was, or was not, entered


@dataclass(frozen=True, slots=True)
class Ground:
    """What tiles mean to one who walks over them. `side`: cells of a view, whose agent stands in the middle of the
    last row. `unseen`: the tile of a hidden cell. `floor`: what is taken to be under the agent where it begins.
    `enterable`: tiles that can be walked onto. `left`, `right`, `forward`: the actions that move; every other may
    change the cell ahead.
    """

    side: int
    unseen: int
    floor: int
    enterable: frozenset[int]
    left: int
    right: int
    forward: int


class Memory:
    """The last seen tile of each cell around the walker, `[size, size]`, the walker in the middle, facing up.

    Where it is follows from what it did: an action turns it, or moves it where the cell ahead can be entered. Cells
    that leave the square are forgotten.
    """

    def __init__(self, ground: Ground, size: int) -> None:
        """`size`: odd, larger than twice a view."""
        self._ground = ground
        self._cells = np.full((size, size), ground.unseen, np.uint8)
        self._doubt = np.zeros((size, size), np.bool_)  # cells that were acted upon since they were seen
        self._middle = size // 2
        self._cells[self._middle, self._middle] = ground.floor

    @property
    def cells(self) -> Tiles:
        """[size, size]; not a copy."""
        return self._cells

    def copy(self) -> "Memory":
        twin = Memory.__new__(Memory)
        twin._ground, twin._middle = self._ground, self._middle
        twin._cells, twin._doubt = self._cells.copy(), self._doubt.copy()
        return twin

    def around(self, size: int) -> Tiles:
        """The square of `size` cells around the walker, a copy."""
        low = self._middle - size // 2
        return self._cells[low : low + size, low : low + size].copy()

    def see(self, view: Tiles) -> None:
        """The walker sees `view` [side * side] from where it stands."""
        window, shown, seen = self._window(view)
        window[shown] = seen[shown]
        self._doubt[:] = False

    def act(self, action: int) -> None:
        """The walker does this, and its outcome follows from what is remembered."""
        self._do(action, moves=self._can_enter(self._ahead()))

    def follow(self, actions: Sequence[int], view: Tiles) -> None:
        """The walker does all of this unseen, and then sees `view` [side * side].

        Where the outcome does not follow from what is remembered (a cell ahead that was never seen, a door that was
        acted upon), both are tried: what contradicts the view least is kept, of that what it confirms most.
        """
        guesses = [self.copy()]
        for action in actions:
            after = {guess._key(): guess for before in guesses for guess in before._outcomes(action)}
            guesses = list(after.values())
            guesses = guesses[:: -(-len(guesses) // _MOST_GUESSES)]
        best = min(guesses, key=lambda guess: guess._against(view))
        best._settle(view)
        self._cells, self._doubt = best._cells, best._doubt

    def _outcomes(self, action: int) -> list["Memory"]:
        """After an action; where it may have moved or not, both, the cell ahead marked by what that says of it."""
        ahead = self._ahead()
        doubted = ahead == self._ground.unseen or self._doubt[self._middle - 1, self._middle]
        if action != self._ground.forward or not doubted:
            self.act(action)
            return [self]
        moved = self.copy()
        moved._cells[self._middle - 1, self._middle] = _ENTERED
        moved._do(action, moves=True)
        self._cells[self._middle - 1, self._middle] = _BLOCKED
        self._doubt[self._middle - 1, self._middle] = False
        return [moved, self]  # of two that fit alike, the one that moved

    def _do(self, action: int, *, moves: bool) -> None:
        ground = self._ground
        if action in (ground.left, ground.right):
            quarter = -1 if action == ground.left else 1
            self._cells = np.ascontiguousarray(np.rot90(self._cells, quarter))
            self._doubt = np.ascontiguousarray(np.rot90(self._doubt, quarter))
        elif action != ground.forward:
            self._doubt[self._middle - 1, self._middle] = True
        elif moves:
            for square, beyond in ((self._cells, ground.unseen), (self._doubt, False)):
                square[1:] = square[:-1].copy()
                square[0] = beyond

    def _can_enter(self, tile: int) -> bool:
        return tile == _ENTERED or tile in self._ground.enterable

    def _ahead(self) -> int:
        return int(self._cells[self._middle - 1, self._middle])

    def _window(self, view: Tiles) -> tuple[Tiles, npt.NDArray[np.bool_], Tiles]:
        """The remembered cells of a view (no copy), which of them it shows, and the view, [side, side] each."""
        side, middle = self._ground.side, self._middle
        left = middle - side // 2
        seen = view.reshape(side, side)
        shown = seen != self._ground.unseen
        shown[-1, side // 2] = False  # the agent hides what it stands on
        return self._cells[middle - side + 1 : middle + 1, left : left + side], shown, seen

    def _against(self, view: Tiles) -> tuple[int, int]:
        """How many cells of a view contradict what is held to be, and how many do not confirm it."""
        window, shown, seen = self._window(view)
        enterable = np.isin(seen, list(self._ground.enterable))
        marked = (window == _ENTERED) | (window == _BLOCKED)
        agrees = np.where(marked, enterable == (window == _ENTERED), window == seen)
        known = shown & (window != self._ground.unseen)
        return int(np.count_nonzero(known & ~agrees)), -int(np.count_nonzero(known & agrees))

    def _settle(self, view: Tiles) -> None:
        """The guess is taken for what is: marks that the view does not show are floor, or nothing that is known."""
        self.see(view)
        self._cells[self._cells == _ENTERED] = self._ground.floor
        self._cells[self._cells == _BLOCKED] = self._ground.unseen

    def _key(self) -> bytes:
        return self._cells.tobytes() + self._doubt.tobytes()
