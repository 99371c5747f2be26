"""Floods from 200 connections, and a well-behaved client of the same gateway meanwhile.

Slow-loris: connections that never say who they are, and calls whose messages come a byte at a time. Rapid reset: calls
that are begun and reset at once. The client makes small calls one after the other; its p99 under each flood, over its
p99 beside nothing, in turns, is to stay within 2. All share this machine, so the flooders' own work counts as well.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from gateway import SMALL, Caller
from report import Bar, Row, median, median_ratio, publish
from serving import in_turns, script, service_process

FLOODS = ("loris", "resets")


async def p99_ms(call: Any, metadata: Any, seconds: float) -> float:
    found, ends_s = [], time.perf_counter() + seconds
    while time.perf_counter() < ends_s:
        began_s = time.perf_counter()
        await call(SMALL, metadata=metadata, timeout=60)
        found.append(1e3 * (time.perf_counter() - began_s))
    return float(np.percentile(found, 99))


async def measure(
    rounds: int, seconds: float, connections: int, rate: float, flags: list[str]
) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        backend = await enter(script("echo.py", "video"))
        server = await enter(service_process("worldtree_gateway", "--video", backend, *flags))
        gateway, caller = server["grpc"], Caller(server)
        await enter(caller.channel)
        call = caller.unary("KeepAlive")
        await call(SMALL, wait_for_ready=True)
        await p99_ms(call, (), seconds / 2)  # warms up

        async def beside(kind: str) -> float:
            async with script("flooders.py", kind, gateway, str(connections), str(rate)):
                await asyncio.sleep(1.0)  # all have come
                return await p99_ms(call, (), seconds)

        quiet = {"quiet": partial(p99_ms, call, (), seconds)}
        return await in_turns({**quiet, **{kind: partial(beside, kind) for kind in FLOODS}}, rounds)


def main(
    rounds: Annotated[int, typer.Option(help="Turns of quiet and of each flood.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of each turn.")] = 5.0,
    connections: Annotated[int, typer.Option(help="That flood.")] = 200,
    rate: Annotated[float, typer.Option(help="Resets a second of each of them.")] = 5.0,
    flag: Annotated[list[str] | None, typer.Option(help="Of the gateway, such as --flag=--max-peer-calls=50.")] = None,
    quick: Annotated[bool, typer.Option(help="One short turn of each.")] = False,
    json: Annotated[Path | None, typer.Option(help="Where to write the figures.")] = None,
) -> None:
    """A client's p99 while strangers flood the gateway, over its p99 beside nothing."""
    if quick:
        rounds, seconds = 1, 2.0
    found = asyncio.run(measure(rounds, seconds, connections, rate, list(flag or ())))
    ratios = {kind: median_ratio(found[kind], found["quiet"]) for kind in FLOODS}
    rows: list[Row] = [
        {"beside": kind, "p99 ms": round(median(times), 2), "over quiet": round(ratios.get(kind, 1.0), 2)}
        for kind, times in found.items()
    ]
    publish(
        f"A client beside {connections} connections that flood",
        rows,
        [Bar(f"p99 beside {kind} / quiet", ratio, 2.0, "lower") for kind, ratio in ratios.items()],
        settings={"rounds": rounds, "seconds": seconds, "connections": connections, "rate": rate},
        keys={f"{kind}_p99_ratio": ratio for kind, ratio in ratios.items()},
        json_file=json,
    )


if __name__ == "__main__":
    typer.run(main)
