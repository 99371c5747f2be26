"""The video service on a free port, asked by a plain grpcio client; nothing may be left behind."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from refusals import Refusal, refusal_of
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_runtime.server import RunningServer
from worldtree_runtime.testing import TinyWorld
from worldtree_video.catalog import Catalog
from worldtree_video.config import VideoSettings
from worldtree_video.engine import Engine
from worldtree_video.serving import serve_video


class Video:
    """A running service and a stub of it."""

    def __init__(
        self, server: RunningServer, catalog: Catalog, channel: grpc.aio.Channel, settings: VideoSettings
    ) -> None:
        self.server = server
        self.catalog = catalog
        self.channel = channel
        self.settings = settings
        self.stub = VideoGeneratorStub(channel)

    @property
    def engine(self) -> Engine:
        return next(iter(self.catalog)).worlds.engine

    @property
    def model(self) -> common.ModelRef:
        return common.ModelRef(name=next(iter(self.catalog)).stored.name)

    async def create(self, *, chunks: int = 0, start: str = "dusk", **fields: Any) -> str:
        """A session, some chunks from its start; of the first model unless told otherwise."""
        known = {"model": self.model, "origin": pb.Origin(start=start), "seed": 7, **fields}
        request = pb.CreateSessionRequest(**known)
        name = (await self.stub.CreateSession(request)).session.session
        if chunks:
            await self.stub.Step(pb.StepRequest(session=name, actions=turns(chunks)))
        return str(name)

    async def get(self, session: str) -> pb.GetResponse:
        """The session as it stands, but for its lease, which each look renews, and for what others share with it."""
        answer = await self.stub.Get(pb.GetRequest(session=session))
        answer.session.ClearField("expire_time")
        answer.session.ClearField("shared_block_count")
        return answer

    async def refused(self, call: Any) -> Refusal:
        """What a call is refused with: a unary one awaited, a stream read to its end."""
        try:
            async with asyncio.timeout(60):
                if isinstance(call, grpc.aio.UnaryStreamCall | grpc.aio.StreamStreamCall):
                    async for _ in call:
                        pass
                else:
                    await call
        except grpc.aio.AioRpcError as error:
            return await refusal_of(error)
        raise AssertionError("the call was not refused")

    async def until(self, holds: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 5.0) -> None:
        """Waits for something to come true."""
        ends = time.monotonic() + timeout_s
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            assert time.monotonic() < ends, f"not so within {timeout_s} s"
            await asyncio.sleep(0.005)

    async def is_quiet(self) -> bool:
        """Whether no call holds a block or a session."""
        with self.engine.lock:
            pools = self.engine.pools.values()
            tables = sum(len(pool._tables) for pool in pools) - len(self.engine.sessions)
            in_flight_count = sum(pool.in_flight_count for pool in pools)
            busy_count = self.engine.sessions.busy_count
            return not (self.engine.scheduler.run_count or in_flight_count or busy_count or tables)


def turns(count: int) -> list[pb.Action]:
    """Harmless actions."""
    return [pb.Action(id=number % 3) for number in range(count)]


StartVideo = Callable[..., Awaitable[Video]]


@pytest.fixture
async def start_video(tmp_path: Path) -> AsyncIterator[StartVideo]:
    """Serves a tiny world; each test ends with every block counted and no thread or task of a call left."""
    threads = set(threading.enumerate())
    async with AsyncExitStack() as stack:
        running: list[tuple[Video, int]] = []

        async def start(tiny: TinyWorld | None = None, *, models: Path | None = None, **settings: Any) -> Video:
            if models is None:
                models = tmp_path / f"models-{len(running)}"
                (tiny or TinyWorld()).write(models)
            known = VideoSettings(
                models=str(models),
                **{
                    "port": 0,
                    "metrics_port": 0,
                    "pool_mib": 1,
                    "fp16_pool_mib": 1,
                    "int8_pool_mib": 1,
                    "max_batch": 4,
                    "headroom_blocks": 2,
                    "drain_timeout_s": 2,
                    **settings,
                },
            )
            server, catalog = await stack.enter_async_context(serve_video(known))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            video = Video(server, catalog, channel, known)
            await channel.channel_ready()
            running.append((video, len(asyncio.all_tasks())))
            return video

        yield start
        for video, task_count in running:
            assert video.engine._thread.is_alive(), "the engine's thread has died"
            await video.until(video.is_quiet)
            video.engine.check_integrity()
            for session in list(video.engine.sessions):
                metadata = (("worldtree-tenant", session.tenant),)
                await video.stub.Delete(pb.DeleteRequest(session=session.name), metadata=metadata)
            video.engine.check_integrity()
            assert all(pool.free_count == pool.block_count for pool in video.engine.pools.values())
            if len(running) == 1:
                await video.until(lambda: len(asyncio.all_tasks()) <= task_count)  # noqa: B023
    left = [thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("engine-")]
    for thread in left:
        thread.join(5.0)  # a version may be on its way out when the service ends
    assert [thread for thread in left if thread.is_alive()] == []


@pytest.fixture
async def video(start_video: StartVideo) -> Video:
    """A tiny world with the settings of most tests."""
    return await start_video()
