"""What branching costs: a fork; many futures as a trie against as many sessions stepped one by one; the same again.

Compared are
- a Rollout and its sequences, each on a fork of its own and stepped action by action: both without the prefix cache,
  which would find in the pool what another sequence had made, and so be a trie too;
- a Rollout and the very same Rollout again, with the prefix cache. Every round has a seed that nothing was made under.

Both in seconds of this process's processor: the wall clock of a busy machine tells how busy it was.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from report import Bar, median, median_ratio, publish
from rich.progress import Progress
from serving import engine_here
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind
from worldtree_video.recipe import Recipe
from worldtree_video.rollout import build_trie, count_nodes
from worldtree_video.sessions import Session

SEQUENCES, STEPS, ACTION_COUNT = 64, 8, 3
FORKS = 256
POOL_MIB = 512  # the second Rollout finds all that the first made


def random_sequences(seed: int) -> list[list[Action]]:
    """Sequences that share prefixes as chance has it."""
    chance = random.Random(seed)
    return [[Action(chance.randrange(ACTION_COUNT)) for _ in range(STEPS)] for _ in range(SEQUENCES)]


async def open_session(served: Served, seed: int) -> Session:
    """A session with a full window behind it."""
    policy = KvPolicy(PolicyKind.SINK_WINDOW, served.package.kv.window, 1)
    start = next(iter(served.starts.values()))
    recipe = Recipe(start, seed, served.package.sampler.default_nfe, policy)
    session = await served.worlds.create(recipe, ttl_s=3600)
    await served.worlds.step(session.name, [Action(0)] * served.package.kv.window)
    return session


def fork_cost(served: Served, session: Session) -> tuple[float, int, float]:
    """Microseconds of one fork, the median of many.

    Of all of them together, while they live: the KV bytes that they took from the pool, and the blocks held as a
    multiple of the one session's.
    """
    worlds, pool = served.worlds, served.worlds.engine.pool
    held = pool.held_count
    samples = []
    children = []
    for _ in range(FORKS):
        begun = time.perf_counter()
        children += worlds.fork(session.name, seeds=[None], ttl_s=3600)
        samples.append((time.perf_counter() - begun) * 1e6)
    copied = (pool.held_count - held) * served.package.kv.block_bytes
    blocks = pool.held_count / session.branch.table.held_count
    for child in children:
        worlds.delete(child.name)
    return median(samples), copied, blocks


async def rollout_seconds(served: Served, session: Session, sequences: Sequence[Sequence[Action]], seed: int) -> float:
    """Seconds of one Rollout."""
    begun = time.process_time()
    edges = [[(action, seed) for action in sequence] for sequence in sequences]
    async with served.worlds.rollout(session.name, edges) as made:
        async for _ in made.nodes:
            pass
    return time.process_time() - begun


async def stepped_seconds(served: Served, session: Session, sequences: Sequence[Sequence[Action]]) -> float:
    """Seconds of as many forked sessions, stepped one after another."""
    worlds = served.worlds
    begun = time.process_time()
    for sequence in sequences:
        child = worlds.fork(session.name, seeds=[None], ttl_s=3600)[0]
        for action in sequence:
            await worlds.step(child.name, [action])
        worlds.delete(child.name)
    return time.process_time() - begun


def node_count(sequences: Sequence[Sequence[Action]]) -> int:
    """Distinct prefixes."""
    return count_nodes(build_trie([[(action, 0) for action in sequence] for sequence in sequences]))


FIGURES = (
    "fork_us",
    "bytes_copied",
    "fork_blocks",
    "together_s",
    "one_by_one_s",
    "ideal",
    "of_ideal",
    "first_s",
    "again_s",
)


async def measure(rounds: int) -> dict[str, list[float]]:
    """Every figure of every round."""
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    async with (
        engine_here(VideoSettings(pool_mib=POOL_MIB, max_batch=1, prefix_cache=False)) as plain,
        engine_here(VideoSettings(pool_mib=POOL_MIB, max_batch=1)) as caching,
    ):
        with Progress(transient=True) as progress:
            task = progress.add_task("tree", total=rounds)
            for seed in range(rounds):
                sequences = random_sequences(seed)
                session = await open_session(plain, seed)
                fork_us, copied, blocks = fork_cost(plain, session)
                # One half before and one after: a neighbour that comes or goes meanwhile weighs on both sides.
                one_by_one_s = await stepped_seconds(plain, session, sequences[::2])
                together_s = await rollout_seconds(plain, session, sequences, seed)
                one_by_one_s += await stepped_seconds(plain, session, sequences[1::2])
                plain.worlds.delete(session.name)
                session = await open_session(caching, seed)
                first_s = await rollout_seconds(caching, session, sequences, seed)
                again_s = await rollout_seconds(caching, session, sequences, seed)
                caching.worlds.delete(session.name)
                ideal = SEQUENCES * STEPS / node_count(sequences)
                of_ideal = one_by_one_s / together_s / ideal
                row = (fork_us, copied, blocks, together_s, one_by_one_s, ideal, of_ideal, first_s, again_s)
                for name, value in zip(FIGURES, row, strict=True):
                    figures[name].append(value)
                progress.advance(task)
        for served in (plain, caching):
            served.worlds.engine.check_integrity()
    return figures


def main(
    quick: Annotated[bool, typer.Option(help="A look, in about a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """The cost of a fork, the speedup of a Rollout over its sequences stepped one by one, and of the same one again."""
    rounds = 1 if quick else 5
    figures = asyncio.run(measure(rounds))
    keys = {
        "fork_us": median(figures["fork_us"]),
        "bytes_copied": max(figures["bytes_copied"]),
        "fork_blocks": max(figures["fork_blocks"]),
        "rollout_speedup": median_ratio(figures["one_by_one_s"], figures["together_s"]),
        "rollout_ideal": median(figures["ideal"]),
        "rollout_of_ideal": median(figures["of_ideal"]),
        "rollout_again_speedup": median_ratio(figures["first_s"], figures["again_s"]),
    }
    of_ideal = keys["rollout_of_ideal"]
    shape = f"Rollout {SEQUENCES} x {STEPS} over {ACTION_COUNT} actions"
    rows = [
        {"figure": "fork, µs", "median": keys["fork_us"]},
        {"figure": f"KV bytes copied by {FORKS} forks", "median": keys["bytes_copied"]},
        {"figure": f"blocks of {FORKS} live forks / blocks of one", "median": keys["fork_blocks"]},
        {"figure": f"{shape} against one by one, times faster", "median": keys["rollout_speedup"]},
        {"figure": "all chunks / distinct prefixes", "median": keys["rollout_ideal"]},
        {"figure": "the same Rollout again, times faster", "median": keys["rollout_again_speedup"]},
        {"figure": "the same Rollout again, ms", "median": median(figures["again_s"]) * 1e3},
    ]
    bars = [
        Bar("fork of a full window, µs", keys["fork_us"], 100.0, "lower"),
        Bar("fork bytes copied", keys["bytes_copied"], 0, "lower"),
        Bar("blocks of live forks / of one", keys["fork_blocks"], 1.1, "lower"),
        Bar("rollout speedup / ideal", of_ideal, 0.9),
        Bar("rollout speedup / ideal (not above: nothing else may be sped up)", of_ideal, 1.15, "lower"),
        Bar("the same Rollout again, times faster", keys["rollout_again_speedup"], 20.0),
    ]
    settings = {
        "rounds": rounds,
        "sequences": SEQUENCES,
        "steps": STEPS,
        "actions": ACTION_COUNT,
        "max_batch": 1,
        "pool_mib": POOL_MIB,
        "one_by_one": "prefix cache off, and off for the Rollout it is compared with",
        "again": "prefix cache on",
    }
    publish("Branching", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
