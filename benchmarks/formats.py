"""What a smaller block format buys and costs: sessions that fit a GiB, the time of a tick, what the model still knows.

- Sessions with a full window are opened on the shipped world until a pool has no room for another without spilling one.
  The pools are small and of one size in bytes; per GiB is what fitted, times 1 GiB by the pool's size. Headroom,
  reserves and sharing are off: they are blocks too, and count alike in each format.
- A tick is one run of the denoiser over 8 members with a full window, in rounds that interleave the formats, in seconds
  of the one thread that runs it.
- Accuracy is that of `training.minigrid.served`: of the cells that follow from 8 real frames and the actions, the share
  with the right tile, on held-out episodes; a sliding window.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from report import Bar, Row, median, median_ratio, publish
from rich.progress import Progress
from serving import engine_here
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind, Storage
from worldtree_video.recipe import Recipe

ROOT = Path(__file__).parents[1]
POOL_MIB = 32
BATCH = 8


def settings() -> VideoSettings:
    return VideoSettings(
        pool_mib=POOL_MIB,
        fp16_pool_mib=POOL_MIB,
        int8_pool_mib=POOL_MIB,
        host_mib=0,
        headroom_blocks=0,
        reserve_chunks=0,
        prefix_cache=False,
        max_batch=BATCH,
    )


async def count_sessions(served: Served, storage: Storage) -> int:
    """Sessions with a full window that the format's pool holds."""
    worlds, window = served.worlds, served.package.kv.window
    pool = worlds.engine.pools[storage]
    policy = KvPolicy(PolicyKind.SLIDING, window, storage=storage)
    start = max(served.starts.values(), key=lambda origin: len(origin.chunks))
    names: list[str] = []
    while pool.free_count >= window:
        session = await worlds.create(Recipe(start, len(names), 1, policy), ttl_s=3600.0)
        await worlds.step(session.name, [Action(0)] * (window - len(start.chunks)))
        names.append(session.name)
    tables = [worlds.get(name).branch.table for name in names]
    assert all(table.complete and table.held_count == window for table in tables), "a session lost blocks to another"
    for name in names:
        worlds.delete(name)
    return len(names)


async def time_ticks(served: Served, storages: Sequence[Storage], rounds: int) -> dict[Storage, list[float]]:
    """Processor seconds of one run of the denoiser over BATCH members, round by round."""
    engine = served.worlds.engine
    seconds: dict[Storage, list[float]] = {storage: [] for storage in storages}

    def time_one(storage: Storage) -> float:
        # One thread runs a tick, this one. The wall clock of a busy machine tells how busy it was.
        return engine.model.measure(time.thread_time, storage=storage, max_batch=BATCH).seconds[BATCH]

    for _ in range(rounds):
        for storage in storages:
            seconds[storage].append(await asyncio.wrap_future(engine.between_ticks(partial(time_one, storage))))
    return seconds


async def measure_accuracy(storages: Sequence[Storage], episode_count: int) -> dict[Storage, dict[int, float]]:
    """Determined-tile accuracy at depths 1 and 8, by format."""
    sys.path.insert(0, str(ROOT))  # the recipes are no installed package
    from training.minigrid import served as recipe
    from training.minigrid.data import record_many

    length = recipe.START_COUNT + max(recipe.DEPTHS)
    episodes = record_many("test", episode_count, length=length, check_rate=0.0, lively=True)
    found = {}
    async with recipe.serve(ROOT / "models", "minigrid") as served:
        for storage in storages:
            policy = recipe.policy_of(PolicyKind.SLIDING, storage, served.package.kv.window)
            nfe = served.package.sampler.default_nfe
            found[storage] = await recipe.measure_depths(served, policy, episodes, nfe=nfe)
    return found


async def measure(rounds: int, episode_count: int) -> tuple[list[Row], dict[str, float]]:
    """A row for each format, and the figures that have bars."""
    storages = list(Storage)
    with Progress(transient=True) as progress:
        task = progress.add_task("formats", total=len(storages) + 2)
        async with engine_here(settings()) as served:
            block_bytes = {storage: served.worlds.model.block_bytes(storage) for storage in storages}
            fitted = {}
            for storage in storages:
                fitted[storage] = await count_sessions(served, storage)
                progress.advance(task)
            ticks = await time_ticks(served, storages, rounds)
            progress.advance(task)
        accuracy = await measure_accuracy(storages, episode_count)
        progress.advance(task)
    full = Storage.FP32
    rows: list[Row] = [
        {
            "format": storage.value,
            "block_bytes": block_bytes[storage],
            "sessions_per_gib": fitted[storage] * 1024 / POOL_MIB,
            "of_fp32": fitted[storage] / fitted[full],
            "tick_ms": 1000 * median(ticks[storage]),
            "tick_of_fp32": median_ratio(ticks[storage], ticks[full]),
            "depth_1": accuracy[storage][1],
            "depth_8": accuracy[storage][8],
        }
        for storage in storages
    ]
    keys = {
        "fp16_sessions": fitted[Storage.FP16] / fitted[full],
        "int8_sessions": fitted[Storage.INT8] / fitted[full],
        "int8_loss_points": 100 * (accuracy[full][8] - accuracy[Storage.INT8][8]),
        "fp16_tick": median_ratio(ticks[Storage.FP16], ticks[full]),
        "int8_tick": median_ratio(ticks[Storage.INT8], ticks[full]),
    }
    return rows, keys


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
    quick: Annotated[bool, typer.Option(help="Fewer episodes and rounds: under a minute.")] = False,
) -> None:
    """Measures what block formats buy and cost."""
    rounds, episode_count = (3, 24) if quick else (9, 192)
    rows, keys = asyncio.run(measure(rounds, episode_count))
    publish(
        "Block formats",
        rows,
        [
            Bar("sessions per GiB, fp16 of fp32", keys["fp16_sessions"], 2.0),
            Bar("sessions per GiB, int8 of fp32", keys["int8_sessions"], 3.6),
            Bar("determined accuracy lost at depth 8 by int8, points", keys["int8_loss_points"], 0.5, "lower"),
        ],
        settings={"pool_mib": POOL_MIB, "batch": BATCH, "rounds": rounds, "episodes": episode_count},
        keys=keys,
        json_file=json_file,
    )


if __name__ == "__main__":
    typer.run(main)
