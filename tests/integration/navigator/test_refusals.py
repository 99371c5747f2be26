"""What bad input gets, and what a caller gets where a service behind is down or slow: an answer, never a hang."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_judges import TinyJudge

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
UNAVAILABLE, PRECONDITION = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION
TINY = TinyWorld(height_px=8, width_px=8)
LEFT = video_pb.Action(name="left")


def sequence(*actions: video_pb.Action, **fields: Any) -> video_pb.ActionSequence:
    return video_pb.ActionSequence(actions=actions, **fields)


def one(*actions: video_pb.Action, **fields: Any) -> dict[str, Any]:
    return {"given": pb.Given(sequences=[sequence(LEFT), sequence(*actions, **fields)])}


def lasting(seconds: int) -> pb.Budget:
    budget = pb.Budget()
    budget.duration.FromSeconds(seconds)
    return budget


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no_sequence": ({"given": pb.Given()}, "given.sequences", "must be 1 to 256, got 0"),
    "too_many_sequences": ({"given": pb.Given(sequences=[sequence(LEFT)] * 257)}, "given.sequences", "got 257"),
    "no_action": (one(), "given.sequences[1].actions", "must be 1 to 64, got 0"),
    "too_many_actions": (one(*[LEFT] * 65), "given.sequences[1].actions", "got 65"),
    "unknown_name": (
        one(LEFT, video_pb.Action(name="fly")),
        "given.sequences[1].actions[1].name",
        "must be one of left, right, stay, poison, got 'fly'",
    ),
    "unknown_id": (one(video_pb.Action(id=4)), "given.sequences[1].actions[0].id", "must be 0 to 3, got 4"),
    "empty_action": (one(video_pb.Action()), "given.sequences[1].actions[0]", "got nothing"),
    "instruction": (
        one(video_pb.Action(name="left", instruction="run")),
        "given.sequences[1].actions[0].instruction",
        "must be empty",
    ),
    "vector": (
        one(video_pb.Action(vector=video_pb.Action.Vector(values=[1.0]))),
        "given.sequences[1].actions[0]",
        "got vector",
    ),
    "sequence_seed": (one(LEFT, seed=2**53), "given.sequences[1].seed", "got 9.0072e+15"),
    "thousand_candidates": ({"sampling": pb.Sampling(count=1000)}, "sampling.count", "must be 1 to 256, got 1000"),
    "negative_count": ({"sampling": pb.Sampling(count=-1)}, "sampling.count", "got -1"),
    "horizon": ({"sampling": pb.Sampling(horizon=65)}, "sampling.horizon", "must be 1 to 64, got 65"),
    "sampling_seed": ({"sampling": pb.Sampling(seed=-1)}, "sampling.seed", "got -1"),
    "repeat": ({"sampling": pb.Sampling(repeat=1.0)}, "sampling.repeat", "must be 0 to below 1, got 1"),
    "repeat_nan": ({"sampling": pb.Sampling(repeat=math.nan)}, "sampling.repeat", "got nan"),
    "sampled_action": (
        {"sampling": pb.Sampling(actions=["left", "fly"])},
        "sampling.actions[1]",
        "must be one of left, right, stay, poison, got 'fly'",
    ),
    "chunks": ({"budget": pb.Budget(chunk_count=-1)}, "budget.chunk_count", "must be 0 to 4096, got -1"),
    "duration_0": ({"budget": lasting(0)}, "budget.duration", "must be above 0 to 3600, got 0"),
    "duration": ({"budget": lasting(3601)}, "budget.duration", "got 3601"),
    "duration_of_ages": ({"budget": lasting(2**62)}, "budget.duration", "got 4.6"),
    "rounds": ({"rounds": 65}, "rounds", "must be 0 to 64, got 65"),
    "rounds_beyond_horizon": ({"rounds": 7}, "rounds", "must be 0 to the horizon, 6, got 7"),
    "halving": ({"halving": 0.5}, "halving", "must be 1 to 16, got 0.5"),
    "halving_nan": ({"halving": math.nan}, "halving", "got nan"),
    "keep": ({"keep": -1}, "keep", "must be 1 to 256, got -1"),
    "stop_at": ({"stop_at": 0.5}, "stop_at", "must be above 0.5 to 1, got 0.5"),
    "stop_at_nan": ({"stop_at": math.nan}, "stop_at", "got nan"),
    "goal_of_a_megabyte": (
        {"question": reward_pb.Question(goal="x" * 1_000_000)},
        "question.goal",
        "must have 1024 characters at most, got 1000000",
    ),
    "goal_of_no_kind": (
        {"question": reward_pb.Question(goal="cook an egg")},
        "question.goal",
        "is of no kind that judge tiny-judge knows",
    ),
    "weights_nan": (
        {"question": reward_pb.Question(weights={"brightness": math.nan})},
        "question.weights[brightness]",
        "must be finite",
    ),
}


@pytest.mark.parametrize(("fields", "field", "says"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_told_by_field_value_and_limit_and_costs_no_chunk(
    services: Any, tools: Any, fields: dict[str, Any], field: str, says: str
) -> None:
    before, ticks = await services.standing(), await services.tick_count()
    refusal = await tools.refused(services.imagine(**fields))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert says in refusal.message
    assert await services.standing() == before
    assert await services.tick_count() == ticks


@pytest.mark.parametrize(
    ("fields", "resource"),
    [
        ({"session": "0123456789abcdef.nowhere"}, "session"),
        ({"judge": {"name": "nobody"}}, "model"),
        ({"question": reward_pb.Question(goal="a bright clip", category="taste")}, "category"),
        ({"question": reward_pb.Question(weights={"taste": 1.0})}, "dimension"),
    ],
)
async def test_what_there_is_not_is_told_by_its_name(
    services: Any, tools: Any, fields: dict[str, Any], resource: str
) -> None:
    refusal = await tools.refused(services.imagine(**fields))
    assert refusal.code is NOT_FOUND
    assert resource in refusal.details["ResourceInfo"].resource_type


@pytest.mark.parametrize(
    ("tiny", "judge", "says"),
    [
        (TINY, TinyJudge(size_px=16, actions=("left", "right", "stay", "poison")), "16 x 16"),
        (TINY, TinyJudge(size_px=8), "knows the actions stay, go, jump"),
        (replace(TINY, action_size=2), TinyJudge(size_px=8), "this world's are vectors"),
    ],
)
async def test_a_judge_of_other_worlds_is_refused_before_any_chunk(
    serve: Any, tools: Any, tiny: TinyWorld, judge: TinyJudge, says: str
) -> None:
    services = await serve(tiny, judge)
    refusal = await tools.refused(services.imagine())
    assert (refusal.code, refusal.reason) == (PRECONDITION, "JUDGE_MISMATCH")
    assert says in refusal.message


async def test_a_future_that_the_world_cannot_make_ends_the_call_as_a_rollout_would(services: Any, tools: Any) -> None:
    refusal = await tools.refused(services.imagine(given=tools.given([0, 0], [3, 3])))
    assert refusal.code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)
    assert refusal.reason != "BUG"


async def test_more_calls_than_may_run_are_told_to_wait(serve: Any, tools: Any) -> None:
    services = await serve(replace(TINY, work=60), max_imaginings=1)
    running = services.imagine(sampling=pb.Sampling(count=32, horizon=16, actions=["left", "right"]))
    await services.until(lambda: services.session_count == 2)
    refusal = await tools.refused(services.imagine())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "IMAGININGS_FULL")
    assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    running.cancel()


async def test_a_video_service_without_room_is_told_as_it_tells_it(serve: Any, tools: Any) -> None:
    services = await serve(video_settings={"max_sessions": 1})
    refusal = await tools.refused(services.imagine())
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "RetryInfo" in refusal.details


@pytest.fixture
async def deaf() -> AsyncIterator[str]:
    """The address of one who takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("service", ["video", "reward"])
