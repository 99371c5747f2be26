"""A new model version behind a gateway: replicas and gateway as processes, SDK clients that never see an error."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import worldtree
import worldtree.aio
from worldtree_runtime.testing import TinyWorld

ONE, TWO = TinyWorld(), TinyWorld(version="2", window=3)
REPLICA_FLAGS = ["--reload-s", "0.2", "--pool-mib", "8", "--fp16-pool-mib", "1", "--int8-pool-mib", "1"]


@asynccontextmanager
async def process(module: str, *flags: str) -> AsyncIterator[str]:
    """A service; its gRPC address."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("WORLDTREE_")}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--port", "0", "--metrics-port", "0", "--log-level", "warning", *flags),
        stdout=asyncio.subprocess.PIPE,
        env=environ,
    )
    try:
        assert child.stdout
        line = (await asyncio.wait_for(child.stdout.readline(), 60)).decode()
        assert line.startswith("worldtree ready"), f"{module} said {line!r}"
        yield dict(field.split("=", 1) for field in line.split() if "=" in field)["grpc"]
    finally:
        child.terminate()
        await asyncio.wait_for(child.wait(), 30)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[worldtree.aio.Client]:
    """Through a gateway, to two replicas of one repository."""
    ONE.write(tmp_path / "models")
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(
                process("worldtree_video", "--models", str(tmp_path / "models"), "--replica", name, *REPLICA_FLAGS)
            )
            for name in ("video-a", "video-b")
        ]
        gateway = await stack.enter_async_context(process("worldtree_gateway", "--video", ",".join(replicas)))
        client = await stack.enter_async_context(worldtree.aio.Client(gateway, timeout=30))
        await client.wait_ready(30)
        yield client


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    ends = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < ends, f"not so within {timeout_s} s"
        await asyncio.sleep(0.1)


async def test_a_new_version_is_rolled_out_behind_a_gateway_and_no_call_fails(
    client: worldtree.aio.Client, tmp_path: Path
) -> None:
    models, over, met, count = tmp_path / "models", False, set(), 0

    async def clip(model: str, seed: int) -> np.ndarray:
        return (await client.generate(model, start="dawn", seed=seed, actions=["left", "stay"] * 3)).frames

    async def visits() -> None:
        nonlocal count
        while not over:
            async with await client.world("tiny", start="dusk", seed=count) as world:
                met.add((await world.refresh()).version)
                await world.step(["left", "right"])
                async for _ in world.play(["stay"] * 3):
                    pass
                await world.rollout([["left", "left"], ["left", "stay"]])
            count += 1

    async def clips() -> None:
        nonlocal count
        while not over:
            await clip("tiny", count % 3)  # mostly answered from the cache
            count += 1

    old = await client.world("tiny", start="dusk", seed=7)
    twin = await old.fork()
    expected = [await twin.step("left") for _ in range(12)]
    before = await clip("tiny", 1)
    tasks = [asyncio.create_task(kind()) for kind in (visits, visits, clips)]
    try:
        seen = [await old.step("left") for _ in range(4)]
        staged = TWO.write(tmp_path / "staged")
        staged.rename(models / "tiny/2")

        async def newest_is_two() -> bool:
            return [model.version for model in await client.models()] == ["2"]

        async def clip_is_new() -> bool:
            return not np.array_equal(await clip("tiny", 1), before)

        await until(newest_is_two)
        await until(clip_is_new)
        seen += [await old.step("left") for _ in range(4)]
        shutil.rmtree(models / "tiny/1")
        begun = count
        await until(lambda: _moved(lambda: count > begun + 20))
        seen += [await old.step("left") for _ in range(4)]
    finally:
        over = True
        await asyncio.gather(*tasks)
    assert all(map(np.array_equal, seen, expected)), "an old session's world does not change"
    assert met == {"1", "2"}
    for world in (old, twin):
        await world.close()


async def _moved(holds: Callable[[], bool]) -> bool:
    return holds()
