"""How much of the engine's speed reaches a client: chunks a second alone, in a batch, over gRPC, through the gateway.

Every way steps sessions one action at a time, with the same model, threads and batch limit, in interleaved rounds.
Bars: gateway_8 >= 0.9 x engine_8, engine_8 >= engine_1 (medians of the ratios round by round).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from report import Bar, median, median_ratio, publish
from rich.progress import Progress
from serving import engine_here, service, shared_flags, stub
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind
from worldtree_video.recipe import Recipe

if TYPE_CHECKING:  # a name of the stubs' types only
    from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorAsyncStub

SESSIONS = 8
ACTIONS = (2, 0, 2, 1, 2, 0, 1, 2)
Step = Callable[[int], Awaitable[None]]


async def chunks_per_s(steps: list[Step], chunk_count: int) -> float:
    """Steps every session `chunk_count` times, each as fast as its answers come."""

    async def drive(step: Step) -> None:
        for index in range(chunk_count):
            await step(ACTIONS[index % len(ACTIONS)])

    begun = time.perf_counter()
    await asyncio.gather(*(drive(step) for step in steps))
    return len(steps) * chunk_count / (time.perf_counter() - begun)


async def engine_sessions(served: Served, count: int) -> list[Step]:
    """Sessions of the engine in this process."""
    worlds, start = served.worlds, next(iter(served.starts.values()))
    policy = KvPolicy(PolicyKind.SINK_WINDOW, served.package.kv.window, 1)

    async def open_one(seed: int) -> Step:
        recipe = Recipe(start, seed, served.package.sampler.default_nfe, policy)
        session = await worlds.create(recipe, ttl_s=3600)

        async def step(action: int) -> None:
            await worlds.step(session.name, [Action(action)])

        return step

    return [await open_one(seed) for seed in range(count)]


async def remote_sessions(calls: "VideoGeneratorAsyncStub", served: Served, count: int) -> list[Step]:
    """Sessions of a video service, reached directly or through the gateway."""

    async def open_one(seed: int) -> Step:
        origin = pb.Origin(start=next(iter(served.starts)))
        answer = await calls.CreateSession(pb.CreateSessionRequest(model=served.ref, origin=origin, seed=seed))
        name = answer.session.session

        async def step(action: int) -> None:
            await calls.Step(pb.StepRequest(session=name, actions=[pb.Action(id=action)]))

        return step

    return [await open_one(seed) for seed in range(count)]


async def measure(*, rounds: int, chunk_count: int) -> tuple[dict[str, list[float]], int]:
    """Chunks a second of each way in each round, and the batch limit used."""
    # All ways make the same chunks: from the prefix cache, the second one at a server would have them for nothing.
    settings = VideoSettings(pool_mib=256, prefix_cache=False)
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(engine_here(settings))
        max_batch = served.worlds.engine.scheduler.max_batch
        video = await stack.enter_async_context(service("worldtree_video", *shared_flags(settings, max_batch)))
        gateway = await stack.enter_async_context(service("worldtree_gateway", "--video", video))
        direct = await stack.enter_async_context(stub(video))
        proxied = await stack.enter_async_context(stub(gateway))
        ways = {
            "engine_1": await engine_sessions(served, 1),
            "engine_8": await engine_sessions(served, SESSIONS),
            "grpc_8": await remote_sessions(direct, served, SESSIONS),
            "gateway_8": await remote_sessions(proxied, served, SESSIONS),
        }
        for steps in ways.values():
            await chunks_per_s(steps, 4)
        results: dict[str, list[float]] = {way: [] for way in ways}
        with Progress(transient=True) as progress:
            task = progress.add_task("engine", total=rounds * len(ways))
            for _ in range(rounds):
                for way, steps in ways.items():
                    # Alone, a session makes twice its share: a quarter of what eight make together, in about the time.
                    results[way].append(await chunks_per_s(steps, chunk_count * (2 if len(steps) == 1 else 1)))
                    progress.advance(task)
        return results, max_batch


def main(
    quick: Annotated[bool, typer.Option(help="A look, in under a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Chunks a second: in process alone, with 8 sessions, over gRPC, through the gateway."""
    rounds, chunk_count = (5, 16) if quick else (11, 40)
    results, max_batch = asyncio.run(measure(rounds=rounds, chunk_count=chunk_count))
    keys = {way: median(values) for way, values in results.items()}
    rows = [
        {"way": way, "chunks/s": keys[way], "of engine_8": median_ratio(values, results["engine_8"])}
        for way, values in results.items()
    ]
    bars = [
        Bar("gateway_8 / engine_8", median_ratio(results["gateway_8"], results["engine_8"]), 0.9),
        Bar("engine_8 / engine_1", median_ratio(results["engine_8"], results["engine_1"]), 1.0),
    ]
    settings = {"rounds": rounds, "chunks": chunk_count, "sessions": SESSIONS, "max_batch": max_batch, "threads": 1}
    publish("Chunks a second", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
