"""Clients that do anything, at random, and are killed at it: nothing is lost, nothing is wrong, memory stays flat.

The server runs in this process, with a pool that is nearly always dry. WORLDTREE_SOAK_S says for how many seconds
(`make soak`: 600; else a look of a few), WORLDTREE_SOAK_SEED repeats the walkers' choices, WORLDTREE_SOAK_JSON names
a file for the figures.
"""

import asyncio
import gc
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from census import Series, object_count, open_files, resident_mib, settled_files, thread_names
from report import Bar, publish
from soaked_fleet import Fleet
from worldtree_runtime.testing import TinyWorld
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.engine import Engine
from worldtree_video.serving import serve_video

SECONDS = float(os.environ.get("WORLDTREE_SOAK_S", "8"))
SEED = int(os.environ.get("WORLDTREE_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
JSON_FILE = os.environ.get("WORLDTREE_SOAK_JSON")
LONG = SECONDS >= 300  # long enough for its memory to say something
WALKERS = 5
CHECK_OPERATIONS = 1000
PATIENCE_S = 60.0  # beyond SECONDS, for a pool that was not dry yet
SAMPLE_S, KILL_S, QUIET_S, TELL_S = 2.0, 5.0, 30.0, 10.0
# Measured: 3.3 and 3.9 MiB a minute in two earlier long runs, at 8,500 and 9,400 operations a minute; 0.58 in the
# latest, of ten minutes, at 12,400. What made the difference was not looked for, and one run is no proof; the bar is
# set below the earlier two. What is known of their slope: Python's own objects hardly grew (the other bar), and of what
# malloc had not got back after 100 s (2.2 MiB, the start included) nearly all was gRPC core's. A bare grpc.aio server
# keeps 0.3 to 0.5 KiB for each stream that it aborts while its client still sends.
RSS_BAR_MIB_PER_MIN = 3.0
OBJECTS_BAR_PER_MIN = 0.01  # of their mean
KINDS = ("sliding", "sink_window", "full", "retrieve")
STORAGES = ("fp32", "fp16", "int8")
# 512 tokens make a block of 32 KiB: 32 of them in the smallest pool, for some sixty worlds of up to four in view.
WORLD = TinyWorld(tokens=512, pose=True)
MOST_WORLDS = 12  # of one walker


def settings_for(models: Path, redis_url: str) -> VideoSettings:
    """A server that is short of everything."""
    return VideoSettings(
        models=str(models),
        redis_url=redis_url,
        port=0,
        metrics_port=0,
        pool_mib=1,
        fp16_pool_mib=1,
        int8_pool_mib=1,
        host_mib=1,
        headroom_blocks=4,
        reserve_chunks=8,
        max_batch=4,
        max_bank_chunks=6,
        checkpoint_chunks=4,
        session_ttl_s=20,  # also how long answers to repeated requests are kept: a steady state is reached soon
        snapshot_ttl_s=30,
        tier_ttl_s=60,
        journal_grace_s=5,
        play_idle_s=20,
        drain_timeout_s=5,
    )


@asynccontextmanager
async def reference(models: Path) -> AsyncIterator[str]:
    """A server with room for all, which shares nothing and keeps nothing; its address."""
    flags = ("--models", str(models), "--port", "0", "--metrics-port", "0", "--log-level", "error")
    sizes = ("--pool-mib", "64", "--fp16-pool-mib", "64", "--int8-pool-mib", "64", "--max-batch", "4")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worldtree_video", *flags, *sizes, "--no-prefix-cache"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        yield next(word.removeprefix("grpc=") for word in line.split() if word.startswith("grpc="))
    finally:
        process.terminate()
        await process.wait()


def check_quiet(engine: Engine) -> None:
    """With no call under way, nothing is there but what the sessions hold."""
    with engine.lock:
        sessions = list(engine.sessions)
        tables = {session.branch.table for session in sessions}
        open_tables = {table for pool in engine.pools.values() for table in pool._tables}
        assert not open_tables - tables, f"{len(open_tables - tables)} tables belong to no session"
        assert engine.scheduler.run_count == 0, f"{engine.scheduler.run_count} runs are left"
        assert engine.sessions.busy_count == 0, f"{engine.sessions.busy_count} sessions are busy"
        for pool in engine.pools.values():
            assert pool.in_flight_count == 0, f"{pool.in_flight_count} {pool.storage.value} blocks are in flight"
    engine.check_integrity()


async def becomes_quiet(engine: Engine, timeout_s: float = 10.0) -> None:
    """Calls of clients that were killed end when their connections do."""
    ends_s = time.monotonic() + timeout_s
    while True:
        try:
            return check_quiet(engine)
        except AssertionError:
            if time.monotonic() > ends_s:
                raise
            await asyncio.sleep(0.05)


async def nobody_left(served: Served, *, longest_s: float) -> None:
    """Leases up to `longest_s` end by themselves; sessions with longer ones are deleted."""
    sessions = served.worlds.engine.sessions
    for session in list(sessions):
        if session.ttl_s > longest_s:
            served.worlds.delete(session.name)
    ends_s = time.monotonic() + max((session.ttl_s for session in sessions), default=0.0) + 5.0
    while len(sessions):
        assert time.monotonic() < ends_s, f"{len(sessions)} sessions outlived their leases"
        await asyncio.sleep(0.1)


@pytest.fixture
async def grpc_io() -> AsyncIterator[None]:
    """gRPC's own sockets and thread, there from before anything is counted."""
    grpc.aio.init_grpc_aio()
    yield
    grpc.aio.shutdown_grpc_aio()


@pytest.fixture
def few_logs() -> Iterator[None]:
    """pytest keeps each record that is logged, and with it the frames of its traceback: refusals would pile up."""
    loggers = [logging.getLogger(name) for name in ("worldtree_runtime", "worldtree_video")]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger in loggers:
        logger.setLevel(logging.NOTSET)


@pytest.mark.timeout(SECONDS + PATIENCE_S + 240)
@pytest.mark.usefixtures("few_logs", "grpc_io")
async def test_nothing_is_lost_or_wrong_whatever_clients_do(tmp_path: Path, valkey: Any) -> None:
    WORLD.write(tmp_path / "models")
    settings = settings_for(tmp_path / "models", valkey.url)
    async with reference(tmp_path / "models") as reference_address:
        files = await settled_files()
        threads, tasks = thread_names(), len(asyncio.all_tasks())
        async with serve_video(settings) as (server, catalog):
            served = next(iter(catalog))
            flags = ["--address", server.address, "--reference", reference_address, "--model", WORLD.name]
            flags += ["--most-worlds", str(MOST_WORLDS), "--storages", *STORAGES, "--kinds", *KINDS]
            print(f"soak of {SECONDS:g} s, seed {SEED}", flush=True)
            async with Fleet(flags, seed=SEED) as fleet:
                await fleet.start(WALKERS)
                memory, objects, checked = await _soak(fleet, served)
                await fleet.stop()
            done, refused = fleet.done, fleet.refused
            await becomes_quiet(served.worlds.engine)
            await nobody_left(served, longest_s=60.0 if LONG else 3.0)
            await becomes_quiet(served.worlds.engine)
            for pool in served.worlds.engine.pools.values():
                assert pool.held_count == 0, f"{pool.held_count} {pool.storage.value} blocks are held by nobody"
                assert not pool._tables, f"{len(pool._tables)} tables are open"
            served.worlds.residency.tiers.check_integrity()
            moves = _moves(served)
            quiet_mib = resident_mib()
        gc.collect()
        assert len(asyncio.all_tasks()) <= tasks, [task.get_name() for task in asyncio.all_tasks()]
        # the event loop keeps the threads of asyncio.to_thread
        new_threads = [name for name in thread_names() if name not in threads and not name.startswith("asyncio_")]
        assert new_threads == [], f"threads are left: {new_threads}"
        assert open_files() == files, f"files are left: {Counter(open_files()) - Counter(files)}"
    figures = {
        "operations": float(sum(done.values())),
        "refused": float(sum(refused.values())),
        "checked_chunks": float(fleet.checked_chunks),
        "integrity_checks": float(checked),
        "killed_clients": float(fleet.killed_count),
        **{name: float(count) for name, count in moves.items()},
        "rss_slope_mib_per_min": memory.slope_per_min(),
        "rss_first_mib": memory.samples[0][1],
        "rss_warm_mib": memory.warm[0][1],
        "rss_last_mib": memory.samples[-1][1],
        "rss_quiet_mib": quiet_mib,
        "objects_warm_mean": objects.warm_mean,
        "objects_growth_per_min": objects.slope_per_min() / objects.warm_mean,
    }
    bars = [
        Bar("RSS slope, MiB a minute", figures["rss_slope_mib_per_min"], RSS_BAR_MIB_PER_MIN, "lower"),
        Bar("growth of Python's objects a minute", figures["objects_growth_per_min"], OBJECTS_BAR_PER_MIN, "lower"),
    ]
    rows = [{"operation or refusal": name, "count": count} for name, count in (done + refused).most_common()]
    about = {"seconds": SECONDS, "seed": SEED, "walkers": WALKERS, "most_worlds": MOST_WORLDS}
    publish(
        "Soak",
        rows,
        bars if LONG else [],
        settings=about,
        keys=figures,
        json_file=Path(JSON_FILE) if JSON_FILE else None,
    )
    print({name: round(value, 2) for name, value in figures.items()}, flush=True)
    assert fleet.checked_chunks, "nothing was compared with the reference"
    assert all(moves.values()), f"the pool was never dry: {moves}"
    if LONG:
        assert all(bar.holds for bar in bars), [bar for bar in bars if not bar.holds]


def _moves(served: Served) -> dict[str, int]:
    """What is done about a pool that is dry."""
    residency = served.worlds.residency
    return {
        "spilled": residency.spilled_count,
        "loaded": residency.loaded_count,
        "recomputed": residency.recomputed_count,
    }


def _was_dry(served: Served) -> bool:
    return all(_moves(served).values())


async def _soak(fleet: Fleet, served: Served) -> tuple[Series, Series, int]:
    """For SECONDS, and on a slow machine until the pool was dry; resident MiB and Python's objects meanwhile, and how
    often every block was counted.
    """
    engine, memory, objects = served.worlds.engine, Series(), Series()
    begun_s = time.monotonic()
    sampled_s = killed_s = quiet_s = told_s = begun_s
    checked_operations, checked = 0, 0
    memory.add(resident_mib())
    while (now_s := time.monotonic()) < begun_s + SECONDS + (0 if _was_dry(served) else PATIENCE_S):
        await asyncio.sleep(0.05)
        fleet.check()
        assert engine._thread.is_alive(), "the engine's thread has died"
        assert not engine.broken, "the engine has ended by a bug"
        operations = sum(fleet.done.values())
        if operations >= checked_operations + CHECK_OPERATIONS:
            checked_operations = operations
            engine.check_integrity()
            checked += 1
        if now_s >= sampled_s + SAMPLE_S:
            sampled_s = now_s
            memory.add(resident_mib())
        if now_s >= killed_s + KILL_S:
            killed_s = now_s
            await fleet.replace_one()
        if now_s >= quiet_s + min(QUIET_S, SECONDS / 3):
            quiet_s = now_s
            await fleet.pause()
            await becomes_quiet(engine)
            objects.add(object_count())
            checked += 1
            await fleet.go_on()
        if now_s >= told_s + TELL_S:
            told_s = now_s
            free = ", ".join(f"{pool.storage.value} {pool.free_count}" for pool in engine.pools.values())
            print(
                f"{now_s - begun_s:4.0f} s  {operations} operations, {sum(fleet.refused.values())} refused, "
                f"{fleet.checked_chunks} chunks compared, {checked} checks, {fleet.killed_count} killed; "
                f"{len(engine.sessions)} sessions, {served.worlds.residency.spilled_count} spills, "
                f"blocks free: {free}; {memory.samples[-1][1]:.1f} MiB",
                flush=True,
            )
    return memory, objects, checked
