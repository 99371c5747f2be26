"""Messages of maps to the words of the service and back: pure functions, each refusal naming field, value and limit."""

from collections.abc import Sequence

from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree_runtime.errors import InvalidRequest, NotFound
from worldtree_runtime.messages import from_seconds

from worldtree_navigator.grid import Grid
from worldtree_navigator.map_planning import A_STAR, MLM_U, MapAnswer, MapQuestion, Method

PLANNERS = (MLM_U, A_STAR)
_METHODS = {
    Method.MLM_U: pb.PlanOnMapResponse.METHOD_MLM_U,
    Method.A_STAR: pb.PlanOnMapResponse.METHOD_A_STAR,
    Method.A_STAR_FALLBACK: pb.PlanOnMapResponse.METHOD_A_STAR_FALLBACK,
}
_ALL_SIDES = 15


def to_map_question(request: pb.PlanOnMapRequest, max_side: int) -> MapQuestion:
    """Raises NotFound for a planner, InvalidRequest for all else. A large map takes a while: not for event loops."""
    planner = request.planner or MLM_U
    if planner not in PLANNERS:
        raise NotFound("planner", planner, known=PLANNERS)
    grid = _to_grid(request.map, max_side)
    start, goal = (_to_cell(name, getattr(request, name), request.HasField(name), grid) for name in ("start", "goal"))
    return MapQuestion(grid, start, goal, planner)


def _to_grid(given: pb.GridMap, max_side: int) -> Grid:
    for field, value in (("map.rows", given.rows), ("map.columns", given.columns)):
        if not 1 <= value <= max_side:
            raise InvalidRequest(
                field, f"{field} must be 1 to {max_side}, got {value}", low=1, high=max_side, value=value
            )
    told = [name for name in ("blocked", "open_sides") if getattr(given, name)]
    if len(told) != 1:
        got = " and ".join(told) or "neither"
        raise InvalidRequest("map", f"exactly one of map.blocked and map.open_sides must be set, got {got}")
    (name,) = told
    field, cells = f"map.{name}", getattr(given, name)
    size, most = given.rows * given.columns, 1 if name == "blocked" else _ALL_SIDES
    if len(cells) != size:
        wanted = f"a byte a cell, {given.rows} x {given.columns} = {size} bytes"
        raise InvalidRequest(field, f"{field} must have {wanted}, got {len(cells)}", expected=size, value=len(cells))
    if max(cells) > most:
        cell = next(index for index, value in enumerate(cells) if value > most)
        raise InvalidRequest(
            field,
            f"{field} must be 0 to {most} in each byte, got {cells[cell]} for cell {divmod(cell, given.columns)}",
            low=0,
            high=most,
            value=cells[cell],
        )
    if name == "blocked":
        return Grid.of_blocked(given.rows, given.columns, cells)
    grid = Grid.of_sides(given.rows, given.columns, cells)
    if fault := grid.sides_fault():
        cell, wrong = fault
        raise InvalidRequest(field, f"{field} of cell {grid.place(cell)}: {wrong}", value=cells[cell])
    return grid


def _to_cell(field: str, given: pb.Cell, is_set: bool, grid: Grid) -> int:
    """`is_set`: a cell of zeros would be the first one, which nobody asked for."""
    if not is_set:
        raise InvalidRequest(field, f"{field} must be set")
    for axis, value, count in (("row", given.row, grid.rows), ("column", given.column, grid.columns)):
        if not 0 <= value < count:
            name = f"{field}.{axis}"
            raise InvalidRequest(name, f"{name} must be 0 to {count - 1}, got {value}", high=count - 1, value=value)
    cell = given.row * grid.columns + given.column
    if not grid.free[cell]:
        raise InvalidRequest(field, f"{field} must be a free cell, {grid.place(cell)} is blocked")
    return cell


def from_map_answer(answer: MapAnswer, question: MapQuestion, *, read_s: float, total_s: float) -> pb.PlanOnMapResponse:
    """`read_s`: reading the map."""
    proposal = answer.proposal
    run_s = proposal.run_s if proposal else 0.0
    return pb.PlanOnMapResponse(
        path=_cells(answer.path, question.grid),
        method=_METHODS[answer.method] if answer.method else pb.PlanOnMapResponse.METHOD_UNSPECIFIED,
        shortest=answer.shortest,
        confidence=proposal.chance if proposal else 0.0,
        reachable=answer.reachable,
        rejected=_cells(answer.rejected, question.grid),
        notes=answer.notes,
        timing=pb.TimeSplit(
            queue_duration=from_seconds(proposal.queue_s if proposal else 0.0),
            planner_duration=from_seconds(run_s + answer.search_s),
            encode_duration=from_seconds(read_s),
            total_duration=from_seconds(total_s),
        ),
    )


def _cells(path: Sequence[int], grid: Grid) -> list[pb.Cell]:
    return [pb.Cell(row=row, column=column) for row, column in map(grid.place, path)]
