"""PlanOnMap of a real server: the shipped maze model, a hand-made one that goes one way, and none."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from refusals import refused, samples
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.grid import DOWN, LEFT, RIGHT, UP, Grid
from worldtree_navigator.serving import serve_navigator
from worldtree_runtime.testing_judges import TinyJudge
from worldtree_runtime.testing_mazes import TinyMaze

SHIPPED = Path(__file__).parents[3] / "models"
MLM_U, A_STAR, FALLBACK, NOTHING = (
    getattr(pb.PlanOnMapResponse, f"METHOD_{name}") for name in ("MLM_U", "A_STAR", "A_STAR_FALLBACK", "UNSPECIFIED")
)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
# S . #
# # . .
# . # G
BLOCKED = bytes([0, 0, 1, 1, 0, 0, 0, 1, 0])


@dataclass(frozen=True)
class Maps:
    """A navigator without peers: maps need none."""

    stub: Any
    metrics_address: str

    async def plan(self, **fields: Any) -> pb.PlanOnMapResponse:
        return await self.stub.PlanOnMap(request_of(**fields))


def request_of(**fields: Any) -> pb.PlanOnMapRequest:
    known = {
        "map": pb.GridMap(rows=3, columns=3, blocked=BLOCKED),
        "start": pb.Cell(row=0, column=0),
        "goal": pb.Cell(row=2, column=2),
    }
    return pb.PlanOnMapRequest(**{**known, **fields})


def floor(rows: int, columns: int, blocked: bytes = b"") -> dict[str, Any]:
    """Nothing is in the way, from the first cell to the last."""
    return {
        "map": pb.GridMap(rows=rows, columns=columns, blocked=blocked or bytes(rows * columns)),
        "goal": pb.Cell(row=rows - 1, column=columns - 1),
    }


def maze(rows: int, columns: int, seed: int) -> Grid:
    """A spanning tree by depth-first search."""
    rng, sides = random.Random(seed), bytearray(rows * columns)
    stack, seen = [0], {0}
    moves = ((-columns, UP, DOWN), (1, RIGHT, LEFT), (columns, DOWN, UP), (-1, LEFT, RIGHT))
    while stack:
        cell = stack[-1]
        row, column = divmod(cell, columns)
        inside = (row > 0, column < columns - 1, row < rows - 1, column > 0)
        free = [each for each, ok in zip(moves, inside, strict=True) if ok and cell + each[0] not in seen]
        if not free:
            stack.pop()
            continue
        step, out, back = rng.choice(free)
        sides[cell] |= out
        sides[cell + step] |= back
        seen.add(cell + step)
        stack.append(cell + step)
    return Grid.of_sides(rows, columns, bytes(sides))


def asked(grid: Grid, start: int, goal: int) -> dict[str, Any]:
    places = {name: dict(zip(("row", "column"), grid.place(cell), strict=True)) for name, cell in
              (("start", start), ("goal", goal))}  # fmt: skip
    return {
        "map": pb.GridMap(rows=grid.rows, columns=grid.columns, open_sides=grid.open_sides),
        **{name: pb.Cell(**place) for name, place in places.items()},
    }


def cells(path: Any) -> list[tuple[int, int]]:
    return [(cell.row, cell.column) for cell in path]


Serve = Callable[..., Awaitable[Maps]]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    threads = set(threading.enumerate())
    yield
    left = {each.name for each in set(threading.enumerate()) - threads if each.name.startswith(("engine", "map"))}
    assert not left


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(models: Path, **settings: Any) -> Maps:
            given = {
                "port": 0,
                "metrics_port": 0,
                "drain_timeout_s": 2,
                "video": "127.0.0.1:1",
                "reward": "127.0.0.1:1",
            }
            asked = NavigatorSettings(**{**given, "models": str(models), **settings})
            server = await stack.enter_async_context(serve_navigator(asked))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            return Maps(NavigatorStub(channel), server.metrics_address)

        yield start


@pytest.fixture
async def maps(serve: Serve) -> Maps:
    """With the shipped model."""
    return await serve(SHIPPED)


@pytest.fixture
async def one_way(serve: Serve, tmp_path: Path) -> Maps:
    """With a model whose paths go right, and right only."""
    TinyMaze().write(tmp_path)
    return await serve(tmp_path)


async def test_the_shipped_model_finds_its_way_through_mazes(maps: Maps) -> None:
    found = []
    for seed in range(12):
        grid = maze(7, 8, seed)
        answer = await maps.plan(**asked(grid, 0, 55))
        assert [grid.place(cell) for cell in grid.shortest_path(0, 55) or []] == cells(answer.path)
        assert answer.shortest
        assert 0.0 <= answer.confidence <= 1.0
        assert answer.timing.total_duration.ToNanoseconds() >= answer.timing.planner_duration.ToNanoseconds() > 0
        if answer.method == MLM_U:
            assert not answer.rejected
            assert not answer.notes
        else:
            assert answer.method == FALLBACK
            assert cells(answer.rejected)[0] == (0, 0)
            assert "not valid" in answer.notes[0]
        found.append(answer.method)
    assert found.count(MLM_U) >= 9


async def test_concurrent_maps_of_several_sizes_are_answered_as_each_alone(maps: Maps) -> None:
    grids = [maze(rows, columns, seed) for seed in range(6) for rows, columns in ((5, 5), (6, 9), (10, 10))]
    requests = [asked(grid, 0, grid.rows * grid.columns - 1) for grid in grids]
    alone = [await maps.plan(**request) for request in requests]
    together = await asyncio.gather(*(maps.plan(**request) for request in requests))
    for one, other in zip(alone, together, strict=True):
        one.ClearField("timing")
        other.ClearField("timing")
        assert one == other
    rounds, shared = [
        sum((await samples(maps.metrics_address, f"worldtree_map_batch_size_{of}")).values()) for of in ("count", "sum")
    ]
    assert shared > rounds


async def test_a_large_map_holds_up_no_small_one(maps: Maps) -> None:
    walls = bytearray(256 * 256)
    for row in range(1, 255, 2):  # up and down through the whole map
        walls[row * 256 : (row + 1) * 256] = bytes([1]) * 256
        walls[row * 256 + (255 if row % 4 == 1 else 0)] = 0

    async def overtakes() -> bool:
        done: list[str] = []

        async def plan(name: str, **fields: Any) -> None:
            await maps.plan(**fields)
            done.append(name)

        large = asyncio.create_task(plan("large", **floor(256, 256, bytes(walls))))
        await asyncio.sleep(0.001)
        await plan("small", **asked(maze(5, 5, 1), 0, 24))
        await large
        return done == ["small", "large"]

    # On a fast machine the large one takes so little that it may be through first now and then; in turn, it always is.
    assert any([await overtakes() for _ in range(8)])


async def test_a_model_whose_path_holds_is_taken_at_its_word(one_way: Maps) -> None:
    answer = await one_way.plan(**floor(1, 5))
    assert (answer.method, answer.shortest, answer.confidence) == (MLM_U, True, 1.0)
    assert cells(answer.path) == [(0, column) for column in range(5)]
    assert not answer.rejected
    counted = await samples(one_way.metrics_address, "worldtree_map_paths_total")
    assert list(counted.values()) == [1.0]


async def test_a_path_that_does_not_hold_gives_way_to_a_star_and_is_shown(one_way: Maps) -> None:
    answer = await one_way.plan()
    assert answer.method == FALLBACK
    assert answer.shortest
    assert cells(answer.path) == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]
    assert cells(answer.rejected) == [(0, 0), (0, 1), (0, 2)]
    assert answer.confidence == 1.0
    assert answer.notes == ["the maze model's path is not valid: there is no step from (0, 1) to (0, 2)"]


async def test_a_broken_model_costs_nobody_a_path(serve: Serve, tmp_path: Path) -> None:
    TinyMaze(poisoned=True).write(tmp_path)
    maps = await serve(tmp_path)
    answer = await maps.plan()
    assert (answer.method, len(answer.path), answer.confidence) == (FALLBACK, 5, 0.0)


async def test_maps_that_the_model_does_not_take_go_to_a_star(one_way: Maps) -> None:
    answer = await one_way.plan(**floor(9, 8))
    assert (answer.method, answer.shortest, len(answer.path), answer.confidence) == (FALLBACK, True, 16, 0.0)
    assert answer.notes == ["tiny-maze takes maps of up to 8 x 8 cells, not 9 x 8"]
    largest = await one_way.plan(**floor(256, 256))
    assert (largest.method, len(largest.path)) == (FALLBACK, 511)


async def test_a_star_can_be_asked_for(one_way: Maps) -> None:
    answer = await one_way.plan(planner="a_star", **floor(1, 5))
    assert (answer.method, answer.shortest, answer.confidence, list(answer.notes)) == (A_STAR, True, 0.0, [])
    assert len(answer.path) == 5


@pytest.mark.parametrize("planner", ["mlm_u", "a_star"])
async def test_where_there_is_no_way_one_is_told_what_can_be_reached(one_way: Maps, planner: str) -> None:
    answer = await one_way.plan(planner=planner, goal=pb.Cell(row=2, column=0))
    assert (answer.method, answer.shortest, list(answer.path)) == (NOTHING, False, [])
    assert list(answer.reachable) == [1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert answer.notes[-1] == "there is no way from (0, 0) to (2, 0): 5 cells can be reached"


async def test_who_is_there_already_stays(one_way: Maps) -> None:
    answer = await one_way.plan(goal=pb.Cell(row=0, column=0))
    assert (cells(answer.path), answer.method, answer.shortest) == ([(0, 0)], MLM_U, True)


async def test_without_a_model_a_star_answers_and_says_so(serve: Serve, tmp_path: Path) -> None:
    TinyJudge().write(tmp_path)
    for models in (tmp_path, tmp_path / "nowhere"):
        maps = await serve(models)
        answer = await maps.plan()
        assert (answer.method, len(answer.path)) == (FALLBACK, 5)
        assert answer.notes == ["no maze model is served: A* was asked"]
        refusal = await refused(maps.plan(model=common.ModelRef(name="mazes")))
        assert refusal.code is NOT_FOUND


async def test_more_maps_than_may_wait_go_to_a_star(serve: Serve) -> None:
    maps = await serve(SHIPPED, max_waiting_maps=1, max_map_batch=1)
    grid = maze(10, 10, 3)
    answers = await asyncio.gather(*(maps.plan(**asked(grid, 0, 99)) for _ in range(24)))
    notes = [note for answer in answers for note in answer.notes]
    assert any(note == "1 maps wait for the maze model: A* was asked" for note in notes)
    assert {tuple(cells(answer.path)) for answer in answers} == {tuple(cells(answers[0].path))}


async def test_a_caller_who_leaves_is_not_waited_for(maps: Maps) -> None:
    grid = maze(10, 10, 4)
    calls = [maps.stub.PlanOnMap(request_of(**asked(grid, 0, 99))) for _ in range(8)]
    await asyncio.sleep(0.005)
    for call in calls:
        call.cancel()
    answer = await maps.plan(**asked(grid, 0, 99))
    assert answer.path


def changed(**fields: Any) -> dict[str, Any]:
    return {"map": pb.GridMap(**{"rows": 3, "columns": 3, "blocked": BLOCKED, **fields})}


def sides(*values: int) -> dict[str, Any]:
    return {"map": pb.GridMap(rows=2, columns=2, open_sides=bytes(values)), "goal": pb.Cell(row=1, column=1)}


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        (changed(rows=0), "map.rows", "map.rows must be 1 to 256, got 0"),
        (changed(rows=-3), "map.rows", "1 to 256, got -3"),
        (changed(columns=257), "map.columns", "map.columns must be 1 to 256, got 257"),
        ({"map": None}, "map.rows", "1 to 256, got 0"),
        (changed(blocked=bytes(8)), "map.blocked", "3 x 3 = 9 bytes, got 8"),
        (changed(blocked=b"", open_sides=bytes(10)), "map.open_sides", "3 x 3 = 9 bytes, got 10"),
        (changed(open_sides=bytes(9)), "map", "got blocked and open_sides"),
        (changed(blocked=b""), "map", "got neither"),
        (changed(blocked=bytes([0] * 7 + [2, 0])), "map.blocked", "0 to 1 in each byte, got 2 for cell (2, 1)"),
        (sides(0, 0, 16, 0), "map.open_sides", "0 to 15 in each byte, got 16 for cell (1, 0)"),
        (sides(RIGHT, 0, 0, 0), "map.open_sides", "(0, 0): its side right is open, that of cell (0, 1) left is closed"),
        (sides(0, RIGHT, 0, 0), "map.open_sides", "cell (0, 1): its side right leads out of the map"),
        ({"start": None}, "start", "start must be set"),
        ({"goal": None}, "goal", "goal must be set"),
        ({"start": pb.Cell(row=-1)}, "start.row", "start.row must be 0 to 2, got -1"),
        ({"start": pb.Cell(column=3)}, "start.column", "start.column must be 0 to 2, got 3"),
        ({"goal": pb.Cell(row=3)}, "goal.row", "goal.row must be 0 to 2, got 3"),
        ({"start": pb.Cell(row=0, column=2)}, "start", "start must be a free cell, (0, 2) is blocked"),
        ({"goal": pb.Cell(row=2, column=1)}, "goal", "goal must be a free cell, (2, 1) is blocked"),
    ],
)  # fmt: skip
async def test_a_bad_map_is_told_by_field_value_and_limit(
    one_way: Maps, fields: dict[str, Any], field: str, says: str
) -> None:
    refusal = await refused(one_way.plan(**fields))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert says in refusal.message


async def test_what_there_is_not_is_told_by_the_names_that_there_are(one_way: Maps) -> None:
    refusal = await refused(one_way.plan(planner="dijkstra"))
    assert refusal.code is NOT_FOUND
    assert refusal.message == 'planner "dijkstra" not found; known: mlm_u, a_star'
    refusal = await refused(one_way.plan(model=common.ModelRef(name="other")))
    assert refusal.code is NOT_FOUND
    assert refusal.message == 'model "other" not found; known: tiny-maze'
    assert (await one_way.plan(model=common.ModelRef(name="tiny-maze", version="1"))).path


async def test_a_broken_package_stops_the_start_by_file_and_field(serve: Serve, tmp_path: Path) -> None:
    TinyMaze(labels=4).write(tmp_path)
    with pytest.raises(Exception, match=r"path.onnx: output chances: must have shape"):
        await serve(tmp_path)
