"""Gateways that are asked the same at once make one call, whatever becomes of whoever makes it, and of Redis."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import CollectorRegistry
from valkeys import slow_before
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.shared_flights import SharedFlights, Source
from worldtree_gateway.verdicts import error_info
from worldtree_runtime.stores.redis_connection import RedisConnection

TTL_S = 0.6


def flights_of(
    valkey: Any, *, ttl_s: float = TTL_S, recording_bytes: int = 1 << 20, url: str | None = None, timeout_s: float = 0.5
) -> SharedFlights:
    """`url`: another way to it, of whose answers each may take `timeout_s`."""
    breaker = CircuitBreaker(failure_count=3, retry_s=0.2)
    metrics = GatewayMetrics(CollectorRegistry())
    reads, writes = RedisConnection(url or valkey.url, timeout_s), RedisConnection(valkey.url, 0.5)
    return SharedFlights(reads, writes, breaker, metrics, ttl_s=ttl_s, recording_bytes=recording_bytes)


class Calls:
    """A backend's call, made any number of times; `may_go_on` holds it after its second message."""

    def __init__(self, count: int = 6) -> None:
        self.count, self.begun, self.ended = count, 0, 0
        self.began, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, _timeout_s: float | None) -> AsyncGenerator[bytes]:
        self.begun += 1
        self.began.set()
        try:
            for index in range(self.count):
                if index == 2:
                    await self.may_go_on.wait()
                    if self.error is not None:
                        raise self.error
                yield b"%d" % index
        finally:
            self.ended += 1


async def collected(flights: SharedFlights, calls: Source, key: bytes = b"k") -> list[bytes]:
    return [message async for message in flights.messages(key, calls, None)]


