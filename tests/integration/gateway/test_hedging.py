"""A call whose answer is late is asked for once more, elsewhere; the first answer wins, and nothing is left running."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb

ASKED = pb.GetModelRequest(model=common_pb2.ModelRef(name="echo"))
NEW = (("cache-control", "no-store"),)


async def all_up(client: Any) -> None:
    await client.until(lambda: all(each.usable for each in client.gateway.routers[0].backends))


async def quiet(client: Any) -> None:
    await client.until(lambda: all(each.in_flight == 0 for each in client.gateway.routers[0].backends))


async def hedges(client: Any, result: str) -> float:
    return float(await client.metric("worldtree_hedges_total", service="video", result=result))


@pytest.mark.parametrize("metadata", [NEW, (("cache-control", "no-cache"),)])
async def test_the_answer_of_a_replica_that_hangs_comes_from_another(
    start_backend, open_gateway, metadata: Any
) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, hedge_after_s=0.05) as client:
        await all_up(client)
        a.hanging = True
        for _ in range(4):
            answer = await client.stub.GetModel(ASKED, metadata=metadata, timeout=20)
            assert answer.model.ref.name == "echo"
        await quiet(client)
        assert await hedges(client, "won") == a.cancelled["GetModel"] > 0
        assert b.calls["GetModel"] == 4


async def test_an_answer_in_time_is_asked_for_once(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, hedge_after_s=20) as client:
        await all_up(client)
        for _ in range(4):
            await client.stub.GetModel(ASKED, metadata=NEW)
        assert a.calls["GetModel"] + b.calls["GetModel"] == 4


async def test_what_could_have_an_effect_or_has_a_place_is_never_sent_twice(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, hedge_after_s=0.01) as client:
        await all_up(client)
        slow = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="sleep:0.3")])
        await client.stub.Step(slow)
        a.hanging = b.hanging = True
        with pytest.raises(grpc.aio.AioRpcError):
            await client.stub.CreateSession(pb.CreateSessionRequest(request_id="r"), timeout=0.5)
        assert a.calls["CreateSession"] + b.calls["CreateSession"] == 1
        assert (a.calls["Step"], b.calls["Step"]) == (1, 0)


async def test_copies_are_paid_out_of_the_budget(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    options = {"hedge_after_s": 0.01, "retry_ratio": 0, "retries_per_s": 0}
    async with open_gateway(a.address, b.address, **options) as client:
        await all_up(client)
        a.hanging = b.hanging = True
        asked = [asyncio.ensure_future(client.stub.GetModel(ASKED, metadata=NEW)) for _ in range(4)]
        await client.until(lambda: a.calls["GetModel"] + b.calls["GetModel"] == 4)
        while await hedges(client, "refused") < 4:  # noqa: ASYNC110 - as a scraper sees it
            await asyncio.sleep(0.01)
        assert a.calls["GetModel"] + b.calls["GetModel"] == 4
        a.hanging = b.hanging = False
        await asyncio.gather(*asked)


async def test_a_caller_who_leaves_takes_both_copies_along(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, hedge_after_s=0.01) as client:
        await all_up(client)
        a.hanging = b.hanging = True
        asked = client.stub.GetModel(ASKED, metadata=NEW)
        await client.until(lambda: a.calls["GetModel"] == b.calls["GetModel"] == 1)
        asked.cancel()
        await client.until(lambda: a.cancelled["GetModel"] == b.cancelled["GetModel"] == 1)
        await quiet(client)


async def test_when_one_copy_fails_by_its_replica_the_other_is_waited_for(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, hedge_after_s=0.05) as client:
        await all_up(client)
        a.hanging = b.hanging = True
        asked = asyncio.ensure_future(client.stub.GetModel(ASKED, metadata=NEW))
        await client.until(lambda: a.calls["GetModel"] == b.calls["GetModel"] == 1)
        a.loading, a.hanging = True, False
        await client.until(lambda: client.gateway.routers[0].backends[0].in_flight == 0)
        b.hanging = False
        assert (await asked).model.ref.name == "echo"


async def test_what_is_late_is_measured(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, hedge_after_s=0) as client:
        await all_up(client)
        for _ in range(40):
            await client.stub.GetModel(ASKED, metadata=NEW)
        a.hanging = True
        for _ in range(2):
            await client.stub.GetModel(ASKED, metadata=NEW, timeout=20)
        assert await hedges(client, "won") >= 1
