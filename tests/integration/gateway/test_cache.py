"""Answers that come from the cache are the answers, and the cache is never in anybody's way."""

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from redis import Redis
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb

ECHO = common_pb2.ModelRef(name="echo")
NAMES = pb.GetModelRequest(model=ECHO)


def generate(seed: int = 7, *instructions: str, actions: int = 3) -> pb.GenerateRequest:
    wanted = [pb.Action(id=each) for each in range(actions)] + [pb.Action(instruction=each) for each in instructions]
    return pb.GenerateRequest(model=ECHO, origin=pb.Origin(start="here"), actions=wanted, seed=seed)


async def clip(client: Any, request: pb.GenerateRequest, **options: Any) -> tuple[list[bytes], str]:
    """The messages, and what the gateway says of the cache."""
    call = client.stub.Generate(request, **options)
    messages = [message.SerializeToString(deterministic=True) async for message in call]
    return messages, dict(await call.trailing_metadata())["worldtree-cache"]


async def model(client: Any, **options: Any) -> tuple[bytes, str]:
    call = client.stub.GetModel(NAMES, **options)
    answer = (await call).SerializeToString(deterministic=True)
    return answer, dict(await call.trailing_metadata())["worldtree-cache"]


def control(value: str) -> dict[str, Any]:
    return {"metadata": (("cache-control", value),)}


