"""Robots that are steered: what they see goes in, chunks of actions come out, also when what goes in is wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree.simulator import Simulator
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.serving import serve_navigator

SEED = 1_060_000_003


class Robot:
    """A stream, and the world that it walks in."""

    def __init__(self, stub: Any, env_id: str = "BabyAI-GoToLocal-v0", seed: int = SEED) -> None:
        self.world = Simulator(env_id, seed)
        self.goal = self.world.goal
        self.stub = stub
        self.call: Any = None
        self.time_s = 0.0

    async def start(self, **fields: Any) -> pb.Started:
        self.call = self.stub.Navigate()
        await self.call.write(pb.NavigateRequest(start=pb.Start(**{"goal": self.goal, **fields})))
        return (await self.call.read()).started

    async def tell(self, executed: tuple[int, ...] = (), /, **fields: Any) -> None:
        self.time_s += 0.001
        observation = pb.Observation(
            frame=frames_of(self.world.frame()[None]),
            taken_at=duration(self.time_s),
            executed=[video_pb.Action(id=action) for action in executed],
        )
        for name, value in fields.items():
            observation.ClearField(name)
            if isinstance(value, list):
                getattr(observation, name).extend(value)
            elif value is not None:
                getattr(observation, name).CopyFrom(value)
        await self.call.write(pb.NavigateRequest(observation=observation))

    async def observe(self, executed: tuple[int, ...] = (), /, **fields: Any) -> pb.NavigateResponse:
        await self.tell(executed, **fields)
        return await self.call.read()

    def do(self, actions: list[int]) -> None:
        for action in actions:
            self.world.step(action)

    async def end(self) -> None:
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() == grpc.StatusCode.OK


def duration(seconds: float) -> Duration:
    found = Duration()
    found.FromMicroseconds(round(1e6 * seconds))
    return found


def frames_of(pixels: np.ndarray, dtype: Any = common.Tensor.D_TYPE_UINT8) -> common.Frames:
    return common.Frames(tensor=common.Tensor(dtype=dtype, shape=pixels.shape, data=pixels.tobytes()))


def same_cells(first: np.ndarray, second: np.ndarray) -> int:
    """Of the 7 x 7 cells of a view, those that look alike in both."""
    alike = (first == second).reshape(7, 8, 7, 8, 3)
    return int(alike.all(axis=(1, 3, 4)).sum())


def ids_of(chunk: pb.ActionChunk) -> list[int]:
    return [action.id for action in chunk.actions]


TALL, TWO = np.zeros((1, 64, 56, 3), np.uint8), np.zeros((2, 56, 56, 3), np.uint8)
WHITE = np.full((1, 56, 56, 3), 255, np.uint8)
NANS = frames_of(np.full((1, 56, 56, 3), np.nan, np.float32), common.Tensor.D_TYPE_FLOAT32)


@pytest.fixture
async def server() -> AsyncIterator[Callable[..., Any]]:
    """Navigators with the shipped policies; whoever needs no other service finds none."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:

        async def serve(**settings: Any) -> Any:
            nobody = {"video": "127.0.0.1:1", "reward": "127.0.0.1:1"}
            known = {"port": 0, "metrics_port": 0, "drain_timeout_s": 1, **nobody}
            running = await stack.enter_async_context(serve_navigator(NavigatorSettings(**{**known, **settings})))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(running.address))
            return NavigatorStub(channel)

        yield serve


@pytest.fixture
async def stub(server: Any) -> Any:
    return await server()


