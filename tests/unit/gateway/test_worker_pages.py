"""A worker that ends or hangs while it is asked is left out of the page, and is not in the way of whether we live."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry
from worldtree_gateway.worker_pages import WorkerPages
from worldtree_runtime.metrics import MetricsServer

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()  # until whoever asks has had enough
    finally:
        writer.close()


@asynccontextmanager
async def parent_of(worker: Serve) -> AsyncIterator[MetricsServer]:
    async with await asyncio.start_server(worker, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        registry = CollectorRegistry()
        pages = WorkerPages(lambda: {0: address})
        registry.register(pages)
        async with MetricsServer(registry, ready=lambda: pages.ready, before=pages.fetch) as found:
            await found.start("127.0.0.1", 0)
            yield found


async def status(server: MetricsServer, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0].decode()


@pytest.mark.parametrize("worker", [ends, hangs])
async def test_a_worker_that_says_nothing_is_left_out(worker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldtree_gateway.worker_pages._TIMEOUT_S", 0.1)
    async with parent_of(worker) as parent:
        assert await status(parent, "/metrics") == "HTTP/1.1 200 OK"
        assert await status(parent, "/readyz") == "HTTP/1.1 503 Service Unavailable"


async def test_a_worker_that_hangs_does_not_make_its_parent_look_dead() -> None:
    async with parent_of(hangs) as parent:
        async with asyncio.timeout(1.0):  # the worker would be waited for longer
            assert await status(parent, "/healthz") == "HTTP/1.1 200 OK"
