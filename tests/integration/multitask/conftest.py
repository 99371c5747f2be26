"""The multi-task service on a free port, asked by a plain grpcio client; nothing may be left behind."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1.multi_task_pb2_grpc import MultiTaskStub
from worldtree_multitask.catalog import Catalog
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.serving import serve_multitask
from worldtree_runtime.server import RunningServer
from worldtree_runtime.testing_experts import TinyExperts

_DETAILS = ("ErrorInfo", "BadRequest", "ResourceInfo", "RetryInfo", "PreconditionFailure")


@dataclass(frozen=True)
class Refusal:
    """A status and its details by type."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]

    @property
    def reason(self) -> str:
        return str(self.details["ErrorInfo"].reason)

    @property
    def field(self) -> str | None:
        bad = self.details.get("BadRequest")
        return None if bad is None else str(bad.field_violations[0].field)


async def refused(call: Any) -> Refusal:
    """What a call is refused with; fails where it is not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _ended(call)
    status = rpc_status.from_call(_WithTrailers(caught.value))
    assert status is not None, f"{caught.value.code()} {caught.value.details()} brought no google.rpc.Status"
    details: dict[str, Any] = {}
    for packed in status.details:
        for name in _DETAILS:
            message = getattr(error_details_pb2, name)()
            if packed.Unpack(message):
                details[name] = message
    assert details["ErrorInfo"].domain == "worldtree"
    return Refusal(caught.value.code(), status.message, details)


async def _ended(call: Any) -> None:
    if hasattr(call, "__aiter__"):
        [each async for each in call]
    else:
        await call


class _WithTrailers:
    """What grpc_status reads of an asynchronous call's error."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def code(self) -> grpc.StatusCode:
        return self._error.code()

    def details(self) -> str | None:
        return self._error.details()

    def trailing_metadata(self) -> Any:
        return tuple(self._error.trailing_metadata())


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
        """The samples of a metric by their labels."""
        host, _, port = self.server.metrics_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
        return {line.rpartition(" ")[0].removeprefix(name): float(line.rpartition(" ")[2]) for line in lines}


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


def bomb() -> bytes:
    """The header of a PNG that promises 100,000 x 100,000 pixels."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 100_000, 100_000, 8, 2, 0, 0, 0)


@pytest.fixture
def tools() -> Any:
    """What the tests of this folder share, which is no package."""

    class Tools:
        refused = staticmethod(refused)
        images = staticmethod(images)
        pixels = staticmethod(pixels)
        bomb = staticmethod(bomb)

    return Tools
