"""The maze transformer, round by round: a batch of mazes in, some more of their labels out. No other file of paths over
maps has tensors.

A cell's label says how the path leaves it: 0 not at all, 1 up, 2 right, 3 down, 4 left.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from worldtree_runtime.inference import TensorSpec, check_signature, open_session
from worldtree_runtime.maze_package import StoredMaze
from worldtree_runtime.model_package import PackageError

LABELS = 5
HIDDEN = LABELS  # a label that is not told
START, GOAL = 1, 2  # marks

Ids = npt.NDArray[np.int64]
Chances = npt.NDArray[np.float32]
Predict = Callable[[Ids, Ids, Ids], Chances]


class Filling:
    """A maze whose labels are being filled in, in at most so many rounds."""

    def __init__(self, open_sides: Ids, marks: Ids, *, rounds: int) -> None:
        """`open_sides` and `marks`: [rows, columns]."""
        self.open_sides, self.marks = open_sides, marks
        self.labels: Ids = np.full(open_sides.shape, HIDDEN, np.int64)
        self.chances: Chances = np.zeros(open_sides.shape, np.float32)  # of each label, when it was kept
        self.rounds_left = rounds

    @property
    def done(self) -> bool:
        return not (self.labels == HIDDEN).any()

    def keep(self, found: Chances, sure: float) -> None:
        """Takes over what a round predicts, [rows, columns, LABELS]: what is `sure` enough, and the surest in any case,
        so many that nothing is hidden after the last round.
        """
        hidden, found = self.labels == HIDDEN, np.nan_to_num(found)  # a broken model's path is refused, not its map
        best = np.where(hidden, found.max(-1), -1.0)
        at_least = -(-int(hidden.sum()) // max(1, self.rounds_left))
        surest = np.zeros(best.size, bool)
        surest[np.argsort(-best, axis=None, kind="stable")[:at_least]] = True
        kept = hidden & ((best >= sure) | surest.reshape(best.shape))
        self.labels[kept] = found.argmax(-1)[kept]
        self.chances[kept] = best[kept]
        self.rounds_left -= 1


def advance(predict: Predict, fillings: Sequence[Filling], *, sure: float) -> None:
    """One round of mazes of one size.

    All hidden labels are predicted from those that are told, and the surest are kept and told to the next round
    (Ghazvininejad et al., "Mask-Predict"; Chang et al., "MaskGIT"): first those of dead ends, then of what leads to
    nothing else, the path last. `predict`: open sides, marks and labels -> chances [batch, rows, columns, LABELS].
    """
    open_sides, marks, labels = (
        np.stack([getattr(each, name) for each in fillings]) for name in ("open_sides", "marks", "labels")
    )
    for filling, found in zip(fillings, predict(open_sides, marks, labels), strict=True):
        filling.keep(found, sure)


class MazeModel:
    """The graph of a package."""

    def __init__(self, stored: StoredMaze, *, threads: int = 1) -> None:
        """Raises PackageError, also where the graph cannot run a map of the largest size."""
        package = stored.package
        path = stored.folder / package.files.path
        self.max_rows, self.max_columns = package.max_rows, package.max_columns
        self._fill = package.fill
        self._session = open_session(path, threads=threads)
        grid = (None, None, None)
        inputs = [TensorSpec(name, "int64", grid) for name in ("open_sides", "marks", "labels")]
        check_signature(path, self._session, inputs, [TensorSpec("chances", "float", (*grid, LABELS))])
        largest = np.zeros((2, self.max_rows, self.max_columns), np.int64)
        try:
            self.predict(largest, largest, largest)
        except Exception as error:  # ORT raises one class per failure, with no common base but Exception
            raise PackageError(path, "graph", f"must run maps of {largest.shape[1:]} cells: {error}") from error

    def predict(self, open_sides: Ids, marks: Ids, labels: Ids) -> Chances:
        """As `advance` wants it."""
        found: Chances = self._session.run(None, {"open_sides": open_sides, "marks": marks, "labels": labels})[0]
        return found

    def begin(self, rows: int, columns: int, open_sides: bytes, start: int, goal: int) -> Filling:
        """A map with nothing told. Cells are numbered row by row."""
        marks = np.zeros(rows * columns, np.int64)
        marks[goal], marks[start] = GOAL, START
        sides = np.frombuffer(open_sides, np.uint8).astype(np.int64).reshape(rows, columns)
        return Filling(sides, marks.reshape(rows, columns), rounds=self._fill.rounds)

    def advance(self, fillings: Sequence[Filling]) -> None:
        """One round of maps of one size."""
        advance(self.predict, fillings, sure=self._fill.sure)
