"""Servers to measure: the engine in this process, and services as processes of their own on loopback."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
from prometheus_client import CollectorRegistry
from rich.progress import Progress
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_runtime.stores import Store
from worldtree_video.catalog import Served, load_catalog
from worldtree_video.config import VideoSettings
from worldtree_video.host_tier import HostTier
from worldtree_video.metrics import VideoMetrics
from worldtree_video.tiers import Tiers

if TYPE_CHECKING:  # a name of the stubs' types only
    from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorAsyncStub

_READY_TIMEOUT_S = 60.0


@asynccontextmanager
async def engine_here(
    settings: VideoSettings, model: str = "minigrid", *, store: Store | None = None
) -> AsyncIterator[Served]:
    """The model's engine in this process. `store`: the tier below host memory; its owner closes it."""
    metrics = VideoMetrics(CollectorRegistry())
    async with Tiers(HostTier(settings.host_mib << 20), store, metrics, ttl_s=settings.tier_ttl_s) as tiers:
        catalog = load_catalog(settings, metrics, tiers)
        catalog.start()
        try:
            yield next(served for served in catalog.newest() if served.stored.name == model)
        finally:
            await catalog.aclose()
            catalog.stop()


@asynccontextmanager
async def service(module: str, *flags: str) -> AsyncIterator[str]:
    """A service as a process; its gRPC address. Ended with SIGTERM."""
    async with service_process(module, *flags) as fields:
        yield fields["grpc"]


@asynccontextmanager
async def service_process(module: str, *flags: str) -> AsyncIterator[dict[str, str]]:
    """The same, with all that it says when it is ready: the addresses `grpc` and `metrics`, and its `pid`."""
    free = ("--port", "0", "--metrics-port", "0", "--log-level", "warning")
    async with _process("-m", module, *free, *flags) as fields:
        yield fields


@asynccontextmanager
async def script(name: str, *arguments: str) -> AsyncIterator[str]:
    """A server that is a script beside this one; its gRPC address."""
    async with script_process(name, *arguments) as fields:
        yield fields["grpc"]


@asynccontextmanager
async def script_process(name: str, *arguments: str) -> AsyncIterator[dict[str, str]]:
    """The same, with its `pid`."""
    async with _process(str(Path(__file__).with_name(name)), *arguments) as fields:
        yield fields


async def in_turns(ways: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> dict[str, list[float]]:
    """What each way gives, one after the other, so many times: a slow spell hits them alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    with Progress(transient=True) as progress:
        for _ in progress.track(range(rounds), description="turns"):
            for name, way in ways.items():
                found[name].append(await way())
    return found


@asynccontextmanager
async def _process(*arguments: str) -> AsyncIterator[dict[str, str]]:
    """A server as a process, once it has said that it is ready: what it says then, and `pid`."""
    command = [sys.executable, *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout
        line = (await asyncio.wait_for(process.stdout.readline(), _READY_TIMEOUT_S)).decode()
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        if "grpc" not in fields:
            raise RuntimeError(f"{' '.join(command)} did not get ready: {line!r}")
        yield {**fields, "pid": str(process.pid)}
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def stub(address: str) -> "AsyncIterator[VideoGeneratorAsyncStub]":
    """A plain stub of the video service."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield VideoGeneratorStub(channel)


def shared_flags(settings: VideoSettings, max_batch: int) -> Sequence[str]:
    """Flags that give a video process the settings of the engine here."""
    prefix_cache = "--prefix-cache" if settings.prefix_cache else "--no-prefix-cache"
    return (
        *("--models", settings.models, "--pool-mib", str(settings.pool_mib)),
        *("--max-batch", str(max_batch), prefix_cache),
    )