WHOLE = [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_recording_is_read_while_it_grows_and_for_a_while_after(valkey: Any) -> None:
    one, other, calls = flights_of(valkey), flights_of(valkey), Calls()
    leader = asyncio.create_task(collected(one, calls))
    await calls.began.wait()
    follower = other.messages(b"k", calls, None)
    assert [await anext(follower), await anext(follower)] == WHOLE[:2], "before the call has ended"
    calls.may_go_on.set()
    assert [message async for message in follower] == WHOLE[2:]
    assert await leader == WHOLE
    assert await collected(other, calls) == WHOLE, "the answer may not be in the store yet"
    assert calls.begun == 1
    await asyncio.sleep(TTL_S + 0.2)
    assert await collected(other, calls) == WHOLE
    assert calls.begun == 2
    await one.close()
    await other.close()


async def test_a_claim_of_nobody_keeps_the_others_waiting_only_as_long_as_a_claim_lives(valkey: Any) -> None:
    flights, calls = flights_of(valkey, ttl_s=30), Calls(count=2)
    # as Redis carries it out, when it goes on after a pause, for who has long given it up
    assert await flights._claim(b"k", "nobody", None) == b"nobody"
    async with asyncio.timeout(10):
        assert await collected(flights, calls) == WHOLE[:2]
    assert calls.begun == 1


async def test_a_claim_that_was_answered_too_late_is_taken_back(valkey: Any) -> None:
    port = urlsplit(valkey.url).port
    async with slow_before(port, 0.2) as slow:
        one = flights_of(valkey, ttl_s=30, url=f"redis://127.0.0.1:{slow}/0", timeout_s=5.0)
        other, calls = flights_of(valkey, ttl_s=30), Calls(count=2)
        assert await collected(one, calls, b"another key") == WHOLE[:2]  # from here on it is connected
        one._reads.timeout_s = 0.05
        assert await collected(one, calls) == WHOLE[:2], "a call of its own"
        await asyncio.gather(*one._recording)
        lock = await other._reads.call(lambda: other._reads.redis.get(f"worldtree:flight:{{{b'k'.hex()}}}"))
        assert lock is None
        await one.close()
        await other.close()


async def test_who_takes_longer_for_a_first_word_than_a_claim_lives_keeps_it(valkey: Any) -> None:
    one, other, go = flights_of(valkey, ttl_s=30), flights_of(valkey, ttl_s=30), asyncio.Event()
    begun = []

    async def late(_timeout_s: float | None) -> AsyncGenerator[bytes]:
        begun.append(time.monotonic())
        await go.wait()
        yield b"0"

    leader = asyncio.create_task(collected(one, late))
    follower = asyncio.create_task(collected(other, late))
    await asyncio.sleep(2.5 * one.claim_s)
    go.set()
    assert await asyncio.gather(leader, follower) == [[b"0"], [b"0"]]
    assert len(begun) == 1


async def test_a_call_that_takes_long_keeps_its_claim(valkey: Any) -> None:
    one, other, calls = flights_of(valkey), flights_of(valkey), Calls()
    tasks = [asyncio.create_task(collected(one, calls))]
    await calls.began.wait()
    tasks.append(asyncio.create_task(collected(other, calls)))
    await asyncio.sleep(3 * TTL_S)
    calls.may_go_on.set()
    assert await asyncio.gather(*tasks) == [WHOLE, WHOLE]
    assert calls.begun == 1
    await one.close()
    await other.close()


async def test_when_whoever_makes_the_call_dies_another_goes_on_past_what_it_had(valkey: Any) -> None:
    one, other, calls, later = flights_of(valkey), flights_of(valkey), Calls(), Calls()
    leader = asyncio.create_task(collected(one, calls))
    await calls.began.wait()
    follower = other.messages(b"k", later, None)
    assert [await anext(follower), await anext(follower)] == WHOLE[:2]
    for recording in one._recording:  # as when its process is gone: nobody renews, nobody gives back
        recording.cancel()
    later.may_go_on.set()
    began_s = time.monotonic()
    assert [message async for message in follower] == WHOLE[2:]
    assert time.monotonic() - began_s < 3 * TTL_S
    assert later.begun == 1
    # The one that was thought dead goes on alone, and what it says is not recorded any more.
    calls.may_go_on.set()
    assert await leader == WHOLE
    assert await collected(other, later) == WHOLE
    assert later.begun == 1
    await one.close()
    await other.close()


def refusal(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """As a server of ours says it."""
    status = status_pb2.Status(code=code.value[0], message="no")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NO", domain="worldtree"))
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details="no")


async def failures(valkey: Any, error: grpc.aio.AioRpcError, follower_count: int) -> tuple[list[Any], int]:
    """What followers see whose leader's call, and each of their own, fails so; and how many calls were made."""
    flights, calls = [flights_of(valkey, ttl_s=30) for _ in range(follower_count + 1)], Calls()
    calls.error = error
    leader = asyncio.create_task(collected(flights[0], calls))
    await calls.began.wait()
    followers = [flight.messages(b"k", calls, None) for flight in flights[1:]]
    for follower in followers:
        assert [await anext(follower), await anext(follower)] == WHOLE[:2], "they wait for more"
    waiting = [asyncio.ensure_future(anext(follower)) for follower in followers]
    calls.may_go_on.set()
    with pytest.raises(grpc.aio.AioRpcError):
        await leader
    seen = await asyncio.gather(*waiting, return_exceptions=True)
    calls.error = None
    assert await collected(flights[0], calls) == WHOLE, "a failure is nobody's answer afterwards"
    for each in flights:
        await each.close()
    return seen, calls.begun - 1


async def test_what_would_fail_again_fails_for_all_who_wait(valkey: Any) -> None:
    seen, call_count = await failures(valkey, refusal(grpc.StatusCode.INVALID_ARGUMENT), 4)
    assert call_count == 1
    for each in seen:
        assert each.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert each.details() == "no"
        info = error_info(each)
        assert info is not None
        assert info.reason == "NO"


async def test_what_may_go_well_the_next_time_is_tried_once_more_by_one_of_those_who_wait(valkey: Any) -> None:
    seen, call_count = await failures(valkey, refusal(grpc.StatusCode.UNAVAILABLE), 4)
    assert [each.code() for each in seen] == [grpc.StatusCode.UNAVAILABLE] * 4
    assert call_count == 2, "not one call after the other, for each who waits"


@pytest.mark.parametrize("how", ["fails", "is left"])
async def test_a_call_that_comes_to_nothing_holds_nobody_up(valkey: Any, how: str) -> None:
    one, other, calls, later = flights_of(valkey, ttl_s=30), flights_of(valkey, ttl_s=30), Calls(), Calls()
    leader = asyncio.create_task(collected(one, calls))
    await calls.began.wait()
    follower = asyncio.create_task(collected(other, later))
    await asyncio.sleep(0.1)
    assert later.begun == 0
    later.may_go_on.set()
    if how == "fails":
        calls.error = ValueError("no such start")
        calls.may_go_on.set()
        with pytest.raises(ValueError, match="no such start"):
            await leader
    else:
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
    assert await asyncio.wait_for(follower, 5) == WHOLE
    assert (calls.begun, calls.ended, later.begun) == (1, 1, 1)
    await one.close()
    await other.close()


async def test_what_grows_too_large_is_made_by_each(valkey: Any) -> None:
    one, other = flights_of(valkey, recording_bytes=3), flights_of(valkey, recording_bytes=3)
    calls, later = Calls(), Calls()
    leader = asyncio.create_task(collected(one, calls))
    await calls.began.wait()
    follower = asyncio.create_task(collected(other, later))
    await asyncio.sleep(0.1)
    calls.may_go_on.set()
    later.may_go_on.set()
    assert await asyncio.gather(leader, follower) == [WHOLE, WHOLE]
    assert (calls.begun, later.begun) == (1, 1)
    await one.close()
    await other.close()


async def test_without_redis_each_makes_its_own(valkey: Any) -> None:
    one, other, calls, later = flights_of(valkey), flights_of(valkey), Calls(), Calls()
    leader = asyncio.create_task(collected(one, calls))
    await calls.began.wait()
    follower = other.messages(b"k", later, None)
    assert [await anext(follower), await anext(follower)] == WHOLE[:2]
    valkey.kill()
    calls.may_go_on.set()
    later.may_go_on.set()
    assert [message async for message in follower] == WHOLE[2:]
    assert await leader == WHOLE
    valkey.restart()
    await one.close()
    await other.close()


@pytest.mark.parametrize(("message_mib", "own_calls"), [(3, 0), (15, 1)])
async def test_large_messages_come_one_by_one_or_not_from_there_at_all(
    valkey: Any, message_mib: int, own_calls: int
) -> None:
    begun = 0

    async def source(_timeout_s: float | None) -> AsyncGenerator[bytes]:
        nonlocal begun
        begun += 1
        is_leader = begun == 1
        for index in range(4):
            yield bytes([index]) * (message_mib << 20)
        if is_leader:
            made.set()
            await leaves.wait()

    made, leaves = asyncio.Event(), asyncio.Event()
    port = urlsplit(valkey.url).port
    async with slow_before(port, 0.005) as slow:  # 64 KiB take so long, 1 MiB a tenth of a second
        one = flights_of(valkey, recording_bytes=64 << 20)
        other = flights_of(valkey, url=f"redis://127.0.0.1:{slow}/0", timeout_s=1.0)
        leader = asyncio.create_task(collected(one, source))
        await made.wait()
        following = other.messages(b"k", source, None)
        got = [await asyncio.wait_for(anext(following), 5) for _ in range(4)]
        assert [(message[0], len(message) >> 20) for message in got] == [(index, message_mib) for index in range(4)]
        assert begun == 1 + own_calls
        leaves.set()
        assert await leader == got
        assert [message async for message in following] == []
        await one.close()
        await other.close()


async def test_many_clients_of_two_gateways_make_one_generation(start_backend, open_gateway, valkey) -> None:
    backend = await start_backend()
    request = pb.GenerateRequest(
        model=common_pb2.ModelRef(name="echo"),
        origin=pb.Origin(start="here"),
        actions=[pb.Action(instruction="sleep:0.05"), pb.Action(instruction="sleep:0.05"), pb.Action(id=1)],
        seed=7,
    )

    async def clip(client: Any) -> list[bytes]:
        return [message.SerializeToString(deterministic=True) async for message in client.stub.Generate(request)]

    settings = {"redis_url": valkey.url, "redis_read_timeout_s": 5.0, "flight_ttl_s": 30.0}
    async with open_gateway(backend.address, **settings) as one, open_gateway(backend.address, **settings) as other:
        clips = await asyncio.gather(*(clip(client) for client in [one, other] * 25))
        assert backend.calls["Generate"] == 1
        assert all(each == clips[0] for each in clips)
        assert len(clips[0]) == 4
        young = (("cache-control", "no-cache"),)
        async for _ in other.stub.Generate(request, metadata=young):
            pass
        assert backend.calls["Generate"] == 2, "who wants a new answer gets one"
        refused = pb.GenerateRequest(model=request.model, origin=pb.Origin(start="nowhere"), actions=request.actions)
        for client in (one, other):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in client.stub.Generate(refused):
                    pass
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await one.landed()
        await other.landed()


async def recorded(valkey: Any, *, count: int) -> tuple[Any, str]:
    """A client of the Redis, and the name of the one recording in it, once it has so many entries."""
    connection = RedisConnection(valkey.url, 1.0)
    while True:
        names = [name.decode() async for name in connection.redis.scan_iter("worldtree:flight:*:*")]
        if names and await connection.redis.llen(names[0]) >= count:
            return connection, names[0]
        await asyncio.sleep(0.01)


async def test_a_write_that_arrives_twice_is_recorded_once(valkey: Any) -> None:
    one, other, calls = flights_of(valkey), flights_of(valkey), Calls()
    leader = asyncio.create_task(collected(one, calls))
    connection, log = await recorded(valkey, count=2)
    token = log.rpartition(":")[2]
    for _ in range(2):  # the same write again, as after a connection that broke before its answer
        assert await one.written(b"k", token, "add", 1, b"m1")
    assert await connection.redis.llen(log) == 2
    calls.may_go_on.set()
    assert await leader == WHOLE
    assert await collected(other, calls) == WHOLE
    assert calls.begun == 1
    for each in (one, other, connection):
        await each.close()


@pytest.mark.parametrize("had", [0, 2])
async def test_a_recording_that_was_lost_is_never_taken_for_a_whole_one(valkey: Any, had: int) -> None:
    one, other, calls, later = flights_of(valkey), flights_of(valkey), Calls(), Calls()
    leader = asyncio.create_task(collected(one, calls))
    connection, log = await recorded(valkey, count=2)
    follower = other.messages(b"k", later, None)
    got = [await anext(follower) for _ in range(had)]
    await connection.redis.delete(log)  # as a Redis does that has no room for all
    later.may_go_on.set()
    calls.may_go_on.set()
    assert [*got, *[message async for message in follower]] == WHOLE
    assert await leader == WHOLE
    for each in (one, other, connection):
        await each.close()


async def test_callers_who_do_not_read_hold_up_nobody_elsewhere(valkey: Any) -> None:
    one, other, calls, later = flights_of(valkey), flights_of(valkey), Calls(), Calls()
    stalled = one.messages(b"k", calls, None)
    assert await anext(stalled) == WHOLE[0]  # and then it is not asked for more
    later.may_go_on.set()
    assert await asyncio.wait_for(collected(other, later), 5) == WHOLE
    assert later.begun == 1
    calls.may_go_on.set()
    assert [message async for message in stalled] == WHOLE[1:]
    await one.close()
    await other.close()
