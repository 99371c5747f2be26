"""Calls are sent to another replica where that does no harm, and not more of them than trouble allows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


async def refused(client: Any, call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(client.details(raised.value)["ErrorInfo"].reason)


async def test_a_call_that_one_replica_can_not_answer_now_is_answered_by_another(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        await all_up(client)
        a.loading = True
        for _ in range(4):
            await client.stub.GetModel(ASKED, metadata=NEW)
            await client.stub.GetModel(ASKED, metadata=(("cache-control", "no-cache"),))
        assert b.calls["GetModel"] == 8
        sent = await client.metric("worldtree_retries_total", service="video", result="sent")
        assert sent == a.calls["GetModel"] > 0


async def test_a_call_that_could_have_had_an_effect_is_sent_again_only_if_it_names_itself(
    start_backend, open_gateway
) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        await all_up(client)
        a.loading = True
        reasons = []
        for _ in range(2):
            try:
                await client.stub.CreateSession(pb.CreateSessionRequest())
            except grpc.aio.AioRpcError as error:
                reasons.append(client.details(error)["ErrorInfo"].reason)
        assert reasons == ["MODEL_LOADING"]
        for number in range(4):
            answer = await client.stub.CreateSession(pb.CreateSessionRequest(request_id=f"r{number}"))
            assert answer.session.session.endswith(".b")


async def test_where_nobody_can_answer_each_is_asked_once_and_the_caller_has_their_own_words(
    start_backend, open_gateway
) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        await all_up(client)
        a.loading = b.loading = True
        assert await refused(client, client.stub.GetModel(ASKED, metadata=NEW)) == "MODEL_LOADING"
        assert (a.calls["GetModel"], b.calls["GetModel"]) == (1, 1)


async def test_no_more_calls_are_sent_again_than_the_budget_allows(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, retry_ratio=0.1, retries_per_s=0) as client:
        await all_up(client)
        a.loading = b.loading = True
        for _ in range(60):
            assert await refused(client, client.stub.GetModel(ASKED, metadata=NEW)) == "MODEL_LOADING"
        assert 60 < a.calls["GetModel"] + b.calls["GetModel"] <= 66
        assert await client.metric("worldtree_retries_total", service="video", result="refused") >= 54


async def test_a_call_on_a_session_is_no_part_of_the_budget(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        await all_up(client)
        a.loading = True
        assert await refused(client, client.stub.Get(pb.GetRequest(session="s.a"))) == "MODEL_LOADING"
        assert b.calls["Get"] == 0
        assert await client.metric("worldtree_retries_total", service="video", result="sent") == 0


@asynccontextmanager
async def wire(address: str) -> AsyncIterator[tuple[str, Any]]:
    """A way to a replica, its address, and what breaks the connections on it."""
    host, _, port = address.rpartition(":")
    writers: set[asyncio.StreamWriter] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        writers.update((writer, back))
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    def broken() -> None:
        for writer in writers:
            writer.transport.abort()
        writers.clear()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", broken
    finally:
        broken()
        server.close()


async def test_a_session_whose_answer_was_lost_is_asked_for_again_where_it_may_have_been_opened(
    start_backend, open_gateway
) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with wire(a.address) as (address, broken), open_gateway(address, b.address) as client:
        await all_up(client)
        a.hanging = b.hanging = True
        creating = [
            asyncio.ensure_future(client.stub.CreateSession(pb.CreateSessionRequest(request_id=f"r{number}")))
            for number in range(2)
        ]
        await client.until(lambda: (a.calls["CreateSession"], b.calls["CreateSession"]) == (1, 1))
        broken()
        await client.until(lambda: a.calls["CreateSession"] == 2)
        a.hanging = b.hanging = False
        homes = sorted([(await each).session.session[-1] for each in creating])
        assert homes == ["a", "b"]
        assert b.calls["CreateSession"] == 1


async def test_what_a_full_replica_can_not_open_another_one_does(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        await all_up(client)
        for reason in ("QUEUE_FULL", "KV_CACHE_FULL", "SESSION_LIMIT"):
            a.full = reason
            for _ in range(2):
                answer = await client.stub.CreateSession(pb.CreateSessionRequest())
                assert answer.session.session.endswith(".b")
        b.full = "QUEUE_FULL"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert client.details(raised.value)["RetryInfo"], "the caller has a replica's own words"
