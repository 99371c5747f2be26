"""Requests that are read no further than they are let in. Responses that come part by part: as fast as they are read,
to their end or visibly without one.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from worldtree_gateway.http_server import HttpRequest, HttpResponse, HttpServer
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.peer_limit import PeerCalls

ASKED = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"


class Streams:
    """What a path answers: parts for ever, or two and then a bug."""

    def __init__(self) -> None:
        self.made, self.ended = 0, asyncio.Event()

    async def answer(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, stream=self.parts(request.path))

    async def parts(self, path: str) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                if path == "/bug" and self.made == 2:
                    raise RuntimeError("a bug")
                self.made += 1
                yield b"x" * 65536
        finally:
            self.ended.set()


class Bodies:
    """Answers with how many bytes it was given, once it may."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0

    async def answer(self, request: HttpRequest) -> HttpResponse:
        self.asked += 1
        await self.go.wait()
        return HttpResponse(200, (b"%d" % len(request.body),))


def server_of(streams: Streams | Bodies) -> HttpServer:
    async def admit(head: HttpRequest) -> int | HttpResponse:
        return 1024 if head.headers.get("x-key") != "wrong" else HttpResponse(401)

    return HttpServer(
        admit,
        streams.answer,
        lambda status, _: HttpResponse(status),
        PeerCalls(0, GatewayMetrics(CollectorRegistry())),
        buffer_bytes=1500,
        max_connections=8,
    )


@asynccontextmanager
async def serving(streams: Streams | Bodies) -> AsyncIterator[Any]:
    server = server_of(streams)
    await server.start("127.0.0.1", 0, None)
    try:
        yield lambda: asyncio.open_connection("127.0.0.1", server.port)
    finally:
        await server.stop(1.0)


async def test_no_more_is_made_than_is_read() -> None:
    streams = Streams()
    async with serving(streams) as connect:
        reader, writer = await connect()
        writer.write(ASKED % b"endless")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        made = -1
        while made != streams.made:  # until what lies between is full
            made = streams.made
            await asyncio.sleep(0.2)
        assert streams.made * 65536 < 64 << 20
        await reader.readexactly(8 << 20)
        async with asyncio.timeout(10):
            while streams.made == made:  # noqa: ASYNC110 - a server tells nobody here
                await asyncio.sleep(0.01)
        writer.close()
        async with asyncio.timeout(10):
            await streams.ended.wait()


async def test_a_stream_that_fails_has_no_end_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    streams = Streams()
    async with serving(streams) as connect:
        reader, writer = await connect()
        writer.write(ASKED % b"bug")
        told = await reader.read()
        assert told.count(b"x" * 65536) == 2
        assert not told.endswith(b"0\r\n\r\n")
        writer.close()
        assert "broke off" in caplog.text
        reader, writer = await connect()
        writer.write(ASKED % b"endless")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_server_that_stops_ends_what_streams_for_ever() -> None:
    streams = Streams()
    async with serving(streams) as connect:
        reader, writer = await connect()
        writer.write(ASKED % b"endless")
        await reader.readline()
    assert streams.ended.is_set()
    writer.close()


async def test_a_server_that_stops_answers_what_it_was_asked_and_nothing_more() -> None:
    bodies = Bodies()
    server = server_of(bodies)
    await server.start("127.0.0.1", 0, None)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(ASKED % b"one")
    async with asyncio.timeout(10):
        while not bodies.asked:  # noqa: ASYNC110 - a server tells nobody here
            await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(server.stop(60.0))
        await asyncio.sleep(0.01)
        writer.write(ASKED % b"two")
        bodies.go.set()
        answer = await reader.read()  # to the end of the connection
        await stopping
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == bodies.asked == 1
    writer.close()


async def test_a_stranger_is_refused_by_the_head_and_its_body_is_not_awaited() -> None:
    bodies = Bodies()
    async with serving(bodies) as connect:
        for length in (
            b"Content-Length: 1000",
            b"Transfer-Encoding: chunked",
            b"Content-Length: 9\r\nExpect: 100-continue",
        ):
            reader, writer = await connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nX-Key: wrong\r\n%b\r\n\r\n" % length)
            async with asyncio.timeout(10):
                assert (await reader.readline()).startswith(b"HTTP/1.1 401")
            writer.close()
    assert not bodies.asked


async def test_who_sends_on_after_a_refusal_still_reads_it() -> None:
    async with serving(Bodies()) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 4_000_000)
        async with asyncio.timeout(10):
            await writer.drain()
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_all_bodies_together_take_no_more_than_they_may() -> None:
    bodies = Bodies()
    asked = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
    async with serving(bodies) as connect, asyncio.timeout(20):
        first, keeps = await connect()
        keeps.write(asked)
        while not bodies.asked:  # noqa: ASYNC110 - a server tells nobody here
            await asyncio.sleep(0.01)
        second, is_refused = await connect()
        is_refused.write(asked)
        assert (await second.readline()).startswith(b"HTTP/1.1 503")
        bodies.go.set()
        for _ in range(3):
            assert (await first.readline()).startswith(b"HTTP/1.1 200")
            assert (await first.readuntil(b"\r\n\r\n1000")).startswith(b"Content-Length: 4")
            keeps.write(asked)
        keeps.close()
        is_refused.close()
