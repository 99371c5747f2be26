"""A rollout's second run brings what the first did not, whatever its order."""

from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.rollout_nodes import PassedNodes


def node(depth: int, *sequences: int) -> bytes:
    return pb.RolloutResponse(depth=depth, sequences=sequences).SerializeToString()


NODES = [node(0, 0, 1), node(1, 0), node(1, 1), node(0, 2), node(1, 2)]


def test_an_undisturbed_rollout_passes_whatever_it_brings() -> None:
    nodes = PassedNodes()
    assert all(nodes.is_new(each) for each in [*NODES, *NODES])


def test_after_a_break_only_the_rest_is_new_and_only_once() -> None:
    nodes = PassedNodes()
    assert all(nodes.is_new(each) for each in NODES[:3])
    nodes.restart()
    assert [each for each in reversed(NODES) if nodes.is_new(each)] == [NODES[4], NODES[3]]
    nodes.restart()
    assert not any(nodes.is_new(each) for each in NODES)
    assert nodes.resumable


def test_it_gives_up_rather_than_grow_or_guess() -> None:
    nodes = PassedNodes(limit=3)
    for each in NODES[:3]:
        nodes.is_new(each)
    assert nodes.resumable
    assert nodes.is_new(NODES[3])
    assert not nodes.resumable
    nodes = PassedNodes()
    assert nodes.is_new(b"\xff\xff")
    assert not nodes.resumable