async def refused_with(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_on(call)
    return caught.value.code(), caught.value.details() or ""


async def read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_robot_gets_to_what_it_was_sent_to(stub: Any) -> None:
    reached = 0
    for seed in range(SEED, SEED + 8):
        robot = Robot(stub, "BabyAI-GoToObj-v0", seed)
        started = await robot.start(planner="joint", chunk_length=2, frames=True)
        assert (started.planner, started.model.name, started.chunk_length, started.step) == ("joint", "joint", 2, 0)
        executed: tuple[int, ...] = ()
        for step in range(20):
            chunk = (await robot.observe(executed)).chunk
            assert (chunk.observation, chunk.first_step) == (step, 2 * step)
            assert len(chunk.actions) == 2
            assert list(chunk.frames.tensor.shape) == [2, 56, 56, 3]
            assert 0 < chunk.confidence <= 1
            executed = tuple(ids_of(chunk))
            robot.do(list(executed))
            if robot.world.over:
                reached += robot.world.outcome.success
                break
        await robot.end()
    assert reached >= 5


async def test_what_is_expected_to_be_seen_is_seen(stub: Any) -> None:
    right = total = 0
    for seed in range(SEED, SEED + 6):
        robot = Robot(stub, seed=seed)
        await robot.start(chunk_length=1, frames=True)
        chunk = (await robot.observe()).chunk
        robot.do(ids_of(chunk))
        expected = np.frombuffer(chunk.frames.tensor.data, np.uint8).reshape(56, 56, 3)
        right += same_cells(expected, robot.world.frame())
        total += 49
        await robot.end()
    assert right / total > 0.7


async def test_the_time_of_a_chunk_is_told_in_parts(stub: Any) -> None:
    robot = Robot(stub)
    await robot.start(frames=True)
    timing = (await robot.observe()).chunk.timing
    parts = [timing.queue_duration, timing.world_model_duration, timing.planner_duration, timing.encode_duration]
    spent_s = sum(each.ToMicroseconds() for each in parts) / 1e6
    assert timing.world_model_duration.ToMicroseconds() > 0
    assert spent_s <= timing.total_duration.ToMicroseconds() / 1e6 + 1e-3
    await robot.end()


async def test_a_chunk_begins_where_its_planning_will_have_ended(stub: Any) -> None:
    robot = Robot(stub)
    await robot.start(chunk_length=3, control_rate_hz=200.0)
    first = (await robot.observe()).chunk
    assert first.first_step == 0  # it stands and waits
    second = (await robot.observe()).chunk
    passing = second.first_step
    assert 1 <= passing <= 3  # what it does in the meantime is what it was told
    assert second.starts_at.ToMicroseconds() == pytest.approx((robot.time_s + passing / 200) * 1e6, abs=2)
    await robot.end()


async def test_observations_that_wait_make_room_for_newer_ones(stub: Any) -> None:
    robot = Robot(stub)
    await robot.start(chunk_length=1)
    for _ in range(30):
        await robot.tell()
    await robot.call.done_writing()
    chunks = []
    while (answer := await robot.call.read()) is not grpc.aio.EOF:
        chunks.append(answer.chunk)
    assert len(chunks) < 30
    assert chunks[-1].observation == 29
    assert sum(each.dropped_count for each in chunks) + len(chunks) == 30


async def test_an_episode_goes_on_in_another_stream(stub: Any) -> None:
    robot, through = Robot(stub), Robot(stub)
    await through.start(chunk_length=2)
    chunk = (await through.observe()).chunk
    through.do(ids_of(chunk))
    expected = (await through.observe(tuple(ids_of(chunk)))).chunk
    await through.end()

    started = await robot.start(chunk_length=2, episode="mine")
    assert (started.episode, started.step) == ("mine", 0)
    chunk = (await robot.observe()).chunk
    robot.do(ids_of(chunk))
    robot.call.cancel()
    assert (await robot.start(chunk_length=2, episode="mine")).step == 0  # what was not told was not executed
    robot.time_s = 0.0
    again = (await robot.observe(tuple(ids_of(chunk)))).chunk
    assert again.first_step == 2
    assert ids_of(again) == ids_of(expected)
    await robot.end()
    assert (await robot.start(episode="mine")).step == 2
    await robot.end()


async def test_who_comes_later_takes_the_episode(stub: Any) -> None:
    first, second = Robot(stub), Robot(stub)
    await first.start(episode="shared")
    await first.observe()
    await second.start(episode="shared")
    code, details = await refused_with(first.call)
    assert code == grpc.StatusCode.ABORTED
    assert "shared" in details
    assert (await second.observe()).HasField("chunk")
    await second.end()


@pytest.mark.parametrize(
    ("fields", "field", "reason", "said"),
    [
        ({"frame": frames_of(TALL)}, "observation.frame.tensor.shape", "INVALID_FIELD", "[1, 64, 56, 3]"),
        ({"frame": frames_of(TWO)}, "observation.frame", "INVALID_FIELD", "got 2"),
        ({"frame": NANS}, "observation.frame.tensor.dtype", "INVALID_FIELD", "D_TYPE_FLOAT32"),
        ({"frame": frames_of(WHITE)}, "observation.frame", "NOT_OF_THIS_WORLD", "of 255"),
        ({"frame": None}, "observation.frame", "INVALID_FIELD", "must be set"),
        ({"taken_at": None}, "observation.taken_at", "INVALID_FIELD", "must be set"),
        ({"taken_at": duration(0.0005)}, "observation.taken_at", "OUT_OF_ORDER", "after 0.001 s"),
        ({"taken_at": duration(3600)}, "observation.taken_at", "FROM_THE_FUTURE", "got 3600.000 s"),
        ({"executed": [video_pb.Action(id=7)]}, "observation.executed[0].id", "INVALID_FIELD", "0 to 6"),
        ({"executed": [video_pb.Action(name="jump")]}, "observation.executed[0].name", "INVALID_FIELD", "'jump'"),
        ({"executed": [video_pb.Action()]}, "observation.executed[0]", "INVALID_FIELD", "got nothing"),
    ],
)  # fmt: skip
async def test_an_observation_that_cannot_be_used_is_told_and_the_stream_goes_on(
    stub: Any, fields: dict[str, Any], field: str, reason: str, said: str
) -> None:
    robot = Robot(stub)
    await robot.start(chunk_length=2)
    before = (await robot.observe()).chunk
    answer = (await robot.observe(**fields)).refusal
    assert (answer.observation, answer.field, answer.reason) == (1, field, reason)
    assert said in answer.message
    after = (await robot.observe()).chunk
    assert (after.observation, after.first_step) == (2, 0)
    assert ids_of(after) == ids_of(before)
    await robot.end()


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"goal": ""}, grpc.StatusCode.INVALID_ARGUMENT, "start.goal"),
        ({"goal": "go to the zeppelin"}, grpc.StatusCode.INVALID_ARGUMENT, "'zeppelin'"),
        ({"goal": "go " * 40}, grpc.StatusCode.INVALID_ARGUMENT, "10 words at most"),
        ({"planner": "psychic"}, grpc.StatusCode.NOT_FOUND, "joint"),
        ({"chunk_length": 7}, grpc.StatusCode.INVALID_ARGUMENT, "start.chunk_length must be 0 to 6"),
        ({"chunk_length": -1}, grpc.StatusCode.INVALID_ARGUMENT, "start.chunk_length"),
        ({"control_rate_hz": float("nan")}, grpc.StatusCode.INVALID_ARGUMENT, "start.control_rate_hz"),
        ({"control_rate_hz": -1.0}, grpc.StatusCode.INVALID_ARGUMENT, "start.control_rate_hz"),
        ({"control_rate_hz": 5000.0}, grpc.StatusCode.INVALID_ARGUMENT, "1000"),
        ({"seed": -1}, grpc.StatusCode.INVALID_ARGUMENT, "start.seed"),
        ({"episode": "e" * 129}, grpc.StatusCode.INVALID_ARGUMENT, "128 characters"),
        ({"model": common.ModelRef(name="nobody")}, grpc.StatusCode.NOT_FOUND, "nobody"),
        ({"planner": "mpc"}, grpc.StatusCode.UNAVAILABLE, "video service"),
    ],
)
async def test_a_start_that_cannot_be_used_ends_the_stream(
    stub: Any, fields: dict[str, Any], code: grpc.StatusCode, said: str
) -> None:
    call = stub.Navigate()
    await call.write(pb.NavigateRequest(start=pb.Start(**{"goal": "go to the red ball", **fields})))
    found, details = await refused_with(call)
    assert found == code
    assert said in details


