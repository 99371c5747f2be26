"""A key may use so much, at whichever gateway it calls: calls and frames by the second, streams at a time."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import duration_pb2
from prometheus_client import CollectorRegistry
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.buckets import LocalBuckets, SharedBuckets, Use
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.rate import Rate
from worldtree_runtime.stores.redis_connection import RedisConnection

GET = pb.GetRequest(session="s.a")


def step(*frames: int) -> pb.StepRequest:
    """Of actions that the backend says to have made so many frames for."""
    return pb.StepRequest(session="s.a", actions=[pb.Action(instruction=f"cost:{each}") for each in frames])


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


def shared(url: str, *, timeout_s: float = 0.5) -> SharedBuckets:
    metrics = GatewayMetrics(CollectorRegistry())
    return SharedBuckets(RedisConnection(url, timeout_s), CircuitBreaker(failure_count=2, retry_s=0.2), metrics)


async def test_calls_beyond_the_rate_are_refused_with_the_time_to_wait(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, calls_per_s=5, calls_burst=3) as client:
        for _ in range(3):
            await client.stub.Get(GET)
        details = client.details(await refused(client.stub.Get(GET)))
        assert details["ErrorInfo"].reason == "QUOTA_EXCEEDED"
        assert details["QuotaFailure"].violations[0].subject == "key:anonymous/calls"
        wait = details["RetryInfo"].retry_delay
        assert duration_pb2.Duration() != wait
        assert wait.ToTimedelta().total_seconds() <= 0.2
        assert await client.metric("worldtree_limited_total", quota="calls") == 1
        await asyncio.sleep(wait.ToTimedelta().total_seconds())
        await client.stub.Get(GET)
    assert backend.calls["Get"] == 4


async def test_a_key_that_owes_more_frames_than_the_burst_waits(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, frames_per_s=100, frames_burst=50) as client:
        await client.stub.Step(step(20, 80))  # what it will cost is not known before
        await client.until(lambda: not client.gateway.quotas._owed)
        await asyncio.sleep(0.05)
        error = await refused(client.stub.Step(step(1)))
        assert "50 at once" in str(error.details())
        details = client.details(error)
        assert details["QuotaFailure"].violations[0].subject == "key:anonymous/frames"
        await asyncio.sleep(details["RetryInfo"].retry_delay.ToTimedelta().total_seconds())
        await client.stub.Step(step(1))
        assert await client.metric("worldtree_charged_frames_total") == 101
    assert backend.calls["Step"] == 2


async def test_an_answer_from_the_cache_costs_no_frames(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = pb.GenerateRequest(
        model={"name": "echo"}, origin=pb.Origin(start="here"), actions=[pb.Action(id=1)], seed=1
    )
    async with open_gateway(backend.address, frames_per_s=100) as client:
        for _ in range(3):
            async for _ in client.stub.Generate(request):
                pass
        assert await client.metric("worldtree_charged_frames_total") == backend.cost_of_chunk
    assert backend.calls["Generate"] == 1


async def test_two_gateways_count_together(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    limits = {"calls_per_s": 0.5, "calls_burst": 4, "redis_url": valkey.url}
    async with open_gateway(backend.address, **limits) as one, open_gateway(backend.address, **limits) as other:
        for client in (one, other, one, other):
            await client.stub.Get(GET)
        for client in (one, other):
            await refused(client.stub.Get(GET))


async def test_while_redis_is_away_each_gateway_counts_alone(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    limits = {"calls_per_s": 0.1, "calls_burst": 2, "redis_url": valkey.url, "redis_retry_s": 0.2}
    async with open_gateway(backend.address, **limits) as client:
        await client.stub.Get(GET)
        valkey.kill()
        for _ in range(2):
            await client.stub.Get(GET)
        await refused(client.stub.Get(GET))
        assert await client.metric("worldtree_limit_store_errors_total") >= 1
        valkey.restart()  # it has forgotten all: two more
        await asyncio.sleep(0.3)
        for _ in range(2):
            await client.stub.Get(GET)
        await refused(client.stub.Get(GET))


async def test_so_many_streams_are_open_and_no_more(start_backend, open_gateway) -> None:
    backend = await start_backend()
    begin = pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin())
    async with open_gateway(backend.address, streams_per_key=2) as client:
        plays = [client.stub.Play() for _ in range(2)]
        for play in plays:
            await play.write(begin)
            await play.read()
        third = client.stub.Play()
        error = await refused(third.read())
        assert client.details(error)["ErrorInfo"].reason == "STREAM_QUOTA_EXCEEDED"
        plays[0].cancel()
        await client.until(lambda: client.gateway.quotas._streams["anonymous"] == 1)
        again = client.stub.Play()
        await again.write(begin)
        assert (await again.read()).HasField("begun")
        for play in (plays[1], again):
            play.cancel()
        await client.until(lambda: not client.gateway.quotas._streams)


async def test_a_play_goes_no_faster_than_its_key_may(start_backend, open_gateway) -> None:
    backend = await start_backend()
    begin = pb.PlayRequest.Begin(actions=[pb.Action(instruction="sleep:0.002")] * 120)
    async with open_gateway(backend.address, frames_per_s=200, frames_burst=20) as client:
        play = client.stub.Play()
        await play.write(pb.PlayRequest(session="s.a", begin=begin))
        await play.done_writing()
        began_s, chunks = time.monotonic(), 0
        async for message in play:
            chunks += message.HasField("played")
        took_s = time.monotonic() - began_s
        frames = await client.metric("worldtree_charged_frames_total")
    assert chunks == 120
    assert frames == 120 * backend.cost_of_chunk
    assert took_s >= (frames - 20) / 200 - 0.5  # what was made since the last count was told goes ahead of it


async def test_redis_and_this_process_count_alike(valkey) -> None:
    redis, local = shared(valkey.url), LocalBuckets()
    rate, other = Rate(0.001, 10), Rate(0.001, 4)  # so slow that the time between two calls changes nothing
    for owner in ("a", "b"):
        for units, owed in ((3, False), (2, False), (8, False), (8, True), (0, False), (1, False)):
            uses = [Use(owner, "frames", rate, units), Use(owner, "calls", other, 1)]
            found, expected = await redis.use(uses, owed=owed), await local.use(uses, owed=owed)
            assert (found is None) == (expected is None), (owner, units, owed)
            if found and expected:
                assert found.use == expected.use
                assert found.wait_s == pytest.approx(expected.wait_s, abs=2)
    await redis.close()


async def test_a_full_bucket_leaves_nothing_in_redis(valkey) -> None:
    buckets, rate = shared(valkey.url), Rate(10, 10)
    connection = RedisConnection(valkey.url, 1.0)
    await buckets.use([Use("k", "calls", rate, 5)])
    assert await connection.redis.exists("worldtree:bucket:{k}:calls") == 1
    await asyncio.sleep(0.6)
    assert await connection.redis.exists("worldtree:bucket:{k}:calls") == 0
    await buckets.close()
    await connection.close()


def clip(*instructions: str) -> pb.GenerateRequest:
    actions = [pb.Action(instruction=each) for each in instructions]
    return pb.GenerateRequest(model={"name": "echo"}, origin=pb.Origin(start="here"), actions=actions, seed=1)


async def held(client: Any, *, cached: bool) -> Any:
    """A clip of which three messages have come, and no more will."""
    metadata = () if cached else (("cache-control", "no-store"),)
    call = client.stub.Generate(clip("", "", "hold"), metadata=metadata)
    for _ in range(3):
        await call.read()
    return call


@pytest.mark.parametrize("cached", [True, False])
async def test_a_stream_that_is_left_before_its_end_costs_what_has_passed(start_backend, open_gateway, cached) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, frames_per_s=100) as client:
        call = await held(client, cached=cached)
        call.cancel()
        await client.until(lambda: backend.cancelled["Generate"] == 1)
        await client.landed()
        await asyncio.sleep(0.1)
        assert await client.metric("worldtree_charged_frames_total") == 3 * backend.cost_of_chunk


@pytest.mark.parametrize("cached", [True, False])
async def test_a_stream_whose_replica_dies_costs_what_has_passed(spawn_backend, open_gateway, cached) -> None:
    backend = spawn_backend("a")
    async with open_gateway(backend.address, frames_per_s=100) as client:
        call = await held(client, cached=cached)
        backend.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        await client.landed()
        assert await client.metric("worldtree_charged_frames_total") == 3 * 2


async def test_a_call_that_fails_costs_what_it_has_made(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, frames_per_s=100) as client:
        request = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="spent:30")])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Step(request)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert await client.metric("worldtree_charged_frames_total") == 30


async def test_a_play_whose_key_owes_far_too_much_ends_and_is_told_when_to_come_again(
    start_backend, open_gateway
) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, frames_per_s=1, frames_burst=1) as client:
        play = client.stub.Play()
        await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
        await play.read()
        await client.stub.Step(step(1000))
        await client.until(lambda: client.gateway.quotas._wait_until_s)
        await play.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])))

        async def read_to_the_end() -> None:
            while await play.read() is not grpc.aio.EOF:
                pass

        error = await refused(read_to_the_end())
        assert client.details(error)["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 900


async def test_what_is_owed_is_told_at_the_end_too(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    limits = {"frames_per_s": 1, "frames_burst": 1, "redis_url": valkey.url}
    async with open_gateway(backend.address, **limits) as client:
        for _ in range(2):  # the second count would be told a moment later
            await asyncio.gather(client.stub.Step(step(500)), return_exceptions=True)
    async with open_gateway(backend.address, **limits) as client:
        await refused(client.stub.Step(step(1)))
