"""What Plan answers, what it may spend, and that nothing is left of it."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.testing import TinyWorld

BRIGHT = reward_pb.Question(goal="a bright clip")
MOVES = ["left", "right", "stay"]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def plan(services: Any, **fields: Any) -> Any:
    known = {"session": services.session, "question": BRIGHT, "actions": MOVES, "frames": True, **fields}
    return services.stub.Plan(pb.PlanRequest(**known))


async def test_planners_are_listed(services: Any) -> None:
    answer = await services.stub.ListPlanners(pb.ListPlannersRequest())
    assert {"mpc", "mlm_u", "a_star"} <= {each.name for each in answer.planners}
    assert all(each.description for each in answer.planners)


async def test_a_plan_is_what_the_world_then_does(services: Any) -> None:
    before = await services.standing()
    found = await plan(services, horizon=4, candidates=8)
    assert (found.planner, len(found.actions), found.iteration_count) == ("mpc", 4, 3)
    assert {action.id for action in found.actions} <= {0, 1, 2}
    assert 0.0 <= found.confidence <= 1.0
    assert found.spent.chunk_count <= found.spent.full_node_count <= found.spent.full_chunk_count
    assert await services.standing() == before
    assert services.session_count == 1
    done = await services.video.Step(video_pb.StepRequest(session=services.session, actions=found.actions))
    made = b"".join(chunk.frames.tensor.data for chunk in done.chunks)
    assert made == found.frames.tensor.data


async def test_more_iterations_are_never_worse_and_mostly_better(services: Any) -> None:
    question = reward_pb.Question(weights={"motion": 1.0})
    gains = []
    for seed in range(4):
        asked = {"question": question, "horizon": 10, "candidates": 8, "seed": seed}
        rewards = [(await plan(services, **asked, iterations=count)).judgement.reward for count in (1, 2, 6)]
        assert rewards == sorted(rewards)
        gains.append(rewards[-1] - rewards[0])
    assert max(gains) > 0
    found = await plan(services, **asked, iterations=6)
    assert found.iteration_count == 6
    assert found.spent.chunk_count == 0


async def test_the_budget_is_kept_over_all_iterations(services: Any, serve: Any, tools: Any) -> None:
    found = await plan(services, horizon=4, candidates=16, iterations=16, budget=pb.Budget(chunk_count=30))
    assert found.spent.chunk_count + found.spent.known_chunk_count <= 30
    assert found.iteration_count < 16
    refusal = await tools.refused(plan(services, horizon=8, budget=pb.Budget(chunk_count=1)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "BUDGET_SPENT")
    slow = await serve(TinyWorld(height_px=8, width_px=8, work=200))
    budget = pb.Budget()
    budget.duration.FromMilliseconds(1500)
    found = await plan(slow, horizon=16, candidates=64, iterations=16, budget=budget)
    assert found.spent.total_duration.ToTimedelta().total_seconds() < 6
    assert len(found.actions) <= 16


async def test_what_it_is_for_decides(services: Any) -> None:
    found = {}
    for weight in (1.0, -1.0):
        question = reward_pb.Question(weights={"brightness": weight})
        answer = await plan(services, question=question, horizon=6, candidates=16)
        pixels = np.frombuffer(answer.frames.tensor.data, np.uint8)
        found[weight] = float(pixels.mean())
    assert found[1.0] > found[-1.0]


async def test_a_caller_who_leaves_leaves_nothing(serve: Any) -> None:
    services = await serve(TinyWorld(height_px=8, width_px=8, work=60))
    call = asyncio.ensure_future(plan(services, horizon=16, candidates=64))
    await services.until(lambda: services.engine.scheduler.run_count > 0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await services.until(lambda: services.session_count == 1)
    await services.until(lambda: services.engine.scheduler.run_count == 0)


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "horizon": ({"horizon": 65}, "horizon", "must be 1 to 64, got 65"),
    "candidates": ({"candidates": 1}, "candidates", "must be 2 to 256, got 1"),
    "iterations": ({"iterations": 17}, "iterations", "must be 1 to 16, got 17"),
    "seed": ({"seed": -1}, "seed", "got -1"),
    "action": ({"actions": ["left", "fly"]}, "actions[1]", "must be one of left, right, stay, poison, got 'fly'"),
    "chunks": ({"budget": pb.Budget(chunk_count=5000)}, "budget.chunk_count", "must be 0 to 4096, got 5000"),
    "goal": ({"question": reward_pb.Question(goal="cook an egg")}, "question.goal", "is of no kind"),
}


@pytest.mark.parametrize(("fields", "field", "says"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_told_by_field_value_and_limit(
    services: Any, tools: Any, fields: dict[str, Any], field: str, says: str
) -> None:
    ticks = await services.tick_count()
    refusal = await tools.refused(plan(services, **fields))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert says in refusal.message
    assert await services.tick_count() == ticks


async def test_who_does_not_plan_and_what_is_down(services: Any, tools: Any) -> None:
    refusal = await tools.refused(plan(services, planner="oracle"))
    assert (refusal.code, refusal.details["ResourceInfo"].resource_type) == (NOT_FOUND, "planner")
    assert "known: mpc" in refusal.message
    await services.stop_reward()
    refusal = await tools.refused(plan(services))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REWARD_UNAVAILABLE")
