"""What Imagine answers, what it costs, and what it leaves: nothing."""

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest
import worldtree.aio
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import start_gateway
from worldtree_runtime.testing import TinyWorld

ENDING = pb.ImagineResponse
DRAW = pb.Sampling(count=16, horizon=8, seed=3, actions=["left", "right", "stay"])
SEQUENCES = ([0, 1, 2], [2, 2, 2], [0, 1, 1], [1, 0, 2], [0, 0])


def pixels(frames: common.Frames) -> np.ndarray:
    return np.frombuffer(frames.tensor.data, np.uint8).reshape(tuple(frames.tensor.shape))


async def ranked_by_hand(services: Any, sequences: Any) -> list[tuple[int, float]]:
    """The same futures by a Rollout and a Rank of the test's own: indices and rewards, best first."""
    now = pixels((await services.standing()).last_frame)
    request = video_pb.RolloutRequest(
        session=services.session,
        sequences=[video_pb.ActionSequence(actions=[video_pb.Action(id=each) for each in own]) for own in sequences],
    )
    made: dict[tuple[int, int], np.ndarray] = {}
    async for node in services.video.Rollout(request):
        for index in node.sequences:
            made[index, node.depth] = pixels(node.chunk.frames)
    clips = []
    for index, actions in enumerate(sequences):
        frames = np.concatenate([now, *(made[index, depth] for depth in range(len(actions)))])
        tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=frames.shape, data=frames.tobytes())
        clips.append(reward_pb.Clip(frames=common.Frames(tensor=tensor), actions=actions))
    question = reward_pb.Question(goal="a bright clip")
    answer = await services.reward.Rank(reward_pb.RankRequest(question=question, candidates=clips))
    return [(each.index, each.judgement.reward) for each in answer.ranked]


async def test_in_one_round_it_is_what_a_rollout_and_a_rank_say(services: Any, tools: Any) -> None:
    before = await services.standing()
    (answer,) = await services.imagined(given=tools.given(*SEQUENCES), rounds=1, keep=5)
    assert [(each.index, each.judgement.reward) for each in answer.futures] == await ranked_by_hand(services, SEQUENCES)
    assert (answer.ending, answer.round, answer.round_count) == (ENDING.ENDING_COMPLETE, 1, 1)
    assert answer.futures[0].rank == 1
    for future in answer.futures:
        actions = SEQUENCES[future.index]
        assert [action.id for action in future.actions] == actions
        assert future.chunk_count == len(actions)
        assert list(future.frames.tensor.shape) == [len(actions), 8, 8, 3]
        assert {each.name for each in future.judgement.dimensions} == {"brightness", "motion"}
    assert await services.standing() == before
    assert services.session_count == 1


async def test_rounds_cost_fewer_chunks_and_each_tells_where_it_stands(services: Any) -> None:
    answers = await services.imagined(sampling=DRAW, keep=2)
    assert [each.round for each in answers] == [1, 2, 3, 4]
    assert [each.alive_count for each in answers] == [16, 8, 4, 2]
    assert [each.ending for each in answers] == [0, 0, 0, ENDING.ENDING_COMPLETE]
    assert not any(future.HasField("frames") for each in answers[:-1] for future in each.futures)
    last = answers[-1]
    assert len(last.futures) == 2
    assert all(future.chunk_count == 8 and future.HasField("frames") for future in last.futures)
    assert last.spent.full_chunk_count == 16 * 8
    assert last.spent.chunk_count + last.spent.known_chunk_count < 0.6 * last.spent.full_node_count
    assert timedelta(0) < last.spent.score_duration.ToTimedelta() < last.spent.total_duration.ToTimedelta()
    assert (await services.metric("worldtree_imaginings_ended_total"))['{ending="complete"}'] == 1
    assert sum((await services.metric("worldtree_imagined_chunks_total")).values()) == (
        last.spent.chunk_count + last.spent.known_chunk_count
    )


async def test_no_chunk_is_made_twice_and_what_is_known_costs_nothing(services: Any, tools: Any) -> None:
    sequences = tools.given(*SEQUENCES)
    *_, first = await services.imagined(given=sequences, halving=1.0, keep=5)
    nodes = first.spent.full_node_count
    assert (first.spent.chunk_count, first.spent.known_chunk_count) == (nodes, 0)
    *_, again = await services.imagined(given=sequences, halving=1.0, keep=5)
    assert (again.spent.chunk_count, again.spent.known_chunk_count) == (0, nodes)
    assert [each.SerializeToString() for each in again.futures] == [each.SerializeToString() for each in first.futures]


async def test_names_and_ids_and_seeds_are_the_same_as_in_a_rollout(services: Any) -> None:
    by_name = video_pb.ActionSequence(actions=[video_pb.Action(name="left"), video_pb.Action(name="stay")])
    by_id = video_pb.ActionSequence(actions=[video_pb.Action(id=0), video_pb.Action(id=2)])
    reseeded = video_pb.ActionSequence(actions=[video_pb.Action(id=0), video_pb.Action(id=2)], seed=99)
    *_, answer = await services.imagined(given=pb.Given(sequences=[by_name, by_id, reseeded]), keep=3)
    assert answer.spent.full_node_count == 4
    hashes = {each.index: each.state_hash for each in answer.futures}
    assert hashes[0] == hashes[1] != hashes[2]
    ranks = {each.index: each.rank for each in answer.futures}
    assert ranks[0] == ranks[1]


