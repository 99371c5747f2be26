"""A gateway that stops ends plays in a way that says to go on elsewhere: at once those that can, the others late."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_gateway import play_failover
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import start_gateway

BEGIN = pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(actions=[pb.Action(id=1)]))


LARGE = pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(actions=[pb.Action(instruction="x" * 100_000)] * 300))
RESUMES = (("worldtree-resumes", "1"),)


class Gateway:
    """One that a test stops under its calls, and a stub of it."""

    def __init__(self, address: str, *, drain_timeout_s: float = 20.0, http_port: int | None = None) -> None:
        self._settings = GatewaySettings(
            video=[address],
            port=0,
            metrics_port=0,
            openpi_port=0,
            http_port=http_port,
            drain_timeout_s=drain_timeout_s,
            probe_interval_s=0.1,
        )
        self._stack, self._channels = AsyncExitStack(), AsyncExitStack()

    async def __aenter__(self) -> "Gateway":
        self.running = await self._stack.enter_async_context(start_gateway(self._settings))
        await self.running.wait_ready()
        channel = grpc.aio.insecure_channel(self.running.server.address)
        self.channel = await self._channels.enter_async_context(channel)
        self.stub: Any = VideoGeneratorStub(self.channel)
        return self

    async def stop(self) -> None:
        await self._stack.aclose()

    async def __aexit__(self, *_: object) -> None:
        await self._channels.aclose()
        await self._stack.aclose()


async def test_a_play_hears_that_its_gateway_stops_after_the_chunks_that_have_come(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with Gateway(backend.address) as gateway:
        play = gateway.stub.Play(metadata=RESUMES)
        await play.write(BEGIN)
        assert (await play.read()).HasField("begun")
        assert (await play.read()).HasField("played")
        stopping = asyncio.ensure_future(gateway.stop())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(play.read(), 10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        async with open_gateway(backend.address) as client:
            info = client.details(raised.value)
            assert info["ErrorInfo"].reason == "GATEWAY_DRAINING"
            assert info["RetryInfo"].retry_delay.ToTimedelta().total_seconds() < 1
            await asyncio.wait_for(stopping, 10)
            resume = pb.PlayRequest.Continue(chunk_index=1)
            again = client.stub.Play()
            await again.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(resume_from=resume)))
            assert (await again.read()).HasField("begun"), "the echo knows of no other opening"
            again.cancel()
        await client.until(lambda: backend.closed["Play"] == 2)


async def test_a_reader_that_takes_nothing_does_not_hold_up_the_others(start_backend) -> None:
    backend = await start_backend("a")
    async with Gateway(backend.address) as gateway:
        stuck, play = gateway.stub.Play(metadata=RESUMES), gateway.stub.Play(metadata=RESUMES)
        await stuck.write(LARGE)
        await play.write(BEGIN)
        for _ in range(2):
            await play.read()
        stopping = asyncio.ensure_future(gateway.stop())
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(play.read(), 10)
        stuck.cancel()
        await asyncio.wait_for(stopping, 15)


async def draining_reason(call: Any) -> str:
    """What a play is ended with, once what came before is read."""
    try:
        while await asyncio.wait_for(call.read(), 30) is not grpc.aio.EOF:
            pass
        assert not await call.code(), "it ended well"
    except grpc.aio.AioRpcError as error:
        return error.details() or ""
    return await call.details() or ""


async def settled(count: Callable[[], int]) -> None:
    """Returns when a reader who takes nothing has stopped the writer."""
    last = -1
    while (now := count()) != last:
        last = now
        await asyncio.sleep(0.5)


async def test_a_gateway_that_is_about_to_stop_begins_no_play(start_backend, monkeypatch) -> None:
    monkeypatch.setattr(play_failover, "_LEAVING_S", 60.0)
    backend = await start_backend("a")
    async with Gateway(backend.address, drain_timeout_s=120.0) as gateway:
        stuck, play = gateway.stub.Play(metadata=RESUMES), gateway.stub.Play(metadata=RESUMES)
        await stuck.write(LARGE)
        await play.write(BEGIN)
        for _ in range(2):
            await play.read()
        await stuck.read()
        await settled(lambda: backend.written["Play"])
        stopping = asyncio.ensure_future(gateway.stop())
        assert "about to stop" in await draining_reason(play)
        begun_count = backend.calls["Play"]
        late = gateway.stub.Play()
        await late.write(BEGIN)
        assert "about to stop" in await draining_reason(late)
        assert backend.calls["Play"] == begun_count, "no replica has heard of it"
        stuck.cancel()
        await asyncio.wait_for(stopping, 30)


async def test_a_play_that_can_not_go_on_elsewhere_may_end_where_it_is(start_backend) -> None:
    backend = await start_backend("a")
    async with Gateway(backend.address, drain_timeout_s=60.0) as gateway:
        stock, other = gateway.stub.Play(), gateway.stub.Play(metadata=RESUMES)
        for call in (stock, other):
            await call.write(BEGIN)
            for _ in range(2):
                await call.read()
        stopping = asyncio.ensure_future(gateway.stop())
        assert "about to stop" in await draining_reason(other)
        await stock.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=2)])))
        assert (await asyncio.wait_for(stock.read(), 30)).HasField("played")
        await stock.done_writing()
        assert await asyncio.wait_for(stock.read(), 30) is grpc.aio.EOF
        assert await stock.code() is grpc.StatusCode.OK
        await asyncio.wait_for(stopping, 30)


async def test_a_play_that_can_not_go_on_elsewhere_is_told_so_before_time_is_up(start_backend) -> None:
    backend = await start_backend("a")
    async with Gateway(backend.address, drain_timeout_s=4.0) as gateway:
        stock = gateway.stub.Play()
        await stock.write(BEGIN)
        for _ in range(2):
            await stock.read()
        stopping = asyncio.ensure_future(gateway.stop())
        assert "about to stop" in await draining_reason(stock)
        await asyncio.wait_for(stopping, 30)


async def test_health_and_plays_hear_of_a_stop_at_once_though_others_are_under_way_by_other_doors(
    start_backend,
) -> None:
    backend = await start_backend("a")
    async with Gateway(backend.address, drain_timeout_s=4.0, http_port=0) as gateway:
        host, _, port = gateway.running.rest_address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = b'{"session": "s.a", "actions": [{"instruction": "sleep:30"}]}'
        writer.write(b"POST /v1/video/Step HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        play = gateway.stub.Play(metadata=RESUMES)
        await play.write(BEGIN)
        for _ in range(2):
            await play.read()
        health = HealthStub(gateway.channel)
        watch = health.Watch(HealthCheckRequest())
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        while not backend.calls["Step"]:  # noqa: ASYNC110 - a backend tells nobody
            await asyncio.sleep(0.01)

        began_s = time.monotonic()
        stopping = asyncio.ensure_future(gateway.stop())
        assert (await asyncio.wait_for(watch.read(), 30)).status == HealthCheckResponse.NOT_SERVING
        assert "about to stop" in await draining_reason(play)
        told_s = time.monotonic() - began_s
        await asyncio.wait_for(stopping, 30)
        ended_s = time.monotonic() - began_s
        writer.close()
    assert told_s < 3.0, "while the request by HTTP still was under way"
    assert told_s < ended_s < 4.0 + 4.0, "the drain, and what a busy machine takes"
