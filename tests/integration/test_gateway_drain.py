"""A gateway stops under plays, and they go on at the next: no chunk is lost, none comes twice, on real sockets."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worldtree
import worldtree.aio
from worldtree_runtime.testing import TinyWorld

CHUNK_COUNT = 24
FPS = 6.0
ACTIONS = [index % 3 for index in range(CHUNK_COUNT)]


@asynccontextmanager
async def serving(module: str, log: Path, **flags: Any) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A service's address, and its process."""
    given = {"port": 0, "metrics_port": 0, **flags}
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module),
            *(f"--{flag.replace('_', '-')}={value}" for flag, value in given.items()),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={key: value for key, value in os.environ.items() if not key.startswith("WORLDTREE_")},
        )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert line.startswith("worldtree ready"), f"see {log}"
        yield dict(part.split("=", 1) for part in line.split()[2:])["grpc"], process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Two:
    """Two gateways before one replica, by one address: the first is asked while it is there."""

    def __init__(self, addresses: list[str], first: asyncio.subprocess.Process) -> None:
        self.address = f"ipv4:{','.join(addresses)}"
        self.first = first
        self.come_count = 0
        self.reached = threading.Event()

    def came(self) -> None:
        self.come_count += 1
        if self.come_count >= CHUNK_COUNT:
            self.reached.set()

    async def stop_first(self, number: signal.Signals) -> int:
        """Once chunks of the plays have come."""
        await asyncio.to_thread(self.reached.wait)
        self.first.send_signal(number)
        return await asyncio.wait_for(self.first.wait(), 30)


@pytest.fixture
async def two(tmp_path: Path, valkey: Any) -> AsyncIterator[Two]:
    models, log = tmp_path / "models", tmp_path / "log"
    TinyWorld().write(models)
    async with AsyncExitStack() as stack:

        async def start(module: str, **flags: Any) -> tuple[str, asyncio.subprocess.Process]:
            return await stack.enter_async_context(serving(module, log, redis_url=valkey.url, **flags))

        video, _ = await start("worldtree_video", models=models, replica="video-a", pool_mib=4)
        flags = {"video": f'["{video}"]', "openpi_port": 0, "drain_timeout_s": 20}
        (first, process), (second, _) = [await start("worldtree_gateway", **flags) for _ in range(2)]
        yield Two([first, second], process)


def indexed(chunks: list[worldtree.PlayedChunk]) -> list[int]:
    return [chunk.index for chunk in chunks]


def frames(chunks: list[worldtree.PlayedChunk]) -> Any:
    return np.concatenate([chunk.frames for chunk in chunks])


def played(world: worldtree.World, came: Callable[[], None]) -> list[worldtree.PlayedChunk]:
    """A list of actions, through the synchronous client."""
    chunks = []
    with world.play(ACTIONS, fps=FPS) as play:
        for chunk in play:
            chunks.append(chunk)
            came()
    return chunks


async def played_aio(world: worldtree.aio.World, came: Callable[[], None]) -> list[worldtree.PlayedChunk]:
    chunks = []
    async with world.play(ACTIONS, fps=FPS) as play:
        async for chunk in play:
            chunks.append(chunk)
            came()
    return chunks


async def steered(
    world: worldtree.aio.World, came: Callable[[], None], events: list[Any]
) -> list[worldtree.PlayedChunk]:
    """Each action is asked for when the chunk before it has come, but for a pause in the middle."""
    chunks = []
    live = worldtree.LiveActions()
    live.put(ACTIONS[:2])
    sent_count = 2
    async with world.play(live, on_event=events.append) as play:
        async for chunk in play:
            chunks.append(chunk)
            came()
            await asyncio.sleep(0.1)
            if sent_count == CHUNK_COUNT // 2:
                live.pause()
                live.resume()
            if sent_count < CHUNK_COUNT:
                live.put(ACTIONS[sent_count])
                sent_count += 1
            if sent_count == CHUNK_COUNT:
                live.close()
    return chunks


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_plays_go_on_at_the_other_gateway_when_theirs_stops(two: Two, number: signal.Signals) -> None:
    events: list[Any] = []
    with worldtree.Client(two.address) as client:
        async with worldtree.aio.Client(two.address) as aio:
            await asyncio.to_thread(client.wait_ready, 30)
            sync_world = await asyncio.to_thread(client.world, "tiny", start="dusk", seed=1)
            worlds = [await aio.world("tiny", start="dusk", seed=seed) for seed in (2, 3)]
            code, *plays = await asyncio.gather(
                two.stop_first(number),
                asyncio.to_thread(played, sync_world, two.came),
                played_aio(worlds[0], two.came),
                steered(worlds[1], two.came, events),
            )
            for seed, chunks in enumerate(plays, 1):
                assert indexed(chunks) == list(range(CHUNK_COUNT)), "none is lost, none comes twice"
                twin = await aio.world("tiny", start="dusk", seed=seed)
                np.testing.assert_array_equal(frames(chunks), await twin.step(ACTIONS))
            assert sync_world.chunk_index == CHUNK_COUNT
    names = [type(event).__name__ for event in events]
    assert names == ["Begun", "Paused", "Resumed"], "of the other gateway the program hears nothing"
    assert code == (0 if number is signal.SIGTERM else -signal.SIGKILL)
