"""The multi-task service on a free port, asked by a plain grpcio client; nothing may be left behind."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from refusals import bomb, refused, samples
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1.multi_task_pb2_grpc import MultiTaskStub
from worldtree_multitask.catalog import Catalog
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.serving import serve_multitask
from worldtree_runtime.server import RunningServer
from worldtree_runtime.testing_experts import TinyExperts


@dataclass(frozen=True)
class Service:
    """One replica. `metric`: the value of a sample."""

    server: RunningServer
    catalog: Catalog
    stub: MultiTaskStub

    async def create(self, method: str, **more: Any) -> pb.Merge:
        request = pb.CreateMergeRequest(recipe=pb.Recipe(method=method), **more)
        *_, last = [each async for each in self.stub.CreateMerge(request)]
        return last.merge

    async def predict(self, frames: common.Frames | None = None, **more: Any) -> pb.PredictResponse:
        return await self.stub.Predict(pb.PredictRequest(images=frames or images(), **more))

    async def metric(self, name: str) -> dict[str, float]:
        return await samples(self.server.metrics_address, name)


Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    TinyExperts().write(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
async def serve(models: Path) -> AsyncIterator[Serve]:
    """Starts replicas; their engines and threads are gone afterwards, and what they counted is whole."""
    before = set(threading.enumerate())
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Service:
            given = {"port": 0, "metrics_port": 0, "models": str(models), "drain_timeout_s": 5.0, **settings}
            server, catalog = await stack.enter_async_context(serve_multitask(MultitaskSettings(**given)))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            return Service(server, catalog, MultiTaskStub(channel))

        started: list[Service] = []

        async def kept(**settings: Any) -> Service:
            started.append(await start(**settings))
            return started[-1]

        yield kept
        for service in started:
            for each in service.catalog:
                each.engine.check_integrity()
    left = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("engine", "merging"))}
    assert not left, f"threads are left: {left}"


@pytest.fixture
async def service(serve: Serve) -> Service:
    return await serve()


def pixels(count: int = 2, size_px: int = 8, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, size_px, size_px, 3), np.uint8)


def images(count: int = 2, size_px: int = 8, seed: int = 0) -> common.Frames:
    array = pixels(count, size_px, seed)
    tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=array.shape, data=array.tobytes())
    return common.Frames(tensor=tensor)


@pytest.fixture
def tools() -> Any:
    """What the tests of this folder share, which is no package."""

    class Tools:
        refused = staticmethod(refused)
        images = staticmethod(images)
        pixels = staticmethod(pixels)
        bomb = staticmethod(bomb)

    return Tools
