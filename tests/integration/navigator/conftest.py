"""The navigator on a free port, before a real video and a real reward service; nothing may be left behind."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from refusals import refused, samples
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.reward.v1.reward_scorer_pb2_grpc import RewardScorerStub
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.serving import serve_navigator
from worldtree_reward.config import RewardSettings
from worldtree_reward.serving import serve_reward
from worldtree_runtime.server import RunningServer
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_judges import TinyJudge
from worldtree_video.config import VideoSettings
from worldtree_video.serving import serve_video

SIDE_PX = 8
ACTIONS = ("left", "right", "stay", "poison")
BRIGHT = reward_pb.Question(goal="a bright clip")


@dataclass(frozen=True)
class Services:
    """All three, and stubs of them. `stop_reward` ends the reward service."""

    navigator: RunningServer
    video_address: str
    video_metrics: str
    reward_address: str
    video_catalog: Any
    stub: Any
    video: Any
    reward: Any
    session: str
    stop_reward: Callable[[], Awaitable[None]]

    def imagine(self, **fields: Any) -> Any:
        known = {"session": self.session, "question": BRIGHT, "frames": True, **fields}
        return self.stub.Imagine(pb.ImagineRequest(**known))

    async def imagined(self, **fields: Any) -> list[pb.ImagineResponse]:
        return [each async for each in self.imagine(**fields)]

    async def standing(self) -> Any:
        """The session as it is, but for its lease."""
        found = await self.video.Get(video_pb.GetRequest(session=self.session))
        found.session.ClearField("expire_time")
        found.session.ClearField("shared_block_count")
        return found

    @property
    def session_count(self) -> int:
        return len(self.engine.sessions)

    async def tick_count(self) -> float:
        """Ticks that the video service's engine has taken."""
        return sum((await samples(self.video_metrics, "worldtree_tick_seconds_count")).values())

    @property
    def engine(self) -> Any:
        return next(iter(self.video_catalog)).worlds.engine

    async def until(self, holds: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        ends_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < ends_s, f"not so within {timeout_s} s"
            await asyncio.sleep(0.005)

    async def metric(self, name: str) -> dict[str, float]:
        return await samples(self.navigator.metrics_address, name)


Serve = Callable[..., Awaitable[Services]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts all three; at the end only the session is left, every block is counted, and no thread of theirs lives."""
    threads = set(threading.enumerate())
    started: list[Services] = []
    async with AsyncExitStack() as stack:

        async def start(
            tiny: TinyWorld | None = None,
            judge: TinyJudge | None = None,
            *,
            video_settings: Any = None,
            reward_settings: Any = None,
            **settings: Any,
        ) -> Services:
            folder = tmp_path / f"models-{len(started)}"
            (tiny or TinyWorld(height_px=SIDE_PX, width_px=SIDE_PX)).write(folder)
            (judge or TinyJudge(size_px=SIDE_PX, actions=ACTIONS)).write(folder)
            given = {"port": 0, "metrics_port": 0, "models": str(folder), "drain_timeout_s": 2}
            small = {"pool_mib": 1, "fp16_pool_mib": 1, "int8_pool_mib": 1, "max_batch": 4, "headroom_blocks": 2}
            video_server, video_catalog = await stack.enter_async_context(
                serve_video(VideoSettings(**given, **small, **(video_settings or {})))
            )
            reward_stack = await stack.enter_async_context(AsyncExitStack())
            reward_server, _ = await reward_stack.enter_async_context(
                serve_reward(RewardSettings(**{**given, **(reward_settings or {})}))
            )
            asked = {"video": video_server.address, "reward": reward_server.address, **settings}
            del given["models"]
            server = await stack.enter_async_context(serve_navigator(NavigatorSettings(**given, **asked)))
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(address))
                for address in (server.address, video_server.address, reward_server.address)
            ]
            stub = VideoGeneratorStub(channels[1])
            request = video_pb.CreateSessionRequest(
                model=common.ModelRef(name="tiny"), origin=video_pb.Origin(start="dusk"), seed=7
            )
            session = (await stub.CreateSession(request)).session.session
            actions = [video_pb.Action(id=0), video_pb.Action(id=1)]
            if tiny is not None and tiny.action_size:
                actions = [video_pb.Action(vector=video_pb.Action.Vector(values=[0.5] * tiny.action_size))]
            await stub.Step(video_pb.StepRequest(session=session, actions=actions))
            started.append(
                Services(
                    server,
                    video_server.address,
                    video_server.metrics_address,
                    reward_server.address,
                    video_catalog,
                    NavigatorStub(channels[0]),
                    stub,
                    RewardScorerStub(channels[2]),
                    session,
                    reward_stack.aclose,
                )
            )
            return started[-1]

        yield start
        for services in started:
            await services.until(lambda services=services: services.session_count == 1)
            await services.until(lambda services=services: not services.engine.scheduler.run_count)
            services.engine.check_integrity()
    left = {thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("engine")}
    assert not left, f"threads are left: {left}"


@pytest.fixture
async def services(serve: Serve) -> Services:
    return await serve()


def given(*sequences: Sequence[int]) -> pb.Given:
    """Candidates by the ids of their actions."""
    return pb.Given(
        sequences=[
            video_pb.ActionSequence(actions=[video_pb.Action(id=action) for action in each]) for each in sequences
        ]
    )


@pytest.fixture
def tools() -> Any:
    """What the tests of this folder share, which is no package."""

    class Tools:
        bright = BRIGHT
        actions = ACTIONS
        given = staticmethod(given)
        refused = staticmethod(refused)

    return Tools