async def _read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_repeated_stream_is_replayed_message_by_message(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        first = await clip(client, generate())
        second = await clip(client, generate())
        other = await clip(client, generate(seed=8))
        assert await client.metric("worldtree_cache_requests_total", result="hit") == 1
        assert await client.metric("worldtree_cache_requests_total", result="miss") == 2
        assert await client.metric("worldtree_cache_bytes") == client.gateway.cache.byte_count > 0
    assert (first[1], second[1], other[1]) == ("miss", "hit", "miss")
    assert first[0] == second[0] != other[0]
    assert len(first[0]) == 4
    assert backend.calls["Generate"] == 2


async def test_a_repeated_unary_call_is_answered_from_the_cache(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        first, second = await model(client), await model(client)
    assert (first[1], second[1]) == ("miss", "hit")
    assert first[0] == second[0]
    assert backend.calls["GetModel"] == 1


async def test_a_call_with_one_answer_has_no_more_time_for_being_cacheable(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, unary_timeout_s=7.0) as client:
        for metadata in ("max-age=60", "no-store"):
            await model(client, **control(metadata))
            assert backend.deadlines_s[-1] == pytest.approx(7.0, abs=1.0)


async def test_an_answer_expires(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, cache_ttl_max_s=0.3) as client:
        assert [(await model(client))[1] for _ in range(2)] == ["miss", "hit"]
        await asyncio.sleep(0.35)
        assert (await model(client))[1] == "miss"
        rule = (
            client.gateway.routers[0].backends[0].service.methods["/worldtree.video.v1.VideoGenerator/GetModel"].cache
        )
    assert rule.ttl_s == 5


async def test_an_answer_whose_time_is_over_is_given_while_a_new_one_is_asked_for_once(
    start_backend, open_gateway
) -> None:
    backend = await start_backend()
    backend.hold.set()
    request = generate(7, "hold")
    async with open_gateway(backend.address, cache_ttl_max_s=0.3, cache_stale_s=60) as client:
        first, said = await clip(client, request)
        assert said == "miss"
        await asyncio.sleep(0.35)
        assert await clip(client, request, **control("max-age=60")) == (first, "miss"), "who names an age gets none"
        await asyncio.sleep(0.35)
        backend.hold.clear()  # the new one takes as long as we like
        stale = await asyncio.gather(*(clip(client, request) for _ in range(5)))
        assert stale == [(first, "stale")] * 5
        await client.until(lambda: backend.calls["Generate"] == 3)
        assert await clip(client, request) == (first, "stale")
        backend.hold.set()
        await client.landed()
        assert await clip(client, request) == (first, "hit")
        assert await client.metric("worldtree_cache_requests_total", result="stale") == 6
        client.gateway.cache.check_integrity()
    assert backend.calls["Generate"] == 3


async def test_an_answer_that_cannot_be_renewed_is_given_for_its_time_and_no_longer(
    spawn_backend, open_gateway
) -> None:
    backend = spawn_backend("a")
    async with open_gateway(backend.address, cache_ttl_max_s=0.2, cache_stale_s=3) as client:
        pinned = pb.GetModelRequest(model=(await client.stub.GetModel(NAMES)).model.ref)

        async def asked() -> str:
            call = client.stub.GetModel(pinned, timeout=5)
            await call
            return str(dict(await call.trailing_metadata())["worldtree-cache"])

        assert await asked() in ("miss", "hit")
        backend.kill()
        await asyncio.sleep(0.3)
        assert [await asked() for _ in range(3)] == ["stale"] * 3
        await asyncio.sleep(3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked()
        await client.landed()
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_what_nobody_waits_for_ends_with_the_gateway(start_backend, open_gateway) -> None:
    backend = await start_backend()
    backend.hold.set()
    async with open_gateway(backend.address, cache_ttl_max_s=0.2, cache_stale_s=60) as client:
        await clip(client, generate(7, "hold"))
        backend.hold.clear()
        await asyncio.sleep(0.25)
        assert (await clip(client, generate(7, "hold")))[1] == "stale"
        await client.until(lambda: backend.calls["Generate"] == 2)
    names = {"renew an answer", "flight"}
    await client.until(lambda: not names & {task.get_name() for task in asyncio.all_tasks()})


async def test_requests_written_in_another_order_are_the_same_request(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = generate()
    model_field = b"\x0a" + bytes([len(ECHO.SerializeToString())]) + ECHO.SerializeToString()
    whole = request.SerializeToString()
    assert whole.startswith(model_field)
    swapped = whole[len(model_field) :] + model_field
    async with open_gateway(backend.address) as client:
        await clip(client, request)
        call = client.channel.unary_stream("/worldtree.video.v1.VideoGenerator/Generate")(swapped)
        async for _ in call:
            pass
        assert dict(await call.trailing_metadata())["worldtree-cache"] == "hit"
    assert backend.calls["Generate"] == 1


async def test_cache_control_is_honoured(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        assert (await clip(client, generate(), **control("no-store")))[1] == "bypass"
        assert (await clip(client, generate()))[1] == "miss", "no-store kept nothing"
        assert (await clip(client, generate(), **control("no-cache")))[1] == "miss"
        assert (await clip(client, generate()))[1] == "hit"
        assert (await clip(client, generate(), **control("max-age=60")))[1] == "hit"
        await asyncio.sleep(1.05)
        assert (await clip(client, generate(), **control("max-age=1")))[1] == "miss"
        assert (await clip(client, generate(), **control("max-age=1")))[1] == "hit", "the younger answer was kept"
        assert (await clip(client, generate(), **control("max-age=0")))[1] == "miss"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await clip(client, generate(), **control("max-age=soon"))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert client.details(raised.value)["ErrorInfo"].reason == "INVALID_CACHE_CONTROL"
    assert backend.calls["Generate"] == 5


async def test_a_gateway_without_cache_passes_everything_on(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, cache=False) as client:
        for _ in range(2):
            call = client.stub.Generate(generate())
            assert len([message async for message in call]) == 4
    assert backend.calls["Generate"] == 2


async def test_a_new_model_version_never_answers_with_an_old_frame(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, digest_ttl_s=0.2) as client:
        old = await clip(client, generate())
        backend.digest = "e" * 64
        await asyncio.sleep(0.25)
        new = await clip(client, generate())
        assert new[1] == "miss"
        assert new[0] != old[0]
        assert (await clip(client, generate()))[0] == new[0]


async def test_a_version_that_changes_while_its_digest_is_held_is_served_and_not_cached(
    start_backend, open_gateway
) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, digest_ttl_s=60) as client:
        await clip(client, generate(seed=1))
        backend.digest = "e" * 64
        assert (await clip(client, generate(seed=2)))[1] == "bypass", "the old digest was refused, the call went on"
        assert (await clip(client, generate(seed=2)))[1] == "miss", "the new digest is known now"


async def test_an_unknown_model_is_refused_by_the_backend_in_its_own_words(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = generate()
    request.model.name = "nothing"
    async with open_gateway(backend.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await clip(client, request)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert client.details(raised.value)["ErrorInfo"].reason == "MODEL_NOT_FOUND"


async def test_an_unknown_start_is_asked_for_once_and_leaves_the_digest_known(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = generate()
    request.origin.start = "nowhere"
    async with open_gateway(backend.address) as client:
        await clip(client, generate())
        asked = backend.calls["GetModel"]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await clip(client, request)
        assert client.details(raised.value)["ErrorInfo"].reason == "START_NOT_FOUND"
        await clip(client, generate(seed=8))
    assert (backend.calls["Generate"], backend.calls["GetModel"]) == (3, asked)


async def test_errors_are_passed_on_and_not_cached(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await clip(client, generate(7, "full"))
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert set(client.details(raised.value)) == {"ErrorInfo", "QuotaFailure", "RetryInfo"}
        await client.landed()
        assert client.gateway.cache.byte_count == 0
    assert backend.calls["Generate"] == 2


async def test_fifty_who_ask_the_same_at_once_cost_one_call(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        asking = [asyncio.ensure_future(clip(client, generate(7, "hold"))) for _ in range(50)]
        await client.until(lambda: backend.calls["Generate"] == 1)
        flights = client.gateway.flights._flights
        # All have come, however slow the machine is.
        await client.until(lambda: sum(len(flight._riders) for flight in flights.values()) == 50)
        backend.hold.set()
        answers = await asyncio.gather(*asking)
        assert await client.metric("worldtree_cache_requests_total", result="joined") == 49
        await client.landed()
    assert backend.calls["Generate"] == 1
    assert backend.calls["GetModel"] == 1
    assert len({tuple(messages) for messages, _ in answers}) == 1
    assert sorted(said for _, said in answers) == ["hit"] * 49 + ["miss"]


async def test_followers_get_chunks_while_the_call_is_still_running(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        request = generate(7, "hold")
        leader, follower = client.stub.Generate(request), client.stub.Generate(request)
        for call in (leader, follower):
            for _ in range(4):
                await asyncio.wait_for(call.read(), 5)
        leader.cancel()
        follower.cancel()


async def test_followers_outlive_a_leader_who_cancels(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        request = generate(7, "hold")
        leader = client.stub.Generate(request)
        for _ in range(2):
            await leader.read()
        follower = asyncio.ensure_future(clip(client, request))
        await asyncio.sleep(0.1)
        leader.cancel()
        await asyncio.sleep(0.2)
        assert backend.cancelled["Generate"] == 0
        backend.hold.set()
        messages, said = await asyncio.wait_for(follower, 5)
        assert len(messages) == 5
        assert said == "hit"
        assert (await clip(client, request))[0] == messages
    assert backend.calls["Generate"] == 1


async def test_the_call_ends_when_its_last_caller_has_left(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        calls = [client.stub.Generate(generate(7, "hold")) for _ in range(3)]
        for call in calls:
            await call.read()
        for call in calls[:2]:
            call.cancel()
        await asyncio.sleep(0.2)
        assert backend.cancelled["Generate"] == 0
        calls[2].cancel()
        await client.until(lambda: backend.cancelled["Generate"] == 1)
        await client.landed()


async def test_a_leader_in_a_hurry_does_not_end_the_call_of_those_with_time(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        request = generate(7, "sleep:0.6")
        leader = asyncio.ensure_future(clip(client, request, timeout=0.3))
        await client.until(lambda: backend.calls["Generate"] == 1)
        assert 0.2 < backend.deadlines_s[-1] < 0.4, "the backend saw the leader's deadline"
        follower = asyncio.ensure_future(clip(client, request))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await leader
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        messages, _ = await asyncio.wait_for(follower, 5)
        assert messages == (await clip(client, request))[0]
        assert len(messages) == 5


async def test_a_backend_that_dies_fails_leader_and_followers_alike(spawn_backend, open_gateway) -> None:
    process = spawn_backend("a")
    async with open_gateway(process.address) as client:
        asking = [asyncio.ensure_future(clip(client, generate(7, "hold"))) for _ in range(5)]
        await asyncio.sleep(0.3)
        process.kill()
        for each in asking:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asyncio.wait_for(each, 5)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert client.details(raised.value)["ErrorInfo"].reason == "BACKEND_DOWN"
        await client.landed()


async def test_an_answer_too_large_for_the_cache_is_streamed_and_not_kept(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = generate(7, *["size:200000"] * 60)
    async with open_gateway(backend.address, cache_entry_bytes=1_000_000) as client:
        for _ in range(2):
            messages, said = await clip(client, request)
            assert said == "miss"
            assert len(messages) == 64
        assert client.gateway.cache.byte_count == 0
        await client.landed()


async def test_a_slow_follower_of_a_large_answer_holds_nobody_up_and_misses_nothing(
    start_backend, open_gateway
) -> None:
    backend = await start_backend()
    request = generate(7, "hold", *["size:400000"] * 80)
    async with open_gateway(backend.address, cache_entry_bytes=1_000_000) as client:
        slow = client.stub.Generate(request)
        got = [(await slow.read()).SerializeToString(deterministic=True)]
        fast = asyncio.ensure_future(clip(client, request))
        await asyncio.sleep(0.1)
        backend.hold.set()
        messages, _ = await asyncio.wait_for(fast, 20)
        assert len(messages) == 85
        while (message := await asyncio.wait_for(slow.read(), 20)) is not grpc.aio.EOF:
            got.append(message.SerializeToString(deterministic=True))
        assert got == messages
        assert backend.calls["Generate"] == 2, "the slow one was left behind and went on with a call of its own"
        await client.landed()


async def test_a_reader_who_stops_in_a_large_answer_stops_the_backend_too(start_backend, open_gateway) -> None:
    backend = await start_backend()
    request = generate(7, *["size:400000"] * 250)
    async with open_gateway(backend.address, cache_entry_bytes=1_000_000) as client:
        call = client.stub.Generate(request)
        await call.read()
        await asyncio.sleep(1.0)
        written_count = backend.written["Generate"]
        await asyncio.sleep(0.3)
        assert backend.written["Generate"] == written_count < 150
        call.cancel()


@pytest.mark.parametrize("cache_control", ["max-age=60", "no-store"])
async def test_a_reader_who_takes_nothing_holds_neither_a_flight_nor_a_replica(
    start_backend, open_gateway, cache_control: str
) -> None:
    backend = await start_backend()
    request = generate(7, *["size:400000"] * 60)
    async with open_gateway(backend.address, unread_s=0.3) as client:
        call = client.stub.Generate(request, **control(cache_control))
        await call.read()
        (replica,) = client.gateway.routers[0].backends
        assert replica.in_flight == 1
        await client.until(lambda: replica.in_flight == 0)
        await client.landed()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(_read_all(call), 8)
        assert client.details(raised.value)["ErrorInfo"].reason == "UNREAD"


async def test_what_idle_readers_hold_of_answers_from_redis_is_bounded(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    requests = [generate(seed, *["size:400000"] * 60) for seed in range(4)]  # of 24 MB each
    settings = {"cache_bytes": 0, "flight_bytes": 30_000_000, "redis_read_timeout_s": 5.0, "redis_url": valkey.url}
    async with open_gateway(backend.address, **settings) as client:
        answers = [(await clip(client, request))[0] for request in requests]
        with Redis.from_url(valkey.url) as redis:
            await client.until(lambda: len(redis.keys("worldtree:answer:*")) == len(requests))
            await client.until(lambda: not redis.keys("worldtree:flight:*"))
        least = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]  # so that no line holds an answer
        async with grpc.aio.insecure_channel(client.gateway.server.address, options=least) as channel:
            idle = [type(client.stub)(channel).Generate(request) for request in requests]
            for call in idle:
                await call.read()
            assert backend.calls["Generate"] == len(requests) + 2, "two are held, the others are made anew"
        await client.landed()
        assert await clip(client, requests[0]) == (answers[0], "hit"), "there is room again"


async def test_two_gateways_share_what_they_keep_in_redis(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    async with (
        open_gateway(backend.address, redis_url=valkey.url) as one,
        open_gateway(backend.address, redis_url=valkey.url) as two,
    ):
        first = await clip(one, generate())
        await asyncio.sleep(0.2)
        second = await clip(two, generate())
        third = await clip(two, generate())
    assert (first[1], second[1], third[1]) == ("miss", "hit", "hit")
    assert first[0] == second[0] == third[0]
    assert backend.calls["Generate"] == 1


async def test_a_gateway_that_keeps_nothing_itself_fills_redis_and_answers_from_it(
    start_backend, open_gateway, valkey
) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address, redis_url=valkey.url, cache_bytes=0) as client:
        first, began = await clip(client, generate()), await model(client)
        await asyncio.sleep(0.2)
        # all at once, of which some share what is being looked up
        clips = await asyncio.gather(*(clip(client, generate()) for _ in range(8)))
        models = await asyncio.gather(*(model(client) for _ in range(8)))
        await client.landed()
    assert clips == [(first[0], "hit")] * 8
    assert models == [(began[0], "hit")] * 8
    assert backend.calls["Generate"] == 1
    assert backend.calls["GetModel"] == 2  # once for the digest of Generate's model


async def test_an_answer_in_redis_expires_there_too(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    settings = {"redis_url": valkey.url, "cache_ttl_max_s": 0.4}
    async with open_gateway(backend.address, **settings) as one:
        await clip(one, generate())
        await asyncio.sleep(0.1)
        async with open_gateway(backend.address, **settings) as two:
            assert (await clip(two, generate()))[1] == "hit"
            await asyncio.sleep(0.4)
            assert (await clip(two, generate()))[1] == "miss"


async def test_requests_go_on_while_redis_is_down_and_it_is_used_again_when_it_is_back(
    start_backend, open_gateway, valkey
) -> None:
    backend = await start_backend()
    settings = {"redis_url": valkey.url, "redis_retry_s": 0.3, "redis_failure_count": 2}
    async with open_gateway(backend.address, **settings) as client:
        assert (await clip(client, generate(1)))[1] == "miss"
        assert await client.metric("worldtree_cache_store_up") == 1
        await asyncio.sleep(0.2)
        valkey.kill()
        started_s = time.monotonic()
        for seed in range(10, 30):
            messages, said = await clip(client, generate(seed))
            assert (len(messages), said) == (4, "miss")
            assert (await clip(client, generate(seed)))[1] == "hit", "what this process holds is still served"
        assert time.monotonic() - started_s < 5
        assert await client.metric("worldtree_cache_store_errors_total", operation="get") >= 1
        assert await client.metric("worldtree_cache_store_up") == 0

        valkey.restart()
        await asyncio.sleep(0.4)
        assert (await clip(client, generate(99)))[1] == "miss"
        assert await client.metric("worldtree_cache_store_up") == 1
        await asyncio.sleep(0.2)
        async with open_gateway(backend.address, redis_url=valkey.url) as other:
            assert (await clip(other, generate(99)))[1] == "hit"


async def test_a_redis_that_hangs_costs_a_request_only_its_budget(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    settings = {"redis_url": valkey.url, "redis_read_timeout_s": 0.1, "redis_failure_count": 2, "redis_retry_s": 60}
    async with open_gateway(backend.address, **settings) as client:
        await clip(client, generate(1))
        await asyncio.sleep(0.1)
        valkey.pause(3000)
        took_s = []
        for seed in range(10, 20):
            started_s = time.monotonic()
            assert (await clip(client, generate(seed)))[1] == "miss"
            took_s.append(time.monotonic() - started_s)
        assert max(took_s) < 1.0
        assert sorted(took_s)[5] < 0.1, "after two failures it is left alone"
        errors = {
            operation: await client.metric("worldtree_cache_store_errors_total", operation=operation, fault="timeout")
            for operation in ("get", "flight")
        }
        assert errors == {"get": 2, "flight": 0}, "a call waits for it once"


async def test_a_value_in_redis_that_is_damaged_is_a_miss(start_backend, open_gateway, valkey) -> None:
    import redis

    backend = await start_backend()
    async with open_gateway(backend.address, redis_url=valkey.url) as one:
        expected, _ = await clip(one, generate())
        await asyncio.sleep(0.2)
    with redis.Redis.from_url(valkey.url) as client:
        (key,) = client.keys("worldtree:answer:*")
        client.set(key, client.get(key)[:-3], ex=60)
    async with open_gateway(backend.address, redis_url=valkey.url) as two:
        assert await clip(two, generate()) == (expected, "miss")
        assert await two.metric("worldtree_cache_store_errors_total", operation="decode") == 1
