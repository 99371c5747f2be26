"""Replicas to which no call is bound never say their names; calls go from one to another all the same."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from worldtree.common.v1 import common_pb2
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1.multi_task_pb2_grpc import (
    MultiTaskServicer,
    MultiTaskStub,
    add_MultiTaskServicer_to_server,
)
from worldtree_runtime.errors import Exhausted
from worldtree_runtime.server import start_server
from worldtree_runtime.settings import ServiceSettings

MODEL = common_pb2.ModelRef(name="m", version="1", digest="d" * 64)
NEW = (("cache-control", "no-store"),)

StartPredictor = Callable[[], Awaitable["Predictor"]]


class Predictor(MultiTaskServicer):
    """Answers Predict at once, unless `mode` says how it shall not."""

    def __init__(self) -> None:
        self.mode = "answer"
        self.address = ""
        self.calls: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        add_MultiTaskServicer_to_server(self, server)
        return ["worldtree.multitask.v1.MultiTask"]

    async def ListTasks(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:
        return pb.ListTasksResponse(model=MODEL)

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        self.calls["Predict"] += 1
        match self.mode:
            case "full":
                raise Exhausted("QUEUE_FULL", "too many wait", retry_after_s=1)
            case "drop":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            case "hang":
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    self.cancelled["Predict"] += 1
                    raise
        return pb.PredictResponse(model=MODEL)


@pytest.fixture
async def start_predictor() -> AsyncIterator[StartPredictor]:
    async with AsyncExitStack() as stack:

        async def start() -> Predictor:
            predictor = Predictor()
            settings = ServiceSettings(port=0, metrics_port=0, drain_timeout_s=0)
            serving = start_server(settings, service="multitask", register=predictor.register)
            predictor.address = (await stack.enter_async_context(serving)).address
            return predictor

        yield start


async def predict(client: Any, **options: Any) -> pb.PredictResponse:
    answer: pb.PredictResponse = await MultiTaskStub(client.channel).Predict(
        pb.PredictRequest(model=MODEL), metadata=NEW, **options
    )
    return answer


async def all_up(client: Any) -> None:
    await client.until(lambda: all(each.usable for each in client.gateway.routers[0].backends))


@pytest.mark.parametrize("mode", ["full", "drop"])
async def test_what_one_cannot_answer_another_does(start_predictor: StartPredictor, open_gateway, mode: str) -> None:
    a, b = await start_predictor(), await start_predictor()
    async with open_gateway(multitask=[a.address, b.address]) as client:
        await all_up(client)
        assert [each.replica for each in client.gateway.routers[0].backends] == [None, None]
        a.mode = mode
        for _ in range(6):
            assert (await predict(client)).model == MODEL
        assert b.calls["Predict"] == 6
        sent = await client.metric("worldtree_retries_total", service="multitask", result="sent")
        assert sent == a.calls["Predict"] > 0


async def test_what_nobody_has_room_for_is_refused_in_their_words(
    start_predictor: StartPredictor, open_gateway
) -> None:
    a, b = await start_predictor(), await start_predictor()
    async with open_gateway(multitask=[a.address, b.address]) as client:
        await all_up(client)
        a.mode = b.mode = "full"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await predict(client)
        assert client.details(raised.value)["ErrorInfo"].reason == "QUEUE_FULL"
        assert (a.calls["Predict"], b.calls["Predict"]) == (1, 1)


async def test_the_answer_of_one_that_hangs_comes_from_another(start_predictor: StartPredictor, open_gateway) -> None:
    a, b = await start_predictor(), await start_predictor()
    async with open_gateway(multitask=[a.address, b.address], hedge_after_s=0.05) as client:
        await all_up(client)
        a.mode = "hang"
        for _ in range(4):
            await predict(client, timeout=20)
        assert b.calls["Predict"] == 4
        assert a.calls["Predict"] > 0
        await client.until(lambda: a.cancelled["Predict"] == a.calls["Predict"])


async def test_one_that_is_slow_and_alone_is_not_asked_twice(start_predictor: StartPredictor, open_gateway) -> None:
    only = await start_predictor()
    async with open_gateway(multitask=[only.address], hedge_after_s=0.02) as client:
        await all_up(client)
        only.mode = "hang"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await predict(client, timeout=0.5)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert only.calls["Predict"] == 1