async def test_weights_of_the_request_turn_the_order_round(services: Any, tools: Any) -> None:
    async def order(weight: float) -> list[int]:
        question = reward_pb.Question(weights={"brightness": weight})
        (answer,) = await services.imagined(given=tools.given([0] * 4, [1] * 4), rounds=1, question=question)
        return [each.index for each in answer.futures]

    assert await order(1.0) == (await order(-1.0))[::-1]


async def test_the_budget_of_chunks_is_kept(services: Any) -> None:
    *earlier, last = await services.imagined(sampling=DRAW, budget=pb.Budget(chunk_count=12))
    assert last.ending == ENDING.ENDING_OUT_OF_CHUNKS
    assert last.round == len({each.round for each in [*earlier, last]})
    assert last.alive_count > 0
    assert 0 < last.spent.chunk_count + last.spent.known_chunk_count <= 12
    assert last.futures[0].HasField("judgement")
    assert last.futures[0].chunk_count < 8


async def test_the_budget_of_time_is_kept_and_what_was_made_is_ranked(serve: Any) -> None:
    services = await serve(TinyWorld(height_px=8, width_px=8, work=200))
    budget = pb.Budget()
    budget.duration.FromMilliseconds(1500)
    *_, last = await services.imagined(
        sampling=pb.Sampling(count=64, horizon=16, actions=["left", "right"]), budget=budget, rounds=1
    )
    assert last.ending == ENDING.ENDING_OUT_OF_TIME
    assert 0 < last.spent.chunk_count < last.spent.full_node_count
    assert (last.round, last.futures[0].HasField("judgement"), last.futures[0].HasField("frames")) == (0, True, True)
    assert last.futures[0].chunk_count > 0
    assert last.spent.imagine_duration.ToTimedelta().total_seconds() < 5


async def test_more_actions_than_one_rollout_takes_are_imagined_in_several(serve: Any) -> None:
    services = await serve(video_settings={"max_rollout_chunks": 12}, max_chunks=12)
    sampling = pb.Sampling(count=4, horizon=4, seed=1, actions=["left", "right"])
    *_, parted = await services.imagined(sampling=sampling, halving=1.0)
    assert parted.spent.chunk_count + parted.spent.known_chunk_count <= 12
    assert parted.round >= 3


async def test_it_ends_as_soon_as_it_is_sure(services: Any, tools: Any) -> None:
    sequences = tools.given([0] * 8, [1] * 8)
    whole = await services.imagined(given=sequences, halving=1.0, keep=2)
    lead = abs(whole[0].futures[0].judgement.reward - whole[0].futures[1].judgement.reward)
    assert lead > 0
    early = await services.imagined(given=sequences, halving=1.0, keep=2, stop_at=0.501)
    assert early[-1].ending == ENDING.ENDING_CONFIDENT
    assert early[-1].round == 1
    assert early[-1].futures[0].HasField("frames")


async def test_a_caller_who_leaves_leaves_nothing(serve: Any) -> None:
    services = await serve(TinyWorld(height_px=8, width_px=8, work=60))
    before = await services.standing()
    call = services.imagine(sampling=pb.Sampling(count=64, horizon=16, actions=["left", "right"]))
    await services.until(lambda: services.session_count == 2)
    await services.until(lambda: services.engine.scheduler.run_count > 0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        async for _ in call:
            pass
    await services.until(lambda: services.session_count == 1)
    await services.until(lambda: services.engine.scheduler.run_count == 0)
    assert await services.standing() == before
    assert (await services.metric("worldtree_imaginings")) == {"": 0.0}


async def test_a_deadline_ends_it_too(serve: Any) -> None:
    services = await serve(TinyWorld(height_px=8, width_px=8, work=60))
    request = pb.ImagineRequest(
        session=services.session,
        question=reward_pb.Question(goal="a bright clip"),
        sampling=pb.Sampling(count=64, horizon=16, actions=["left", "right"]),
    )
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in services.stub.Imagine(request, timeout=0.4):
            pass
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await services.until(lambda: services.session_count == 1)


async def test_many_at_once_are_answered_as_alone(services: Any) -> None:
    draws = [pb.Sampling(count=8, horizon=4, seed=seed, actions=["left", "right", "stay"]) for seed in range(6)]
    together = await asyncio.gather(*(services.imagined(sampling=draw) for draw in draws))
    assert sum(each[-1].spent.chunk_count for each in together) > 0
    alone = [(await services.imagined(sampling=draw))[-1].futures for draw in draws]
    for one, many in zip(alone, together, strict=True):
        assert [each.SerializeToString() for each in one] == [each.SerializeToString() for each in many[-1].futures]


async def test_through_a_gateway_before_all_of_them(services: Any) -> None:
    settings = GatewaySettings(
        port=0,
        metrics_port=0,
        video=[services.video_address],
        reward=[services.reward_address],
        navigator=[services.navigator.address],
    )
    async with start_gateway(settings) as gateway:
        await gateway.wait_ready()
        async with worldtree.aio.Client(gateway.server.address) as client:
            world = await client.session(services.session)
            rounds: list[int] = []
            found = await client.navigator.imagine(
                world,
                candidates=8,
                horizon=4,
                goal="a bright clip",
                actions=["left", "right"],
                on_round=lambda each: rounds.append(each.round),
            )
            assert rounds == [1, 2, 3, 4]
            assert found.ending == "complete"
            assert set(found.best.actions) <= {"left", "right"}
            assert found.best.score is not None
