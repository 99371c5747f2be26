"""What a navigator imagines is owed as what the video service makes, once, however the call ends."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from refusals import samples
from whole import Whole
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_navigator.bills import open_bill
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.peers import Peers
from worldtree_navigator.serving import serve_navigator

QUESTION = reward_pb.Question(goal="a bright clip")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    whole = Whole(tmp_path_factory.mktemp("whole") / "models")
    yield whole
    whole.close()


@pytest.fixture
async def channel(whole: Whole) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(whole.gateway.server.address) as channel:
        yield channel


@pytest.fixture
async def session(channel: grpc.aio.Channel) -> str:
    request = video_pb.CreateSessionRequest(
        model=common.ModelRef(name="tiny"), origin=video_pb.Origin(start="dusk"), seed=3
    )
    return str((await VideoGeneratorStub(channel).CreateSession(request)).session.session)


async def charged(gateway: Any) -> float:
    return sum((await samples(gateway.server.metrics_address, "worldtree_charged_frames_total")).values())


async def cost_of(call: Any) -> int:
    return int(dict(await call.trailing_metadata()).get("worldtree-cost", 0))


def imagine(channel: Any, session: str, *, rounds: int = 3, seed: int = 1) -> Any:
    sampling = pb.Sampling(count=8, horizon=6, actions=["left", "right", "stay"], seed=seed)
    request = pb.ImagineRequest(session=session, sampling=sampling, question=QUESTION, rounds=rounds)
    return NavigatorStub(channel).Imagine(request)


async def test_an_imagining_costs_what_it_had_made(whole: Whole, channel: Any, session: str) -> None:
    before = await charged(whole.gateway)
    call = imagine(channel, session)
    answers = [answer async for answer in call]
    costs = [answer.spent.cost for answer in answers]
    assert 0 < costs[0] < costs[-1] == await cost_of(call)
    assert costs[-1] >= answers[-1].spent.chunk_count > 0
    assert await charged(whole.gateway) - before == costs[-1]


async def test_a_plan_costs_what_it_had_made(whole: Whole, channel: Any, session: str) -> None:
    before = await charged(whole.gateway)
    call = NavigatorStub(channel).Plan(
        pb.PlanRequest(session=session, question=QUESTION, actions=["left", "right"], horizon=3, candidates=4)
    )
    assert (await call).spent.cost == await cost_of(call) > 0
    assert await charged(whole.gateway) - before == await cost_of(call)


async def test_an_imagining_that_is_left_costs_what_had_been_told(whole: Whole, channel: Any, session: str) -> None:
    before = await charged(whole.gateway)
    call = imagine(channel, session, rounds=6, seed=2)
    told = (await call.read()).spent.cost
    assert told > 0
    call.cancel()
    ends_s = asyncio.get_running_loop().time() + 20
    while await charged(whole.gateway) - before < told:
        assert asyncio.get_running_loop().time() < ends_s
        await asyncio.sleep(0.05)


async def test_a_navigation_owes_each_chunk_as_it_passes(whole: Whole, channel: Any, session: str) -> None:
    before = await charged(whole.gateway)
    frame = (await VideoGeneratorStub(channel).Get(video_pb.GetRequest(session=session))).last_frame
    call = NavigatorStub(channel).Navigate()
    start = pb.Start(
        planner="mpc", world=common.ModelRef(name="tiny"), goal=QUESTION.goal, actions=["left", "right"], chunk_length=2
    )
    await call.write(pb.NavigateRequest(start=start))
    assert (await call.read()).HasField("started")
    owed = 0
    for place, executed in enumerate(((), ("left",))):
        observation = pb.Observation(frame=frame, executed=[video_pb.Action(name=name) for name in executed])
        observation.taken_at.FromSeconds(place)
        await call.write(pb.NavigateRequest(observation=observation))
        answer = await call.read()
        assert answer.chunk.cost > 0, answer
        owed += answer.chunk.cost
        assert await charged(whole.gateway) - before == owed
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await cost_of(call) == owed
    assert await charged(whole.gateway) - before == owed


async def test_what_a_gateway_before_the_worlds_has_charged_is_not_charged_again(whole: Whole, session: str) -> None:
    address = whole.gateway.server.address
    settings = NavigatorSettings(port=0, metrics_port=0, drain_timeout_s=0.0, video=address, reward=address)
    before = await charged(whole.gateway)
    async with serve_navigator(settings) as navigator, grpc.aio.insecure_channel(navigator.address) as channel:
        call = imagine(channel, session, seed=5)
        answers = [answer async for answer in call]
        assert answers[-1].spent.chunk_count > 0
        assert answers[-1].spent.cost == await cost_of(call) == 0
    assert await charged(whole.gateway) > before


async def test_a_rollout_that_is_left_is_charged_by_a_gateway_before_the_worlds_alone(
    whole: Whole, session: str
) -> None:
    before = await charged(whole.gateway)
    told: list[Any] = []
    bill: Any = SimpleNamespace(set_trailing_metadata=told.append)
    peers = Peers(NavigatorSettings(video=whole.gateway.server.address))
    open_bill(bill)
    sequence = video_pb.ActionSequence(actions=[video_pb.Action(name="left") for _ in range(6)])
    nodes = peers.rollout(session, [sequence], (), frames_from_depth=1)
    assert (await anext(nodes)).chunk.timing.nfe > 0
    await nodes.aclose()
    assert not told
    ends_s = asyncio.get_running_loop().time() + 20
    while await charged(whole.gateway) == before:
        assert asyncio.get_running_loop().time() < ends_s
        await asyncio.sleep(0.05)
    await peers.close()
