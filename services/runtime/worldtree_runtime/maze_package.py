"""The `model.yaml` of a maze model: one graph that fills in how a path leaves each cell of a map."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from worldtree_runtime.model_package import Package, Part
from worldtree_runtime.model_repository import StoredPackage

Side = Annotated[int, Field(ge=1, le=256)]


class MazeFiles(Part):
    """`path`: open sides, marks and labels of cells, all int64 [batch, rows, columns], to the probabilities of their
    labels, float32 [batch, rows, columns, 5].
    """

    path: str


class FillSpec(Part):
    """How hidden labels are filled in: in each of at most `rounds`, those are kept whose probability is at least
    `sure`, and the surest in any case.
    """

    rounds: Annotated[int, Field(ge=1, le=256)]
    sure: Annotated[float, Field(ge=0.0, le=1.0)]


class MazePackage(Package):
    """`max_rows`, `max_columns`: of the largest maps that it takes."""

    stays = "a path takes many short rounds of its graph, each waiting for the one before"

    kind: Literal["maze"]
    files: MazeFiles
    max_rows: Side
    max_columns: Side
    fill: FillSpec

    def paths(self) -> dict[str, str]:
        return {"files.path": self.files.path}


StoredMaze: TypeAlias = StoredPackage[MazePackage]