async def test_a_service_that_does_not_answer_is_unavailable_in_time(
    serve: Any, tools: Any, deaf: str, service: str
) -> None:
    services = await serve(**{service: deaf, f"{service}_timeout_s": 0.5})
    began_s = time.monotonic()
    refusal = await tools.refused(services.imagine())
    assert time.monotonic() - began_s < 5
    assert (refusal.code, refusal.reason) == (UNAVAILABLE, f"{service.upper()}_UNAVAILABLE")
    assert deaf in refusal.message
    assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_a_reward_service_that_is_down_costs_no_chunk(services: Any, tools: Any) -> None:
    before, ticks = await services.standing(), await services.tick_count()
    await services.stop_reward()
    refusal = await tools.refused(services.imagine())
    assert (refusal.code, refusal.reason) == (UNAVAILABLE, "REWARD_UNAVAILABLE")
    assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    assert await services.standing() == before
    assert (services.session_count, await services.tick_count()) == (1, ticks)


async def test_a_judge_of_shorter_clips_and_frames_that_no_message_holds(serve: Any, tools: Any) -> None:
    services = await serve(reward_settings={"max_steps": 4}, max_message_bytes=64 * 1024)
    ticks = await services.tick_count()
    refusal = await tools.refused(services.imagine(sampling=pb.Sampling(horizon=5)))
    assert (refusal.code, refusal.field) == (INVALID, "sampling.horizon")
    assert "must be 4 at most for this judge, got 5" in refusal.message
    refusal = await tools.refused(services.imagine(given=tools.given([0], [0] * 5)))
    assert (refusal.code, refusal.field) == (INVALID, "given.sequences[1].actions")
    refusal = await tools.refused(services.imagine(sampling=pb.Sampling(count=81, horizon=4), keep=80))
    assert (refusal.code, refusal.field) == (INVALID, "keep")
    assert "keep must be 42 at most with frames" in refusal.message
    assert await services.tick_count() == ticks


async def test_a_reward_service_that_dies_on_the_way_leaves_the_ranking_so_far(serve: Any) -> None:
    # one that drains would score to the end
    services = await serve(replace(TINY, work=60), reward_settings={"drain_timeout_s": 0.0})
    answers: list[pb.ImagineResponse] = []
    stopping = None
    sampling = pb.Sampling(count=24, horizon=8, actions=["left", "right", "stay"])
    async for answer in services.imagine(sampling=sampling):
        answers.append(answer)
        stopping = stopping or asyncio.create_task(services.stop_reward())
    assert stopping is not None
    await stopping
    assert answers[-1].ending == pb.ImagineResponse.ENDING_REWARD_UNAVAILABLE
    assert any("the reward service" in note for note in answers[-1].notes)
    assert answers[-1].futures[0].HasField("judgement")
    assert answers[-1].futures[0].HasField("frames")
    assert answers[-1].futures[0].chunk_count == 2 * answers[-2].round


async def test_a_session_that_is_closed_on_the_way_changes_nothing_for_its_futures(serve: Any) -> None:
    services = await serve(replace(TINY, work=60))
    call = services.imagine(sampling=pb.Sampling(count=8, horizon=4, actions=["left", "right"]))
    await services.until(lambda: services.session_count == 2)
    fresh = video_pb.CreateSessionRequest(origin=video_pb.Origin(start="dusk"))
    fresh.model.name = "tiny"
    await services.video.CreateSession(fresh)
    await services.video.Delete(video_pb.DeleteRequest(session=services.session))
    *_, last = [each async for each in call]
    assert last.ending == pb.ImagineResponse.ENDING_COMPLETE
