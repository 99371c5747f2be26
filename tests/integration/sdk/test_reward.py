"""`client.reward` of both clients, against the real service."""

import asyncio
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worldtree
import worldtree.aio
from worldtree.actions import Action
from worldtree_reward.config import RewardSettings
from worldtree_reward.serving import serve_reward
from worldtree_runtime.testing_judges import TinyJudge

GOAL = "a bright clip"


def grey(value: int, count: int = 3) -> np.ndarray:
    return np.full((count, 8, 8, 3), value, np.uint8)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service on an event loop of its own thread."""
    models: Path = tmp_path_factory.mktemp("models")
    TinyJudge().write(models)
    loop, found, stop = asyncio.new_event_loop(), [""], asyncio.Event()
    ready = threading.Event()

    async def serve() -> None:
        async with serve_reward(RewardSettings(port=0, metrics_port=0, models=str(models))) as (server, _):
            found[0] = server.address
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def client(address: str) -> Iterator[worldtree.Client]:
    with worldtree.Client(address) as client:
        yield client


def test_rubrics_tell_who_judges_what(client: worldtree.Client) -> None:
    rubrics = client.reward.rubrics()
    assert [each.name for each in rubrics.categories] == ["brightness", "motion"]
    assert rubrics.dimensions[0].pairwise_accuracy == pytest.approx(0.9)
    assert rubrics.categories[0].best_of_four is None
    assert client.reward.rubrics(rubrics) == rubrics


def test_a_clip_is_scored_with_actions_by_name_or_id(client: worldtree.Client) -> None:
    by_name = client.reward.score((grey(200), ["go", "jump"]), goal=GOAL)
    assert (
        by_name
        == client.reward.score((grey(200), [1, 2]), goal=GOAL)
        == client.reward.score((grey(200), "go jump"), goal=GOAL)
    )
    assert by_name.category == "brightness"
    assert by_name["brightness"] == pytest.approx(200 / 255, abs=1e-4)
    assert (by_name.dimensions["motion"].counts, by_name.cached) == (False, False)
    assert by_name.timing is not None
    assert by_name.timing.run_s > 0


def test_candidates_come_best_first(client: worldtree.Client) -> None:
    ranking = client.reward.rank([(grey(value), [1, 1]) for value in (10, 200, 100)], goal=GOAL)
    assert [each.index for each in ranking] == [1, 2, 0]
    assert (ranking.best.index, ranking.best.rank, len(ranking)) == (1, 1, 3)
    assert ranking[0].reward > ranking[1].reward
    dark = client.reward.rank([(grey(value), [1, 1]) for value in (10, 200)], goal=GOAL, weights={"brightness": -1})
    assert dark.best.index == 0


def test_two_clips_are_compared(client: worldtree.Client) -> None:
    comparison = client.reward.compare((grey(10), [1, 1]), second=(grey(200), [1, 1]), goal=GOAL)
    assert comparison.verdict == "second"
    assert comparison.first_better < 0.01
    unknown = client.reward.compare((grey(10), [1, 1]), second=(grey(200), [1, 1]), goal="cook an egg")
    assert (unknown.verdict, unknown.first.category) == ("tie", None)
    assert math.isinf(unknown.first.uncertainty)


def rollout(frames: Any, actions: tuple[Any, ...]) -> worldtree.Rollout:
    return worldtree.Rollout(actions=actions, frames=frames, state_hash="", seed=None, timings=())


def test_a_rollout_is_scored_from_the_frame_before_it(client: worldtree.Client) -> None:
    futures = [rollout(grey(value), ("go", Action("go"), "jump")) for value in (50, 90)]
    ranking = client.reward.rank(futures, goal=GOAL, before=grey(0, 1)[0])
    assert ranking.best.index == 1
    whole = client.reward.score((np.concatenate([grey(0, 1), grey(90)]), [1, 1, 2]), goal=GOAL)
    assert ranking.best.judgement == whole
    alone = client.reward.score(futures[1], goal=GOAL)
    assert alone["brightness"] == pytest.approx(90 / 255, abs=1e-4)
    with pytest.raises(worldtree.InvalidRequest, match="must hold frames"):
        client.reward.score(rollout(None, ("go",)), goal=GOAL)


def test_a_clip_is_scored_while_it_is_made(client: worldtree.Client) -> None:
    frames = np.concatenate([grey(10, 2), grey(200, 2), grey(90, 1)])
    with client.reward.scoring(GOAL) as scoring:
        assert scoring.add(frames[:1]) is None
        scoring.add(frames[1:3], actions=["go", "go"])
        last = scoring.add(frames[3:], actions=[1, 1])
    assert last == client.reward.score((frames, [1] * 4), goal=GOAL)
    with pytest.raises(worldtree.SessionClosed):
        scoring.add(frames[:1], actions=[1])


def test_what_is_wrong_is_told_where_it_stands(client: worldtree.Client) -> None:
    with pytest.raises(worldtree.InvalidRequest, match=r"clip\.frames must be one more than actions, 2, got 3"):
        client.reward.score((grey(3), ["go"]), goal=GOAL)
    with pytest.raises(worldtree.InvalidRequest, match=r"clip\.actions\[0\] must be an id as the others are, got 'go'"):
        client.reward.score((grey(3), ["go", 1]), goal=GOAL)
    with pytest.raises(worldtree.InvalidRequest, match="must be a Clip, a Rollout or"):
        client.reward.score(3, goal=GOAL)
    with pytest.raises(worldtree.InvalidRequest, match=r"weights must be numbers"):
        client.reward.score((grey(3), [1, 1]), goal=GOAL, weights={"motion": "much"})  # type: ignore[dict-item]
    with pytest.raises(worldtree.NotFound, match="taste"):
        client.reward.score((grey(3), [1, 1]), goal=GOAL, weights={"taste": 1})
    with client.reward.scoring(GOAL) as scoring:
        with pytest.raises(worldtree.InvalidRequest, match=r"clip\.frames must be one more"):
            scoring.add(grey(3), actions=["go"])
        with pytest.raises(worldtree.SessionClosed):
            scoring.add(grey(3), actions=["go", "go"])


async def test_the_asyncio_client_says_the_same(client: worldtree.Client, address: str) -> None:
    clips = [(grey(value), [1, 1]) for value in (10, 200)]
    async with worldtree.aio.Client(address) as other:
        assert await other.reward.rubrics() == client.reward.rubrics()
        assert await other.reward.score(clips[0], goal=GOAL) == client.reward.score(clips[0], goal=GOAL)
        assert await other.reward.compare(clips[0], second=clips[1], goal=GOAL) == client.reward.compare(
            clips[0], second=clips[1], goal=GOAL
        )
        assert (await other.reward.rank(clips, goal=GOAL)).best == client.reward.rank(clips, goal=GOAL).best
        async with other.reward.scoring(GOAL) as scoring:
            assert await scoring.add(grey(10, 1)) is None
            assert await scoring.add(grey(10, 2), actions=["go", "go"]) == client.reward.score(clips[0], goal=GOAL)
            with pytest.raises(worldtree.InvalidRequest):
                await scoring.add(grey(10, 1))
        with pytest.raises(worldtree.SessionClosed):
            await scoring.add(grey(10, 1), actions=[1])
