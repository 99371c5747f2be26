"""`client.navigator` of both clients and `worldtree imagine`, against the real navigator and a real judge."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worldtree
import worldtree.aio
from PIL import Image

GOAL = "a bright clip"
MOVES = ["left", "right", "forward"]


def test_the_best_futures_come_first_with_what_they_cost(echo: Any) -> None:
    with worldtree.Client(echo.address) as client, client.world("echo", start="one") as world:
        before = (world.chunk_index, world.refresh().state_hash)
        standings: list[worldtree.Imagination] = []
        best = client.navigator.imagine(
            world, goal=GOAL, candidates=16, horizon=4, keep=3, actions=MOVES, on_round=standings.append
        )
        assert [each.ending for each in standings] == ["goes on"] * 3 + ["complete"]
        assert standings[-1] == best
        assert [each.rank for each in best] == sorted(each.rank for each in best)
        assert len(best) == 3
        for future in best:
            assert set(future.actions) <= set(MOVES)
            assert future.frames is not None
            assert future.frames.shape == (4, 8, 8, 3)
            assert future.score == future.judgement.reward
            assert set(future.dimensions) == {"brightness", "motion"}
        assert best.spent.chunk_count < best.spent.full_node_count <= best.spent.full_chunk_count == 64
        assert best.spent.total_s >= best.spent.imagine_s > 0
        assert (world.chunk_index, world.refresh().state_hash) == before
        assert len(client.sessions()) == 1
        again = client.navigator.imagine(world, goal=GOAL, candidates=16, horizon=4, keep=3, actions=MOVES)
        assert [each.state_hash for each in again] == [each.state_hash for each in best]


def test_candidates_of_ones_own_are_judged_as_rank_judges_them(echo: Any) -> None:
    sequences = [["left"] * 3, ["right", "done"], ["forward", "forward", "left"]]
    with worldtree.Client(echo.address) as client, client.world("echo", start="one") as world:
        found = client.navigator.imagine(world, candidates=sequences, goal=GOAL, keep=3, rounds=1, frames=False)
        ranking = client.reward.rank(world.rollout(sequences), goal=GOAL, before=world.last_frame)
        assert [each.index for each in found] == [each.index for each in ranking]
        assert [each.score for each in found] == [each.reward for each in ranking]
        assert all(each.frames is None for each in found)


async def test_the_asyncio_client_gets_the_same(echo: Any) -> None:
    async with worldtree.aio.Client(echo.address) as client:
        world = await client.world("echo", start="one")
        found = await client.navigator.imagine(world, candidates=8, horizon=3, goal=GOAL, seed=5)
        with worldtree.Client(echo.address) as other:
            same = other.navigator.imagine(other.session(world.id), candidates=8, horizon=3, goal=GOAL, seed=5)
        assert [each.actions for each in found] == [each.actions for each in same]
        await world.close()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"candidates": 0}, "candidates"),
        ({"candidates": "left"}, "candidates"),
        ({"horizon": 0}, "horizon"),
        ({"keep": 1.5}, "keep"),
        ({"budget": 0}, "budget"),
        ({"weights": {"brightness": "much"}}, "weights"),
    ],
)
def test_what_cannot_be_asked_is_told_by_its_name(echo: Any, asked: dict[str, Any], field: str) -> None:
    with worldtree.Client(echo.address) as client, client.world("echo", start="one") as world:
        begun = echo.servicer.calls["Fork"]
        with pytest.raises(worldtree.InvalidRequest, match=field):
            client.navigator.imagine(world, goal=GOAL, **asked)
        assert echo.servicer.calls["Fork"] == begun


def test_the_command_shows_the_best_draws_them_and_leaves_no_session(echo: Any, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "WORLDTREE_ADDRESS": echo.address, "NO_COLOR": "1", "COLUMNS": "160"}
        command = [sys.executable, "-P", "-m", "worldtree.cli", "imagine", "echo", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    asked = ("--goal", GOAL, "-n", "16", "--horizon", "4", "-a", "left", "-a", "right", "--keep", "3")
    done = run(*asked, "-o", "f.png", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ending"], found["round"], len(found["futures"])) == ("complete", 4, 3)
    assert found["chunk_count"] <= found["full_node_count"] <= found["full_chunk_count"]
    picture = Image.open(tmp_path / "f.png")
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    table = run(*asked, "--chunks", "7")
    assert "out of chunks after round" in table.stdout
    assert "judged as brightness" in table.stdout
    refused = run("--goal", GOAL, "-o", "f.gif")
    assert refused.returncode != 0
    assert "a picture of futures is a .png, got 'f.gif'" in refused.stderr
    assert echo.servicer.sessions == {}


async def test_a_plan_says_what_to_do_and_what_will_be_seen(echo: Any) -> None:
    with worldtree.Client(echo.address) as client, client.world("echo", start="one") as world:
        assert {"mpc", "mlm_u", "a_star"} <= {each.name for each in client.navigator.planners()}
        found = client.navigator.plan(world, goal=GOAL, horizon=3, candidates=8, iterations=2, actions=MOVES)
        assert (found.planner, len(found.actions), found.iteration_count) == ("mpc", 3, 2)
        assert found.score == found.judgement.reward
        assert 0 <= found.confidence <= 1
        assert len(client.sessions()) == 1
        async with worldtree.aio.Client(echo.address) as other:
            assert await other.navigator.planners() == client.navigator.planners()
            same = await other.navigator.plan(
                await other.session(world.id), goal=GOAL, horizon=3, candidates=8, iterations=2, actions=MOVES
            )
        assert same.actions == found.actions
        seen = world.step(list(found.actions))
        np.testing.assert_array_equal(seen, found.frames)


def test_the_command_tells_the_plan_and_draws_what_is_expected(echo: Any, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "WORLDTREE_ADDRESS": echo.address, "NO_COLOR": "1", "COLUMNS": "160"}
        command = [sys.executable, "-P", "-m", "worldtree.cli", "plan", "echo", "--goal", GOAL, *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    done = run("--horizon", "3", "-n", "8", "-a", "left", "-a", "right", "-o", "plan.png", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["planner"], len(found["actions"]), found["iteration_count"]) == ("mpc", 3, 3)
    assert Image.open(tmp_path / "plan.png").width > 400
    told = run("--horizon", "2", "-n", "4")
    assert "mpc, 3 iterations: better than any other with a chance of" in told.stdout
    refused = run("--planner", "oracle")
    assert refused.returncode != 0
    assert echo.servicer.sessions == {}


def test_a_path_over_a_map_is_told_with_who_found_it(echo: Any) -> None:
    corridor = np.array([[0, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    with worldtree.Client(echo.address) as client:
        path = client.navigator.plan_on_map(corridor, start=(0, 0), goal=(2, 0))
        assert path.cells == ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0))
        assert path.method in ("mlm_u", "a_star_fallback")
        assert path.shortest
        assert path.reachable is None
        assert 0.0 < path.total_s < 10.0
        sure = client.navigator.plan_on_map(corridor, start=(0, 0), goal=(2, 0), planner="a_star")
        assert (sure.cells, sure.method, sure.confidence) == (path.cells, "a_star", 0.0)


def test_a_map_of_open_sides_may_have_no_way(echo: Any) -> None:
    with worldtree.Client(echo.address) as client:
        path = client.navigator.plan_on_map(open_sides=[[2, 8, 0]], start=(0, 0), goal=(0, 2))
    assert (path.cells, path.method) == ((), "none")
    assert path.reachable is not None
    assert path.reachable.tolist() == [[True, True, False]]
    assert "there is no way" in path.notes[-1]


async def test_the_asyncio_client_gets_the_same_path(echo: Any) -> None:
    walls = np.zeros((6, 6), np.uint8)
    walls[2, :5] = 1
    async with worldtree.aio.Client(echo.address) as client:
        path = await client.navigator.plan_on_map(walls, start=(0, 0), goal=(5, 0))
    with worldtree.Client(echo.address) as other:
        assert other.navigator.plan_on_map(walls, start=(0, 0), goal=(5, 0)).cells == path.cells


def test_what_is_no_map_is_refused_before_it_is_sent(echo: Any) -> None:
    with worldtree.Client(echo.address) as client:
        with pytest.raises(worldtree.InvalidRequest, match=r"blocked must be \[rows, columns\]"):
            client.navigator.plan_on_map([0, 1], start=(0, 0), goal=(0, 1))
        with pytest.raises(worldtree.InvalidRequest, match="got neither"):
            client.navigator.plan_on_map(start=(0, 0), goal=(0, 1))
