"""The reward service on a free port, asked by a plain grpcio client; nothing may be left behind."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from refusals import bomb, refused, samples
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree.reward.v1.reward_scorer_pb2_grpc import RewardScorerStub
from worldtree_reward.catalog import Catalog
from worldtree_reward.config import RewardSettings
from worldtree_reward.serving import serve_reward
from worldtree_runtime.server import RunningServer
from worldtree_runtime.testing_judges import TinyJudge

BRIGHT = pb.Question(goal="a bright clip")


@dataclass(frozen=True)
class Service:
    """One replica. `metric`: the value of a sample."""

    server: RunningServer
    catalog: Catalog
    stub: RewardScorerStub

    async def score(self, clip: pb.Clip, question: pb.Question = BRIGHT) -> pb.ScoreResponse:
        return await self.stub.Score(pb.ScoreRequest(question=question, clip=clip))

    async def rank(self, clips: Sequence[pb.Clip], question: pb.Question = BRIGHT) -> pb.RankResponse:
        return await self.stub.Rank(pb.RankRequest(question=question, candidates=clips))

    async def metric(self, name: str) -> dict[str, float]:
        return await samples(self.server.metrics_address, name)


Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    TinyJudge().write(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
async def serve(models: Path) -> AsyncIterator[Serve]:
    """Starts replicas; their engines and threads are gone afterwards, and what they counted is whole."""
    before = set(threading.enumerate())
    started: list[Service] = []
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Service:
            given = {"port": 0, "metrics_port": 0, "models": str(models), "drain_timeout_s": 5.0, **settings}
            server, catalog = await stack.enter_async_context(serve_reward(RewardSettings(**given)))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            started.append(Service(server, catalog, RewardScorerStub(channel)))
            return started[-1]

        yield start
        for service in started:
            for each in service.catalog:
                each.engine.check_integrity()
    left = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("engine")}
    assert not left, f"threads are left: {left}"


@pytest.fixture
async def service(serve: Serve) -> Service:
    return await serve()


def pixels(count: int = 3, seed: int = 0, size_px: int = 8) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, size_px, size_px, 3), np.uint8)


def frames(array: Any) -> common.Frames:
    tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=array.shape, data=array.tobytes())
    return common.Frames(tensor=tensor)


def clip(array: Any = None, actions: Sequence[int] | None = None) -> pb.Clip:
    array = pixels() if array is None else array
    return pb.Clip(frames=frames(array), actions=[1] * (len(array) - 1) if actions is None else actions)


def grey(value: int, count: int = 3) -> pb.Clip:
    return clip(np.full((count, 8, 8, 3), value, np.uint8))


@pytest.fixture
def tools() -> Any:
    """What the tests of this folder share, which is no package."""

    class Tools:
        refused = staticmethod(refused)
        bomb = staticmethod(bomb)
        pixels = staticmethod(pixels)
        frames = staticmethod(frames)
        clip = staticmethod(clip)
        grey = staticmethod(grey)

    return Tools
