"""A rollout's trie, cut into nodes as a server sends it, comes back as the sequences that were asked for."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree import DataLoss, Rollout
from worldtree.actions import actions_to_pb
from worldtree.convert import frames_to_pb
from worldtree.folds import ClipFold, RolloutFold
from worldtree.types import Detail
from worldtree.video.v1 import video_generator_pb2 as pb

Sequences = list[list[int]]
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


def frames_of(prefix: Sequence[int]) -> np.ndarray:
    """Two frames that only this prefix has."""
    seed = 1 + sum((action + 1) * 7**depth for depth, action in enumerate(prefix))
    return np.random.default_rng(seed).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)


def nodes_of(asked: Sequences, detail: Detail) -> list[pb.RolloutResponse]:
    """What a server sends: each distinct prefix once, parents first."""
    nodes: dict[tuple[int, ...], pb.RolloutResponse] = {}
    for index, sequence in enumerate(asked):
        for depth in range(len(sequence)):
            prefix = tuple(sequence[: depth + 1])
            node = nodes.setdefault(
                prefix, pb.RolloutResponse(depth=depth, chunk=pb.Chunk(index=depth, state_hash=repr(prefix)))
            )
            node.sequences.append(index)
            if detail == "all" or (detail == "last" and depth + 1 == len(sequence)):
                node.chunk.frames.CopyFrom(frames_to_pb(frames_of(prefix)))
    for node in nodes.values():
        node.node_count = len(nodes)
    return list(nodes.values())


def fold(asked: Sequences, nodes: Sequence[pb.RolloutResponse], detail: Detail = "all") -> list[Rollout]:
    gathered = RolloutFold([pb.ActionSequence(actions=actions_to_pb(sequence)) for sequence in asked], detail=detail)
    for node in nodes:
        gathered.add(node)
    return gathered.result()


@given(sequences, st.randoms(use_true_random=False))
def test_every_sequence_gets_all_its_frames_whatever_the_order_of_siblings(
    asked: Sequences, dice: random.Random
) -> None:
    nodes = nodes_of(asked, "all")
    dice.shuffle(nodes)
    nodes.sort(key=lambda node: node.depth)
    for sequence, rollout in zip(asked, fold(asked, nodes), strict=True):
        assert list(rollout.actions) == sequence
        assert rollout.state_hash == repr(tuple(sequence))
        assert len(rollout.timings) == len(sequence)
        expected = np.concatenate([frames_of(sequence[: depth + 1]) for depth in range(len(sequence))])
        assert rollout.frames is not None
        np.testing.assert_array_equal(rollout.frames, expected)


@given(sequences)
def test_last_brings_only_the_last_chunk_even_where_another_sequence_goes_on(asked: Sequences) -> None:
    for sequence, rollout in zip(asked, fold(asked, nodes_of(asked, "last"), "last"), strict=True):
        assert rollout.frames is not None
        np.testing.assert_array_equal(rollout.frames, frames_of(sequence))


@given(sequences)
def test_none_brings_hashes_without_frames(asked: Sequences) -> None:
    for sequence, rollout in zip(asked, fold(asked, nodes_of(asked, "none"), "none"), strict=True):
        assert rollout.frames is None
        assert rollout.state_hash == repr(tuple(sequence))


@given(sequences, st.data())
def test_a_stream_that_lost_a_node_is_data_loss_not_a_short_future(asked: Sequences, data: st.DataObject) -> None:
    nodes = nodes_of(asked, "all")
    del nodes[data.draw(st.integers(0, len(nodes) - 1))]
    with pytest.raises(DataLoss, match="of"):
        fold(asked, nodes)


@pytest.mark.parametrize("stray", [{"sequences": [5], "depth": 0}, {"sequences": [0], "depth": 9}])
def test_a_node_that_nobody_asked_for_is_refused(stray: dict[str, object]) -> None:
    with pytest.raises(DataLoss, match="not asked for"):
        fold([[0, 1]], [pb.RolloutResponse(**stray)])  # type: ignore[arg-type]


def test_progress_counts_the_nodes() -> None:
    seen: list[tuple[int, int]] = []
    asked = [[0, 1], [0, 2]]
    planned = [pb.ActionSequence(actions=actions_to_pb(sequence)) for sequence in asked]
    gathered = RolloutFold(planned, progress=lambda done, total: seen.append((done, total)))
    for node in nodes_of(asked, "all"):
        gathered.add(node)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_clip_that_was_cut_short_is_data_loss() -> None:
    clip = ClipFold(actions_to_pb(["left", "left"]))
    with pytest.raises(DataLoss):
        clip.result()
    clip.add(pb.GenerateResponse(start_frames=frames_to_pb(frames_of([0])), chunk_count=2))
    clip.add(pb.GenerateResponse(chunk=pb.Chunk(frames=frames_to_pb(frames_of([1]))), chunk_count=2))
    with pytest.raises(DataLoss, match="1 of 2"):
        clip.result()
    clip.add(pb.GenerateResponse(chunk=pb.Chunk(frames=frames_to_pb(frames_of([2]))), chunk_count=2))
    result = clip.result()
    assert result.actions == ("left", "left")
    np.testing.assert_array_equal(result.frames, np.concatenate([frames_of([1]), frames_of([2])]))
