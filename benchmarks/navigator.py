"""Many robots on one navigator: decisions a second, and how long each waits beside somebody's long plan.

- Throughput: 16 robots ask for plans of the joint policy as fast as they are answered, in turns of a navigator and of a
  server of the usual kind (`one_at_a_time.py`), same model, same threads, each a process of its own.
  Beside it, robots that must hold a control rate: the navigator leaves out rounds that they cannot wait for; and the
  ceiling: what the policy alone gains by a batch, on one thread of this device, without a server.
- Latency: 8 robots are steered at an even pace, while one client lets "mpc" imagine all it may, and while nobody does,
  in turns.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import grpc.aio
import numpy as np
import typer
import worldtree.aio
from report import Bar, Row, median, publish
from serving import in_turns, script, service_process
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.simulator import Simulator
from worldtree_navigator.navigate_convert import to_words
from worldtree_navigator.policy import Draft, Policy
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.policy_package import PolicyPackage

ROBOTS, PACED, PACE_HZ, HURRY_HZ = 16, 8, 3.0, 20.0
ENV_ID, FIRST_SEED = "BabyAI-GoToLocal-v0", 1_060_000_000
LONG_CHUNKS = 400  # of somebody's long plan


def requests(count: int) -> list[pb.PlanRequest]:
    """What `count` robots see."""
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        simulator = Simulator(ENV_ID, seed)
        pixels = simulator.frame()[None]
        tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=pixels.shape, data=pixels.tobytes())
        past = pb.Past(frames=common.Frames(tensor=tensor))
        found.append(pb.PlanRequest(past=past, question=reward_pb.Question(goal=simulator.goal), planner="joint"))
    return found


def ceiling(rounds: int) -> float:
    """Decisions a second of CPU in batches of ROBOTS, over those one by one: no server can gain more by batching."""
    repository = ModelRepository(Path("models"), PolicyPackage)
    folder = next(each for each in repository.folders() if each.parent.name == "joint")
    policy = Policy(repository.read(folder))
    simulator = Simulator(ENV_ID, FIRST_SEED)
    view, _ = policy.read(simulator.frame().tobytes())
    memory = policy.memory()
    memory.see(view)
    words = policy.words(to_words("goal", simulator.goal, policy.package.goal))

    def took_s(size: int) -> float:
        began_s = time.thread_time()
        for _ in range(ROBOTS // size):
            drafts = [Draft(policy, view, memory, words, planner=policy.package.planners[0]) for _ in range(size)]
            while not all(draft.is_done for draft in drafts):
                policy.step(drafts)
        return time.thread_time() - began_s

    return median([took_s(1) / took_s(ROBOTS) for _ in range(rounds)])


async def rate(stub: Any, asked: list[pb.PlanRequest], seconds: float) -> float:
    """Decisions a second, each robot asking again as soon as it is answered."""
    ends_s = time.perf_counter() + seconds
    count = 0

    async def robot(request: pb.PlanRequest) -> None:
        nonlocal count
        while time.perf_counter() < ends_s:
            await stub.Plan(request)
            count += 1

    began_s = time.perf_counter()
    await asyncio.gather(*map(robot, asked))
    return count / (time.perf_counter() - began_s)


async def hurried_rate(client: worldtree.aio.Client, seconds: float, efforts: list[float]) -> float:
    """Decisions a second of robots that execute HURRY_HZ actions a second: what cannot be afforded in time is left out.

    `efforts`: what share of the rounds each decision had.
    """
    ends_s = time.perf_counter() + seconds
    count = 0

    async def robot(index: int) -> None:
        nonlocal count
        simulator = Simulator(ENV_ID, FIRST_SEED + index)
        async with client.navigator.navigate(simulator.goal, chunk_length=1, rate_hz=HURRY_HZ) as navigation:
            frame, told_s = simulator.frame(), navigation.clock_s
            planned: list[Any] = []
            while time.perf_counter() < ends_s:
                # What it has done in the meantime, of what it was told; the picture stays as it is.
                done = planned[: int((navigation.clock_s - told_s) * HURRY_HZ)]
                chunk = await navigation.observe(frame, done)
                planned, told_s = list(chunk.actions), navigation.clock_s
                efforts.append(chunk.effort)
                count += 1

    began_s = time.perf_counter()
    await asyncio.gather(*(robot(index) for index in range(ROBOTS)))
    return count / (time.perf_counter() - began_s)


async def latencies(client: worldtree.aio.Client, seconds: float) -> list[float]:
    """Of the decisions of robots that look at an even pace."""
    found: list[float] = []
    ends_s = time.perf_counter() + seconds

    async def robot(index: int) -> None:
        simulator = Simulator(ENV_ID, FIRST_SEED + index)
        async with client.navigator.navigate(simulator.goal, chunk_length=1) as navigation:
            await asyncio.sleep(index / PACED / PACE_HZ)
            frame = simulator.frame()
            while time.perf_counter() < ends_s:
                began_s = time.perf_counter()
                await navigation.observe(frame)
                found.append(time.perf_counter() - began_s)
                await asyncio.sleep(max(0.0, 1 / PACE_HZ - found[-1]))

    await asyncio.gather(*(robot(index) for index in range(PACED)))
    return found


@asynccontextmanager
async def long_plans(client: worldtree.aio.Client) -> AsyncIterator[None]:
    """Somebody has long plans made, one after the other, for as long as the block lasts."""

    async def plan() -> None:
        async with await client.world("minigrid", start="four-rooms") as world:
            for seed in range(1_000_000):
                await client.navigator.plan(
                    world, goal="get to the green goal", chunks=LONG_CHUNKS, candidates=64, seed=seed, frames=False
                )

    planning = asyncio.create_task(plan())
    await asyncio.sleep(1.0)
    try:
        yield
    finally:
        planning.cancel()
        await asyncio.gather(planning, return_exceptions=True)


async def measure(
    rounds: int, seconds: float, efforts: list[float]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        video = await enter(service_process("worldtree_video", "--pool-mib", "256"))
        reward = await enter(service_process("worldtree_reward"))
        behind = ("--video", video["grpc"], "--reward", reward["grpc"])
        navigator = await enter(service_process("worldtree_navigator", *behind))
        other = await enter(script("one_at_a_time.py"))
        channels = [await enter(grpc.aio.insecure_channel(each)) for each in (navigator["grpc"], other)]
        together, alone = (NavigatorStub(channel) for channel in channels)
        asked = requests(ROBOTS)
        direct = await enter(worldtree.aio.Client(navigator["grpc"]))
        rates = await in_turns(
            {
                "in a hurry": lambda: hurried_rate(direct, seconds, efforts),
                "navigator": lambda: rate(together, asked, seconds),
                "one at a time": lambda: rate(alone, asked, seconds),
            },
            rounds,
        )
        gateway = await enter(
            service_process("worldtree_gateway", *behind, "--navigator", navigator["grpc"], "--openpi-port", "0")
        )
        client = await enter(worldtree.aio.Client(gateway["grpc"]))
        await client.wait_ready()

        async def p99(*, beside: bool) -> float:
            if not beside:
                return float(np.percentile(await latencies(client, seconds), 99))
            async with long_plans(client):
                return float(np.percentile(await latencies(client, seconds), 99))

        waits = await in_turns({"alone": lambda: p99(beside=False), "beside": lambda: p99(beside=True)}, rounds)
    return rates, waits


def main(
    quick: Annotated[bool, typer.Option(help="A look, in about a minute.")] = False,
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    seconds: Annotated[float, typer.Option(help="Of one turn.")] = 8.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Many robots on one navigator, against one call at a time, and beside somebody's long plan."""
    rounds, seconds = (2, 4.0) if quick else (rounds, seconds)
    efforts: list[float] = []
    rates, waits = asyncio.run(measure(rounds, seconds, efforts))
    most = ceiling(rounds)
    gain = median([a / b for a, b in zip(rates["navigator"], rates["one at a time"], strict=True)])
    slower = median([b / a for a, b in zip(waits["alone"], waits["beside"], strict=True)])
    rows: list[Row] = [
        {"figure": f"decisions a second, {ROBOTS} robots, navigator", "value": median(rates["navigator"])},
        {"figure": f"decisions a second, {ROBOTS} robots, one at a time", "value": median(rates["one at a time"])},
        {"figure": f"what a batch of {ROBOTS} gains at most here: the policy alone, one thread", "value": most},
        {
            "figure": f"decisions a second, {ROBOTS} robots at {HURRY_HZ:g} actions a second, navigator",
            "value": median(rates["in a hurry"]),
        },
        {"figure": "share of the rounds that these could be afforded", "value": float(np.mean(efforts))},
        {"figure": f"p99 of {PACED} robots at {PACE_HZ:g} Hz, ms", "value": 1e3 * median(waits["alone"])},
        {"figure": "the same beside somebody's long plans, ms", "value": 1e3 * median(waits["beside"])},
    ]
    bars = [
        Bar("decisions a second / of one call at a time", gain, 4.0),
        Bar("p99 beside a long plan / without", slower, 1.5, "lower"),
    ]
    settings = {"rounds": rounds, "seconds": seconds, "robots": ROBOTS, "paced": PACED, "pace_hz": PACE_HZ}
    keys = {"throughput": gain, "p99_beside": slower}
    publish("Robots", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
