"""Servers to measure: the engine in this process, and services as processes of their own on loopback."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
from prometheus_client import CollectorRegistry
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
    """The same, with all that it says when it is ready: the addresses `grpc` and `metrics`."""
    command = [sys.executable, "-m", module, "--port", "0", "--metrics-port", "0", "--log-level", "warning", *flags]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout
        line = (await asyncio.wait_for(process.stdout.readline(), _READY_TIMEOUT_S)).decode()
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        if "grpc" not in fields:
            raise RuntimeError(f"{' '.join(command)} did not get ready: {line!r}")
        yield fields
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
