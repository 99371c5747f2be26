"""Named merges outlive a process and are known to all replicas; a gateway caches what they answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1.multi_task_pb2_grpc import MultiTaskStub
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.serving import start_gateway
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.serving import serve_multitask
from worldtree_runtime.testing_experts import TinyExperts


async def test_replicas_on_one_redis_know_each_others_merges(serve: Any, tools: Any, valkey: Any) -> None:
    one, other = await serve(redis_url=valkey.url), await serve(redis_url=valkey.url)
    made = await one.create("ties", name="signs")
    assert (await other.stub.GetMerge(pb.GetMergeRequest(name="signs"))).merge == made
    frames = tools.images(3)
    answers = [await each.predict(frames, name="signs") for each in (one, other)]
    assert answers[0].predictions == answers[1].predictions
    taken = pb.CreateMergeRequest(recipe=pb.Recipe(method="average"), name="signs")
    assert (await tools.refused(other.stub.CreateMerge(taken))).reason == "MERGE_NAME_TAKEN"
    await other.stub.DeleteMerge(pb.DeleteMergeRequest(name="signs"))
    assert (await tools.refused(one.predict(frames, name="signs"))).reason == "MERGE_NOT_FOUND"


async def test_merges_in_a_folder_outlive_the_process(models: Path, tools: Any, tmp_path: Path) -> None:
    settings = {"port": 0, "metrics_port": 0, "models": str(models), "merges_folder": str(tmp_path / "merges")}
    request = pb.CreateMergeRequest(recipe=pb.Recipe(method="ties"), name="signs")
    async with (
        serve_multitask(MultitaskSettings(**settings)) as (server, _),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        *_, last = [each async for each in MultiTaskStub(channel).CreateMerge(request)]
    async with (
        serve_multitask(MultitaskSettings(**settings)) as (server, _),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = MultiTaskStub(channel)
        assert (await stub.GetMerge(pb.GetMergeRequest(name="signs"))).merge == last.merge
        predicted = await stub.Predict(pb.PredictRequest(images=tools.images(2), name="signs"))
        assert predicted.merge_digest == last.merge.digest


@asynccontextmanager
async def before(service: Any, **settings: Any) -> AsyncIterator[MultiTaskStub]:
    """A stub of a gateway before it."""
    given = {"port": 0, "metrics_port": 0, "video": [], "multitask": [service.server.address], **settings}
    async with start_gateway(GatewaySettings(**given)) as running:
        await running.wait_ready()
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            yield MultiTaskStub(channel)


@pytest.fixture
async def gateway(serve: Any) -> AsyncIterator[tuple[Any, MultiTaskStub]]:
    """A service, and a stub of the gateway before it."""
    service = await serve()
    async with before(service) as stub:
        yield service, stub


async def cached(call: Any) -> str:
    await call
    return str(dict(await call.trailing_metadata())["worldtree-cache"])


async def test_the_gateway_answers_the_same_question_from_its_cache(gateway: Any, tools: Any) -> None:
    _, stub = gateway
    request = pb.PredictRequest(images=tools.images(2), preference=pb.Preference(weights=[1, 2, 3]))
    assert await cached(stub.Predict(request)) == "miss"
    assert await cached(stub.Predict(request)) == "hit"
    assert (await stub.Predict(request)).predictions
    other_images = pb.PredictRequest(images=tools.images(2, seed=1), preference=request.preference)
    other_preference = pb.PredictRequest(images=request.images, preference=pb.Preference(weights=[3, 2, 1]))
    assert [await cached(stub.Predict(each)) for each in (other_images, other_preference)] == ["miss", "miss"]


async def test_a_name_that_stands_for_another_merge_gets_no_answer_of_the_last(serve: Any, tools: Any) -> None:
    service = await serve(name_reuse_s=0.05)
    named = pb.PredictRequest(images=tools.images(2), name="mine")
    lasting = pb.PredictRequest(images=tools.images(2), recipe=pb.Recipe(method="average"))
    async with before(service, cache_ttl_max_s=0.3, cache_stale_s=60) as stub:
        first = await service.create("average", name="mine")
        assert (await stub.Predict(named)).merge_digest == first.digest
        assert await cached(stub.Predict(lasting)) == "miss"
        await service.stub.DeleteMerge(pb.DeleteMergeRequest(name="mine"))
        await asyncio.sleep(0.4)
        second = await service.create("ties", name="mine")
        assert (await stub.Predict(named)).merge_digest == second.digest != first.digest
        assert await cached(stub.Predict(lasting)) == "stale"


def test_a_name_stands_for_nothing_else_for_longer_than_its_answers_may_be_cached() -> None:
    predict = SERVICES[1].methods["/worldtree.multitask.v1.MultiTask/Predict"]
    assert predict.cache is not None
    (flight_max_s,) = (each.le for each in GatewaySettings.model_fields["flight_ttl_s"].metadata if hasattr(each, "le"))
    assert MultitaskSettings().name_reuse_s > predict.cache.ttl_s + flight_max_s


async def test_progress_and_cancelling_pass_the_gateway(gateway: Any, tools: Any) -> None:
    service, stub = gateway
    events = [each async for each in stub.CreateMerge(pb.CreateMergeRequest(recipe=pb.Recipe(method="adamerging")))]
    assert [each.WhichOneof("event") for each in events][-1] == "merge"
    assert any(each.WhichOneof("event") == "progress" for each in events)
    assert (await stub.GetMerge(pb.GetMergeRequest(name=events[-1].merge.name))).merge == events[-1].merge
    recipe = pb.Recipe(method="adamerging")
    recipe.parameters.update({"objective": "infomax", "optimizer": "gradient", "steps": 500})
    call = stub.CreateMerge(pb.CreateMergeRequest(recipe=recipe))
    await call.read()
    call.cancel()
    for _ in range(500):
        counted = await service.metric("worldtree_merge_creations_total")
        if counted.get('{model="tiny-experts",result="cancelled"}'):
            return
    raise AssertionError("the service never heard that the caller left")


async def test_a_merge_of_an_older_version_still_answers_through_the_gateway(
    models: Path, tools: Any, tmp_path: Path
) -> None:
    settings = {"port": 0, "metrics_port": 0, "models": str(models), "merges_folder": str(tmp_path / "merges")}
    async with (
        serve_multitask(MultitaskSettings(**settings)) as (server, _),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        request = pb.CreateMergeRequest(recipe=pb.Recipe(method="average"), name="old")
        *_, _ = [each async for each in MultiTaskStub(channel).CreateMerge(request)]
    TinyExperts(version="2", gain=2.0).write(models)
    async with serve_multitask(MultitaskSettings(**settings)) as (server, _):
        before = GatewaySettings(port=0, metrics_port=0, video=[], multitask=[server.address])
        async with start_gateway(before) as running:
            await running.wait_ready()
            async with grpc.aio.insecure_channel(running.server.address) as channel:
                stub = MultiTaskStub(channel)
                assert (await stub.ListTasks(pb.ListTasksRequest())).model.version == "2"
                answer = await stub.Predict(pb.PredictRequest(images=tools.images(2), name="old"))
                assert answer.model.version == "1"
                wrong = pb.PredictRequest(
                    images=tools.images(2), name="old", model=common.ModelRef(name="tiny-experts", version="2")
                )
                assert (await tools.refused(stub.Predict(wrong))).reason == "MODEL_NOT_FOUND"