async def test_a_stream_begins_with_a_start_and_with_one_only(stub: Any) -> None:
    robot = Robot(stub)
    robot.call = stub.Navigate()
    await robot.tell()
    code, details = await refused_with(robot.call)
    assert (code, "must be start" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    await robot.start()
    await robot.call.write(pb.NavigateRequest(start=pb.Start(goal=robot.goal)))
    code, details = await refused_with(robot.call)
    assert (code, "got start" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_silence_is_not_waited_for_for_ever(server: Any) -> None:
    stub = await server(start_timeout_s=0.1, observation_timeout_s=0.1)
    code, details = await refused_with(stub.Navigate())
    assert (code, "no start" in details) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
    robot = Robot(stub)
    await robot.start()
    code, details = await refused_with(robot.call)
    assert (code, "no observation" in details) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)


async def test_there_are_only_so_many_robots_and_their_places_are_given_back(server: Any) -> None:
    stub = await server(max_navigations=2)
    robots = [Robot(stub) for _ in range(3)]
    await robots[0].start()
    await robots[1].start()
    call = stub.Navigate()
    await call.write(pb.NavigateRequest(start=pb.Start(goal="go to the red ball")))
    code, details = await refused_with(call)
    assert (code, "2 navigations" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    robots[0].call.cancel()
    await robots[1].end()
    await asyncio.sleep(0.1)
    for robot in robots[:2]:
        await robot.start()
        await robot.observe()
        await robot.end()


async def test_many_robots_get_what_each_would_get_alone(stub: Any) -> None:
    alone = []
    for index in range(6):
        robot = Robot(stub, seed=SEED + index)
        await robot.start()
        alone.append(ids_of((await robot.observe()).chunk))
        await robot.end()
    robots = [Robot(stub, seed=SEED + index) for index in range(6)]
    await asyncio.gather(*(robot.start() for robot in robots))
    together = await asyncio.gather(*(robot.observe() for robot in robots))
    assert [ids_of(answer.chunk) for answer in together] == alone
    await asyncio.gather(*(robot.end() for robot in robots))


async def test_a_plan_needs_no_stream(stub: Any) -> None:
    robot = Robot(stub)
    frames = frames_of(robot.world.frame()[None])
    question = {"goal": robot.goal}
    plan = await stub.Plan(pb.PlanRequest(past=pb.Past(frames=frames), question=question, planner="joint", frames=True))
    await robot.start(chunk_length=6)
    assert [action.id for action in plan.actions] == ids_of((await robot.observe()).chunk)
    assert list(plan.frames.tensor.shape) == [6, 56, 56, 3]
    assert not plan.HasField("judgement")
    await robot.end()
    for fields, said in (
        ({}, "exactly one of session and past"),
        ({"past": pb.Past(frames=frames), "session": "s"}, "got both"),
        ({"past": pb.Past(frames=frames, actions=[video_pb.Action(id=0)])}, "past.actions must be one fewer"),
        ({"past": pb.Past()}, "past.frames must be 1 to 256, got 0"),
        ({"past": pb.Past(frames=frames), "horizon": 7}, "horizon must be 0 to 6"),
        ({"past": pb.Past(frames=frames), "question": {"goal": "fly"}}, "'fly'"),
        ({"past": pb.Past(frames=frames_of(WHITE))}, "past.frames[0] shows a cell"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Plan(pb.PlanRequest(**{"planner": "joint", "question": question, **fields}))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert said in (caught.value.details() or "")


async def test_a_plan_says_what_it_did_not_heed(stub: Any) -> None:
    robot = Robot(stub)
    past = pb.Past(frames=frames_of(robot.world.frame()[None]))
    asked = {"past": past, "question": {"goal": robot.goal}, "planner": "joint"}
    plan = await stub.Plan(pb.PlanRequest(**asked, actions=["left"], budget={"chunk_count": 5}))
    assert ["actions, budget had no effect" in note for note in plan.notes] == [True]
    assert not (await stub.Plan(pb.PlanRequest(**asked))).notes
    started = await robot.start(budget={"chunk_count": 5}, judge=common.ModelRef(name="judge"))
    assert ["budget, judge had no effect" in note for note in started.notes] == [True]
    await robot.end()
    assert not (await robot.start()).notes
    await robot.end()


async def test_who_does_not_read_is_not_read_for_ever_and_who_does_is_answered_in_turn(stub: Any) -> None:
    robot = Robot(stub)
    await robot.start(chunk_length=1)
    for _ in range(300):
        await robot.tell(taken_at=None)
    await robot.tell()
    answers = [await robot.call.read() for _ in range(301)]
    refused = [answer.refusal.observation for answer in answers if answer.HasField("refusal")]
    assert refused == list(range(300))
    # A chunk has its turn among the last refusals: it need not be the last answer.
    [chunk] = [answer.chunk for answer in answers if answer.HasField("chunk")]
    assert chunk.observation == 300
    await robot.end()


async def test_an_image_that_is_late_moves_its_chunk(stub: Any) -> None:
    robot = Robot(stub)
    await robot.start(chunk_length=3, control_rate_hz=20.0)
    await robot.observe()
    await asyncio.sleep(0.3)
    late = (await robot.observe()).chunk  # taken 0.3 s ago: what was planned is done by now
    assert late.first_step == 3
    await robot.end()


async def test_who_plans_is_listed_with_what_it_understands(stub: Any) -> None:
    planners = {each.name: each for each in (await stub.ListPlanners(pb.ListPlannersRequest())).planners}
    assert {"joint", "envision_then_plan", "mpc"} <= set(planners)
    joint = planners["joint"]
    assert "ball" in joint.words
    assert (joint.max_chunk_length, joint.height_px, joint.width_px) == (6, 56, 56)
