"""Clips that begin alike, scored as one tree while they are made."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from worldtree.reward.v1 import reward_scorer_pb2 as pb

BRIGHT = pb.Question(goal="a bright clip")
Node = pb.ScoreTreeRequest.Node
INVALID = grpc.StatusCode.INVALID_ARGUMENT

# parent and action of each node but the root
SHAPE = ((0, 1), (1, 2), (1, 0), (0, 0), (4, 1), (2, 1), (6, 2))


def nodes(first: int = 0, last: int = len(SHAPE), *, judge: bool = True) -> list[Node]:
    """Of the shape, without the root; numbered from 1."""
    return [Node(parent=parent, action=action, judge=judge) for parent, action in SHAPE[first:last]]


def path(node: int) -> list[int]:
    """Nodes from the root to one."""
    found = [node]
    while found[0]:
        found.insert(0, SHAPE[found[0] - 1][0])
    return found


async def messages(*requests: pb.ScoreTreeRequest) -> AsyncIterator[pb.ScoreTreeRequest]:
    for request in requests:
        yield request


async def answers(service: Any, *requests: pb.ScoreTreeRequest) -> list[pb.ScoreTreeResponse]:
    return [answer async for answer in service.stub.ScoreTree(messages(*requests))]


@pytest.mark.parametrize("cuts", [(7,), (1, 7), (2, 3, 6, 7), (1, 2, 3, 4, 5, 6, 7)])
async def test_a_node_is_judged_as_the_clip_that_ends_there_however_the_tree_is_cut(
    service: Any, tools: Any, cuts: Sequence[int]
) -> None:
    frames = tools.pixels(1 + len(SHAPE))
    first, requests = 0, [pb.ScoreTreeRequest(question=BRIGHT, nodes=[Node()], frames=tools.frames(frames[:1]))]
    for last in cuts:
        part = tools.frames(frames[1 + first : 1 + last])
        requests.append(pb.ScoreTreeRequest(nodes=nodes(first, last), frames=part))
        first = last
    found = await answers(service, *requests)
    assert [answer.HasField("model") for answer in found] == [True] + [False] * len(cuts)
    judged = {each.node: each.judgement for answer in found for each in answer.judged}
    assert sorted(judged) == list(range(1, 1 + len(SHAPE)))
    for node, judgement in judged.items():
        on_the_way = path(node)
        clip = tools.clip(frames[on_the_way], [SHAPE[each - 1][1] for each in on_the_way[1:]])
        assert judgement == (await service.score(clip, BRIGHT)).judgement


async def test_only_what_is_asked_for_is_judged_and_what_is_shared_is_looked_at_once(service: Any, tools: Any) -> None:
    frames = tools.pixels(8)
    asked = [*nodes(0, 6, judge=False), *nodes(6, 7)]
    (answer,) = await answers(
        service, pb.ScoreTreeRequest(question=BRIGHT, nodes=[Node(), *asked], frames=tools.frames(frames))
    )
    assert [each.node for each in answer.judged] == [7]
    assert sum((await service.metric("worldtree_score_clips_total")).values()) == 1
    assert sum((await service.metric("worldtree_score_batch_size_sum")).values()) == 8


async def test_what_is_forgotten_makes_room(serve: Any, tools: Any) -> None:
    service = await serve(max_tree_nodes=3)
    frames = tools.frames(tools.pixels(2))
    root = pb.ScoreTreeRequest(question=BRIGHT, nodes=[Node(), Node(action=1)], frames=frames)
    two = pb.ScoreTreeRequest(nodes=[Node(parent=1, judge=True), Node(parent=1, judge=True)], frames=frames)
    refusal = await tools.refused(service.stub.ScoreTree(messages(root, two)))
    assert (refusal.code, refusal.field) == (INVALID, "nodes")
    assert "must make a tree of 3 at most, got 4" in refusal.message
    two.forget.append(0)
    _, answer = await answers(service, root, two)
    assert [each.node for each in answer.judged] == [2, 3]


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "parent_to_come": ({"nodes": [Node(parent=2)]}, "nodes[0].parent", "got 2, which has yet to come"),
    "parent_itself": ({"nodes": [Node(parent=1)]}, "nodes[0].parent", "got 1, which has yet to come"),
    "parent_negative": ({"nodes": [Node(parent=-1)]}, "nodes[0].parent", "got -1"),
    "parent_forgotten": ({"nodes": [Node(parent=0)], "forget": [0]}, "nodes[0].parent", "got 0, which was forgotten"),
    "forgotten_unknown": ({"nodes": [Node(parent=0)], "forget": [5]}, "forget[0]", "got 5, which has yet to come"),
    "action": ({"nodes": [Node(parent=0, action=3)]}, "nodes[0].action", "must be an action 0 to 2, got 3"),
    "action_negative": ({"nodes": [Node(parent=0, action=-1)]}, "nodes[0].action", "got -1"),
    "no_nodes": ({"nodes": []}, "nodes", "must hold some, got none"),
    "frames": ({"nodes": [Node(parent=0)] * 2}, "frames", "must be as many as nodes, 2, got 1"),
    "question_again": ({"nodes": [Node(parent=0)], "question": BRIGHT}, "question", "in the first message only"),
    "model_again": ({"nodes": [Node(parent=0)], "model": {"name": "tiny-judge"}}, "model", "in the first message only"),
}


@pytest.mark.parametrize(("fields", "field", "says"), BAD.values(), ids=BAD.keys())
async def test_a_bad_message_is_told_by_field_and_value(
    service: Any, tools: Any, fields: dict[str, Any], field: str, says: str
) -> None:
    frames = tools.frames(tools.pixels(1))
    root = pb.ScoreTreeRequest(question=BRIGHT, nodes=[Node()], frames=frames)
    bad = pb.ScoreTreeRequest(frames=frames, **fields)
    refusal = await tools.refused(service.stub.ScoreTree(messages(root, bad)))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert says in refusal.message
    assert sum((await service.metric("worldtree_score_streams")).values()) == 0


async def test_a_tree_without_a_question_a_judged_root_and_too_deep_a_branch(serve: Any, tools: Any) -> None:
    service = await serve(max_steps=2)
    one, frames = tools.frames(tools.pixels(1)), tools.frames(tools.pixels(4))
    chain = [Node(), *(Node(parent=parent) for parent in range(3))]
    for request, field in (
        (pb.ScoreTreeRequest(nodes=[Node()], frames=one), "question"),
        (pb.ScoreTreeRequest(question=BRIGHT, nodes=[Node(judge=True)], frames=one), "nodes[0].judge"),
        (pb.ScoreTreeRequest(question=BRIGHT, nodes=chain, frames=frames), "nodes[3].parent"),
    ):
        refusal = await tools.refused(service.stub.ScoreTree(messages(request)))
        assert (refusal.code, refusal.field) == (INVALID, field)


async def test_trees_and_clips_that_are_scored_at_a_time_share_runs_and_no_bits(service: Any, tools: Any) -> None:
    frames = np.concatenate([tools.pixels(1, 3), tools.pixels(7, 4)])
    request = pb.ScoreTreeRequest(question=BRIGHT, nodes=[Node(), *nodes()], frames=tools.frames(frames))
    (alone,) = await answers(service, request)
    found = await asyncio.gather(
        *(answers(service, request) for _ in range(8)),
        *(service.score(tools.clip(tools.pixels(6, k))) for k in range(8)),
    )
    assert all(answer[0].judged == alone.judged for answer in found[:8])


async def test_all_trees_together_hold_so_many_nodes_and_what_ends_makes_room(serve: Any, tools: Any) -> None:
    service = await serve(max_nodes=5)
    frames = tools.pixels(4)
    request = pb.ScoreTreeRequest(question=BRIGHT, nodes=[Node(), *nodes(0, 3)], frames=tools.frames(frames))
    call = service.stub.ScoreTree()
    await call.write(request)
    assert len((await call.read()).judged) == 3
    refusal = await tools.refused(service.stub.ScoreTree(messages(request)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TREES_FULL")
    assert "would have 8 nodes, 5 at most" in refusal.message
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    (answer,) = await answers(service, request)
    assert len(answer.judged) == 3
