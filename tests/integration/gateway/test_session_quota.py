"""A tenant has no more sessions than it may, wherever they are and however they end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from credentials import KeysFile, bearer
from refusals import refused
from whole import Whole
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.serving import serve_navigator

LIMIT = 3


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Any]:
    keys = KeysFile(tmp_path / "keys")
    mine, theirs = keys.add("acme"), keys.add("globex")
    whole: Any = Whole(tmp_path / "models", keys_file=keys.path, sessions_per_tenant=LIMIT)
    whole.mine, whole.theirs = bearer(mine), bearer(theirs)
    yield whole
    whole.close()


@pytest.fixture
async def stub(whole: Any) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(whole.gateway.server.address) as channel:
        yield VideoGeneratorStub(channel)


async def opened(stub: Any, metadata: Any, *, ttl_s: int = 600, request_id: str = "") -> str:
    origin = pb.Origin(start="dusk")
    request = pb.CreateSessionRequest(model=common.ModelRef(name="tiny"), origin=origin, request_id=request_id)
    request.ttl.FromSeconds(ttl_s)
    return str((await stub.CreateSession(request, metadata=metadata)).session.session)


async def test_no_more_are_opened_than_a_tenant_may_have(whole: Any, stub: Any) -> None:
    sessions = [await opened(stub, whole.mine) for _ in range(LIMIT)]
    refusal = await refused(opened(stub, whole.mine))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SESSION_QUOTA_EXCEEDED")
    assert {"QuotaFailure", "RetryInfo"} <= set(refusal.details)
    await opened(stub, whole.theirs)
    await stub.Delete(pb.DeleteRequest(session=sessions[0]), metadata=whole.mine)
    await opened(stub, whole.mine)
    assert (await refused(opened(stub, whole.mine))).reason == "SESSION_QUOTA_EXCEEDED"


async def test_forks_count_all_their_children_and_a_snapshot_one(whole: Any, stub: Any) -> None:
    session = await opened(stub, whole.mine)
    request = pb.ForkRequest(session=session, count=LIMIT)
    assert (await refused(stub.Fork(request, metadata=whole.mine))).reason == "SESSION_QUOTA_EXCEEDED"
    request.count = LIMIT - 1
    await stub.Fork(request, metadata=whole.mine)
    snapshot = (await stub.Save(pb.SaveRequest(session=session), metadata=whole.mine)).snapshot
    restore = pb.RestoreRequest(snapshot=snapshot)
    assert (await refused(stub.Restore(restore, metadata=whole.mine))).reason == "SESSION_QUOTA_EXCEEDED"
    await stub.Delete(pb.DeleteRequest(session=session), metadata=whole.mine)
    await stub.Restore(restore, metadata=whole.mine)


async def test_a_lease_that_ends_makes_room_and_the_wait_is_told(whole: Any, stub: Any) -> None:
    sessions = [await opened(stub, whole.mine, ttl_s=40) for _ in range(LIMIT)]
    refusal = await refused(opened(stub, whole.mine))
    assert 0 < refusal.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() <= 40
    await stub.Delete(pb.DeleteRequest(session=sessions[0]), metadata=whole.mine)
    await opened(stub, whole.mine, ttl_s=2)
    ends_s = asyncio.get_running_loop().time() + 30
    while True:
        try:
            await opened(stub, whole.mine)
            return
        except grpc.aio.AioRpcError:
            assert asyncio.get_running_loop().time() < ends_s
            await asyncio.sleep(0.2)


async def test_of_many_that_open_at_once_as_many_get_in_as_there_is_room_for(whole: Any, stub: Any) -> None:
    done = await asyncio.gather(*(opened(stub, whole.mine) for _ in range(4 * LIMIT)), return_exceptions=True)
    assert sum(isinstance(each, str) for each in done) == LIMIT


async def test_of_many_at_several_gateways_as_many_get_in_as_there_is_room_for(
    whole: Any, tmp_path: Path, valkey: Any
) -> None:
    settings = {"keys_file": tmp_path / "keys", "sessions_per_tenant": LIMIT, "redis_url": valkey.url}
    gateways = [whole.open_gateway(**settings, redis_read_timeout_s=10.0) for _ in range(2)]
    async with AsyncExitStack() as stack:
        stubs = [
            VideoGeneratorStub(await stack.enter_async_context(grpc.aio.insecure_channel(each.server.address)))
            for each in gateways
        ]
        done = await asyncio.gather(*(opened(stub, whole.mine) for stub in stubs * 2 * LIMIT), return_exceptions=True)
        assert sum(isinstance(each, str) for each in done) == LIMIT


async def test_a_repeat_at_the_limit_gets_the_first_answer(whole: Any, stub: Any) -> None:
    first = await opened(stub, whole.mine, request_id="0b3c1a52-6d0e-4a57-9a3d-9a0f1f4d7c11")
    for _ in range(LIMIT - 1):
        await opened(stub, whole.mine)
    assert await opened(stub, whole.mine, request_id="0b3c1a52-6d0e-4a57-9a3d-9a0f1f4d7c11") == first
    other = opened(stub, whole.mine, request_id="0b3c1a52-6d0e-4a57-9a3d-9a0f1f4d7c12")
    assert (await refused(other)).reason == "SESSION_QUOTA_EXCEEDED"


async def test_what_is_forked_for_the_time_of_a_call_comes_on_top_up_to_as_many_again(whole: Any, stub: Any) -> None:
    session, *_ = [await opened(stub, whole.mine) for _ in range(LIMIT)]
    scratch = (*whole.mine, ("worldtree-scratch", "1"))
    await stub.Fork(pb.ForkRequest(session=session, count=LIMIT), metadata=scratch)
    more = stub.Fork(pb.ForkRequest(session=session, count=1), metadata=scratch)
    assert (await refused(more)).reason == "SESSION_QUOTA_EXCEEDED"


async def test_a_replica_that_is_known_by_two_addresses_counts_once(whole: Any, tmp_path: Path) -> None:
    port = whole.worlds_address.rpartition(":")[2]
    gateway = whole.open_gateway(
        keys_file=tmp_path / "keys", sessions_per_tenant=LIMIT, video=[f"127.0.0.1:{port}", f"localhost:{port}"]
    )
    async with grpc.aio.insecure_channel(gateway.server.address) as channel:
        stub = VideoGeneratorStub(channel)
        for _ in range(LIMIT):
            await opened(stub, whole.mine)
        assert (await refused(opened(stub, whole.mine))).reason == "SESSION_QUOTA_EXCEEDED"


async def test_a_tenant_at_its_limit_still_plans_by_a_navigator_that_asks_the_gateway(whole: Any, stub: Any) -> None:
    session, *_ = [await opened(stub, whole.mine) for _ in range(LIMIT)]
    address = whole.gateway.server.address
    settings = NavigatorSettings(port=0, metrics_port=0, drain_timeout_s=0.0, video=address, reward=address)
    async with serve_navigator(settings) as navigator, grpc.aio.insecure_channel(navigator.address) as channel:
        request = navigator_pb.PlanRequest(
            session=session,
            question=reward_pb.Question(goal="a bright clip"),
            actions=["left", "right"],
            horizon=2,
            candidates=2,
        )
        assert (await NavigatorStub(channel).Plan(request, metadata=whole.mine)).spent.chunk_count > 0
