"""Behind a real gateway: the same clip is scored once, and a stream passes both ways."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import worldtree.aio
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import start_gateway

GOAL = "a bright clip"


@pytest.fixture
async def client(service: Any) -> AsyncIterator[worldtree.aio.Client]:
    settings = GatewaySettings(port=0, metrics_port=0, video=[], reward=[service.server.address])
    async with start_gateway(settings) as gateway:
        await gateway.wait_ready()
        async with worldtree.aio.Client(gateway.server.address) as client:
            yield client


async def test_an_answer_is_kept_for_the_same_clip_goal_and_judge(client: Any, service: Any, tools: Any) -> None:
    clip = (tools.pixels(), [1, 2])
    first, again = await client.reward.score(clip, goal=GOAL), await client.reward.score(clip, goal=GOAL)
    assert (first.cached, again.cached) == (False, True)
    assert first == again
    assert not (await client.reward.score(clip, goal="a moving clip")).cached
    assert not (await client.reward.score(clip, goal=GOAL, weights={"motion": 1.0})).cached
    ranking = [await client.reward.rank([clip, (tools.pixels(4), "go go jump")], goal=GOAL) for _ in range(2)]
    assert [each.cached for each in ranking] == [False, True]
    assert ranking[0].best == ranking[1].best
    counted = await service.metric("worldtree_score_clips_total")
    assert sum(counted.values()) == 5


async def test_a_clip_is_scored_through_it_while_it_is_made(client: Any, tools: Any) -> None:
    frames = tools.pixels(5)
    async with client.reward.scoring(GOAL) as scoring:
        assert await scoring.add(frames[:1]) is None
        await scoring.add(frames[1:3], actions=["go", "stay"])
        last = await scoring.add(frames[3:], actions=["jump", "go"])
    assert last == await client.reward.score((frames, "go stay jump go"), goal=GOAL)


async def test_what_the_judge_refuses_comes_through_whole(client: Any, tools: Any) -> None:
    with pytest.raises(worldtree.InvalidRequest) as refused:
        await client.reward.score((tools.pixels(), [1, 9]), goal=GOAL)
    assert refused.value.field == "clip.actions[1]"
    with pytest.raises(worldtree.NotFound, match="taste"):
        await client.reward.score((tools.pixels(), [1, 1]), goal=GOAL, weights={"taste": 1.0})
