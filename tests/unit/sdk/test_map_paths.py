"""Maps and cells as the wire has them, and paths as users get them."""

from typing import Any

import numpy as np
import pytest
from worldtree.errors import InvalidRequest
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator_convert import cell_to_pb, map_path_from_pb, map_to_pb

WALLS = [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_an_occupancy_map_goes_row_by_row(dtype: Any) -> None:
    found = map_to_pb(np.array(WALLS, dtype), None)
    assert found == pb.GridMap(rows=2, columns=3, blocked=bytes([0, 1, 0, 0, 0, 0]))


def test_a_map_may_be_a_list_of_lists_or_a_view() -> None:
    assert map_to_pb(WALLS, None) == map_to_pb(np.array(WALLS).T.copy().T, None)


def test_open_sides_take_the_place_of_occupancy() -> None:
    assert map_to_pb(None, [[2, 8]]) == pb.GridMap(rows=1, columns=2, open_sides=bytes([2, 8]))


@pytest.mark.parametrize(
    ("blocked", "open_sides", "field", "says"),
    [
        (None, None, "map", "got neither"),
        (WALLS, WALLS, "map", "got both"),
        ([0, 1], None, "blocked", "got shape (2,) of int64"),
        (np.zeros((2, 2, 2), bool), None, "blocked", "got shape (2, 2, 2) of bool"),
        (np.zeros((2, 2)), None, "blocked", "of float64"),
        (None, [[256]], "open_sides", "must hold bytes, got 256 to 256"),
        ([[-1, 0]], None, "blocked", "must hold bytes, got -1 to 0"),
    ],
)
def test_what_is_no_map_is_refused_before_it_is_sent(blocked: Any, open_sides: Any, field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        map_to_pb(blocked, open_sides)
    assert refused.value.field == field
    assert says in str(refused.value)


def test_cells_are_pairs_of_integers() -> None:
    assert cell_to_pb((np.int64(3), 4), field="start") == pb.Cell(row=3, column=4)
    with pytest.raises(InvalidRequest, match=r"goal must be \(row, column\), got 3 numbers"):
        cell_to_pb((1, 2, 3), field="goal")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"goal\.column must be a 32-bit integer, got 0\.5"):
        cell_to_pb((1, 0.5), field="goal")  # type: ignore[arg-type]


def test_a_path_is_cells_and_what_is_said_of_it() -> None:
    message = pb.PlanOnMapResponse(
        path=[pb.Cell(row=0, column=0), pb.Cell(row=1, column=0)],
        method=pb.PlanOnMapResponse.METHOD_A_STAR_FALLBACK,
        shortest=True,
        confidence=0.5,
        rejected=[pb.Cell(row=0, column=0)],
        notes=["why"],
    )
    found = map_path_from_pb(message, 2, 3)
    assert (found.cells, found.method, found.shortest) == (((0, 0), (1, 0)), "a_star_fallback", True)
    assert (found.confidence, found.rejected, found.notes, found.reachable) == (0.5, ((0, 0),), ("why",), None)


def test_where_there_is_no_way_the_reachable_cells_are_a_map() -> None:
    found = map_path_from_pb(pb.PlanOnMapResponse(reachable=bytes([1, 0, 0, 1, 1, 0])), 2, 3)
    assert (found.cells, found.method) == ((), "none")
    assert found.reachable is not None
    assert found.reachable.tolist() == [[True, False, False], [True, True, False]]
