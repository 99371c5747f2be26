"""What branching costs: a fork, and many futures as a trie against as many sessions stepped one by one.

Bar: the rollout's speedup is within 15% of the ratio of all chunks to distinct prefixes.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import Annotated

import typer
from report import Bar, median, publish
from rich.progress import Progress
from serving import engine_here
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind
from worldtree_video.rollout import build_trie, count_nodes
from worldtree_video.sessions import Session
from worldtree_video.worlds import Recipe

SEQUENCES, STEPS, ACTION_COUNT = 32, 6, 3
FORKS = 256
SEED = 7


def random_sequences(seed: int) -> list[list[Action]]:
    """Sequences that share prefixes as chance has it."""
    chance = random.Random(seed)
    return [[Action(chance.randrange(ACTION_COUNT)) for _ in range(STEPS)] for _ in range(SEQUENCES)]


async def open_session(served: Served) -> Session:
    """A session with a full window behind it."""
    policy = KvPolicy(PolicyKind.SINK_WINDOW, served.package.kv.window, 1)
    start = next(iter(served.starts.values()))
    recipe = Recipe(start, SEED, served.package.sampler.default_nfe, policy)
    session = await served.worlds.create(recipe, ttl_s=3600)
    await served.worlds.step(session.name, [Action(0)] * served.package.kv.window)
    return session


def fork_cost(served: Served, session: Session) -> tuple[float, int]:
    """Microseconds of one fork, the median of many, and the KV bytes that all of them together took from the pool."""
    worlds, pool = served.worlds, served.worlds.engine.pool
    held = pool.held_count
    samples = []
    children = []
    for _ in range(FORKS):
        begun = time.perf_counter()
        children += worlds.fork(session.name, seeds=[None], ttl_s=3600)
        samples.append((time.perf_counter() - begun) * 1e6)
    copied = (pool.held_count - held) * served.package.kv.block_bytes
    for child in children:
        worlds.delete(child.name)
    return median(samples), copied


async def rollout_seconds(served: Served, session: Session, sequences: list[list[Action]]) -> tuple[float, float]:
    """Seconds of one Rollout, and of as many forked sessions stepped one after another."""
    worlds = served.worlds
    begun = time.perf_counter()
    async with worlds.rollout(
        session.name, [[(action, SEED) for action in sequence] for sequence in sequences]
    ) as made:
        async for _ in made.nodes:
            pass
    together = time.perf_counter() - begun
    begun = time.perf_counter()
    for sequence in sequences:
        child = worlds.fork(session.name, seeds=[None], ttl_s=3600)[0]
        for action in sequence:
            await worlds.step(child.name, [action])
        worlds.delete(child.name)
    return together, time.perf_counter() - begun


async def measure(rounds: int) -> dict[str, list[float]]:
    """Every figure of every round."""
    figures: dict[str, list[float]] = {name: [] for name in ("fork_us", "bytes_copied", "speedup", "ideal", "of_ideal")}
    async with engine_here(VideoSettings(pool_mib=256, max_batch=1)) as served:
        session = await open_session(served)
        with Progress(transient=True) as progress:
            task = progress.add_task("tree", total=rounds)
            for seed in range(rounds):
                fork_us, copied = fork_cost(served, session)
                sequences = random_sequences(seed)
                together, one_by_one = await rollout_seconds(served, session, sequences)
                nodes = count_nodes(build_trie([[(action, SEED) for action in sequence] for sequence in sequences]))
                ideal = SEQUENCES * STEPS / nodes
                speedup = one_by_one / together
                for name, value in zip(figures, (fork_us, copied, speedup, ideal, speedup / ideal), strict=True):
                    figures[name].append(value)
                progress.advance(task)
        served.worlds.engine.check_integrity()
    return figures


def main(
    quick: Annotated[bool, typer.Option(help="A look, in under a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """The cost of a fork, and the speedup of a Rollout over its sequences stepped one by one."""
    rounds = 3 if quick else 9
    figures = asyncio.run(measure(rounds))
    middle = {name: median(values) for name, values in figures.items()}
    keys = {
        "fork_us": middle["fork_us"],
        "bytes_copied": max(figures["bytes_copied"]),
        "rollout_speedup": middle["speedup"],
        "rollout_ideal": middle["ideal"],
    }
    rows = [
        {"figure": "fork, µs", "median": middle["fork_us"]},
        {"figure": f"KV bytes copied by {FORKS} forks", "median": max(figures["bytes_copied"])},
        {"figure": f"Rollout {SEQUENCES} x {STEPS} against one by one, times faster", "median": middle["speedup"]},
        {"figure": "all chunks / distinct prefixes", "median": middle["ideal"]},
    ]
    bars = [
        Bar("fork bytes copied", keys["bytes_copied"], 0, "lower"),
        Bar("rollout speedup / ideal", middle["of_ideal"], 0.85),
        Bar("rollout speedup / ideal (not above: nothing else may be sped up)", middle["of_ideal"], 1.15, "lower"),
    ]
    settings = {"rounds": rounds, "sequences": SEQUENCES, "steps": STEPS, "actions": ACTION_COUNT, "max_batch": 1}
    publish("Branching", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
