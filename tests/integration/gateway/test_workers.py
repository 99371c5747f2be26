"""Several processes of one gateway on one port, over a real Valkey: as one to callers, to scrapers and to signals."""

import asyncio
import os
import signal
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from gateway_process import gateway_process, ready_line
from prometheus_client.parser import text_string_to_metric_families
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import start_gateway

CONNECTIONS = 24  # two workers share them but once in eight million times
ONE_EACH = (("grpc.use_local_subchannel_pool", 1),)
SECONDS = 60.0


class Together:
    """A gateway of two workers, and what it said when it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, str]) -> None:
        self.process, self.address, self.metrics_address = process, ready["grpc"], ready["metrics"]

    @property
    def workers(self) -> list[int]:
        """Their pids."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    async def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Of one name, with their labels, as a scraper sees them."""
        url = f"http://{self.metrics_address}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
        families = list(text_string_to_metric_families(text))
        assert len({family.name for family in families}) == len(families), "each family stands there once"
        return [(each.labels, each.value) for family in families for each in family.samples if each.name == name]


async def until(condition: Callable[[], Any]) -> None:
    """Returns when it holds; fails when it never does."""
    ends_s = time.monotonic() + SECONDS
    while not (await found if isawaitable(found := condition()) else found):
        assert time.monotonic() < ends_s, "it did not come true"
        await asyncio.sleep(0.1)


def command(*flags: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return gateway_process("--workers", "2", "--openpi-port", "0", *flags)


@asynccontextmanager
async def two_workers(*flags: str, port: int = 0) -> AsyncIterator[Together]:
    async with command("--port", str(port), "--metrics-port", "0", *flags) as process:
        yield Together(process, await ready_line(process, SECONDS))


@asynccontextmanager
async def connections(address: str) -> AsyncIterator[list[Any]]:
    """Stubs with a connection each."""
    async with AsyncExitStack() as stack:
        opening = (grpc.aio.insecure_channel(address, options=ONE_EACH) for _ in range(CONNECTIONS))
        yield [VideoGeneratorStub(await stack.enter_async_context(channel)) for channel in opening]


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text()


async def test_both_answer_on_one_port_share_what_redis_holds_and_are_scraped_as_one(start_backend, valkey) -> None:
    backend = await start_backend("a")
    async with two_workers("--video", backend.address, "--redis-url", valkey.url) as gateway:
        async with connections(gateway.address) as stubs:
            request = pb.GenerateRequest(model=common_pb2.ModelRef(name="echo"), actions=[pb.Action(name="x")])
            for stub in stubs:
                await stub.Get(pb.GetRequest(session="s.a"), wait_for_ready=True)
            for stub in stubs:
                assert [chunk async for chunk in stub.Generate(request)]
        assert backend.calls["Generate"] == 1, "what one has had made, the other finds"
        series = await gateway.samples("worldtree_rpc_seconds_count")
        got = {labels["worker"]: value for labels, value in series if labels["method"].endswith("/Get")}
        assert set(got) == {"0", "1"}
        assert sum(got.values()) == CONNECTIONS
        assert await gateway.samples("worldtree_workers") == [({}, 2)]
        assert {labels["worker"] for labels, _ in await gateway.samples("process_cpu_seconds_total")} == {"0", "1"}


async def test_one_that_dies_is_started_again_and_the_other_answers_meanwhile(start_backend, valkey) -> None:
    backend = await start_backend("a")
    async with two_workers("--video", backend.address, "--redis-url", valkey.url) as gateway:
        dead, _ = gateway.workers
        os.kill(dead, signal.SIGKILL)
        await until(lambda: gone(dead))
        async with connections(gateway.address) as stubs:
            for stub in stubs:
                await stub.Get(pb.GetRequest(session="s.a"), wait_for_ready=True)

        async def again() -> bool:
            return await gateway.samples("worldtree_workers") == [({}, 2)]

        await until(again)
        assert await gateway.samples("worldtree_worker_restarts_total") == [({}, 1)]
        assert len(gateway.workers) == 2
        assert dead not in gateway.workers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_both_and_nothing_is_left(start_backend, valkey, number: signal.Signals) -> None:
    backend = await start_backend("a")
    flags = ("--video", backend.address, "--redis-url", valkey.url, "--drain-timeout-s", "30")
    async with two_workers(*flags) as gateway:
        async with connections(gateway.address) as stubs:
            held = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
            steps = [asyncio.ensure_future(stub.Step(held, wait_for_ready=True)) for stub in stubs]
            await until(lambda: backend.calls["Step"] == CONNECTIONS)
            workers = gateway.workers
            gateway.process.send_signal(number)
            await asyncio.sleep(0.5)
            assert not any(gone(pid) for pid in workers), "they wait for the calls under way"
            backend.hold.set()
            assert {step.chunk_index for step in await asyncio.gather(*steps)} == {1}
        assert await asyncio.wait_for(gateway.process.wait(), SECONDS) == 0
        assert all(gone(pid) for pid in workers)


async def test_workers_end_when_who_started_them_is_gone(start_backend, valkey) -> None:
    backend = await start_backend("a")
    async with two_workers("--video", backend.address, "--redis-url", valkey.url) as gateway:
        workers = gateway.workers
        gateway.process.kill()
        for pid in workers:
            await until(partial(gone, pid))


async def test_they_need_redis(start_backend) -> None:
    backend = await start_backend("a")
    async with command("--port", "0", "--video", backend.address) as process:
        _, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 2
    assert "workers: 2 need redis_url" in errors.decode()
    assert len(errors.decode().splitlines()) == 1


async def test_a_port_that_is_taken_ends_the_start_also_where_the_other_would_share_it(start_backend, valkey) -> None:
    backend = await start_backend("a")
    flags = ("--video", backend.address, "--redis-url", valkey.url)
    async with two_workers(*flags) as gateway:
        port = gateway.address.rpartition(":")[2]
        async with command("--port", port, "--metrics-port", "0", *flags) as process:
            _, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in errors.decode()


async def test_a_worker_that_can_not_begin_ends_the_start(start_backend, valkey) -> None:
    backend = await start_backend("a")
    flags = ("--video", backend.address, "--redis-url", valkey.url, "--keys-file", "nowhere")
    async with command("--port", "0", "--metrics-port", "0", *flags) as process:
        _, errors = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 1
    assert "before it was ready" in errors.decode()


async def test_one_takes_no_connection_before_it_knows_a_backend(start_backend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"video": [f"127.0.0.1:{port}"], "port": 0, "metrics_port": 0, "drain_timeout_s": 0}
    async with AsyncExitStack() as stack:
        opening = start_gateway(GatewaySettings(**own, probe_timeout_s=30.0, probe_interval_s=0.1), worker=1)
        entering = asyncio.ensure_future(stack.enter_async_context(opening))
        await asyncio.sleep(0.3)
        assert not entering.done()
        await start_backend("a", port=port)
        gateway = await asyncio.wait_for(entering, 30)
        assert all(router.ready for router in gateway.routers)


async def test_one_that_finds_no_backend_says_so_itself_after_a_while() -> None:
    own = {"video": ["127.0.0.1:1"], "port": 0, "metrics_port": 0, "drain_timeout_s": 0, "probe_timeout_s": 0.2}
    async with asyncio.timeout(30), start_gateway(GatewaySettings(**own), worker=1) as gateway:
        assert not any(router.ready for router in gateway.routers)
