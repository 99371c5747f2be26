"""Policies, and the chain of keys by which equal worlds are known."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_video.branch import Branch
from worldtree_video.domain import Action, KvPolicy, Origin, PolicyKind, Storage, Timing, chain_key, root_key
from worldtree_video.kv_cache import BlockPool, BlockTable

POLICY = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)


@given(window=st.integers(1, 12), data=st.data(), length=st.integers(0, 60))
def test_in_view_are_the_sink_and_the_newest_and_never_more_than_the_window(
    window: int, data: st.DataObject, length: int
) -> None:
    policy = KvPolicy(PolicyKind.SINK_WINDOW, window, data.draw(st.integers(0, window - 1)))
    visible = policy.visible(length)
    assert visible == sorted(set(visible))
    assert len(visible) == min(length, window)
    assert visible[: policy.sink_chunks] == list(range(min(length, policy.sink_chunks)))
    assert not length or visible[-1] == length - 1
    recent = visible[policy.sink_chunks :]
    assert recent == list(range(length - len(recent), length))


def test_a_full_policy_ends_at_its_window_and_the_others_never_do() -> None:
    full = KvPolicy(PolicyKind.FULL, 3)
    assert [full.can_grow(length) for length in range(5)] == [True, True, True, False, False]
    assert all(KvPolicy(kind, 3).can_grow(1000) for kind in (PolicyKind.SLIDING, PolicyKind.SINK_WINDOW))


@pytest.mark.parametrize(("window", "sink"), [(0, 0), (-1, 0), (3, 3), (3, -1)])
def test_a_policy_that_shows_nothing_recent_is_refused(window: int, sink: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        KvPolicy(PolicyKind.SINK_WINDOW, window, sink)


def test_any_difference_in_a_chunk_gives_another_key_and_equal_chunks_the_same() -> None:
    base = {"parent": b"p" * 32, "action": Action(1), "seed": 7, "nfe": 2, "given": b""}
    others = [
        {"parent": b"q" * 32},
        {"action": Action(2)},
        {"action": Action((1.0,))},
        {"action": None},
        {"seed": 8},
        {"nfe": 4},
        {"given": b"\0"},
    ]
    assert chain_key(**base) == chain_key(**dict(base))
    keys = [chain_key(**base), *(chain_key(**{**base, **other}) for other in others)]
    assert len(set(keys)) == len(keys)


def test_vectors_of_equal_bytes_and_other_lengths_give_other_keys() -> None:
    vectors = [(), (0.0,), (0.0, 0.0), (0.5,), (0.5, 0.0), (0.0, 0.5)]
    assert len({Action(vector).encode() for vector in vectors}) == len(vectors)


def test_a_start_is_the_same_world_under_any_seed() -> None:
    keys = {chain_key(b"p", Action(1), seed=seed, nfe=0, given=b"pixels") for seed in range(3)}
    assert len(keys) == 1


def test_the_root_tells_models_backends_and_policies_apart() -> None:
    keys = {
        root_key(digest, fingerprint, policy)
        for digest, fingerprint, policy in itertools.product(
            ("a" * 64, "b" * 64),
            ("cpu", "cuda"),
            (POLICY, KvPolicy(PolicyKind.SLIDING, 4), KvPolicy(PolicyKind.FULL, 3)),
        )
    }
    assert len(keys) == 12


def test_a_format_is_another_world_and_the_keys_of_fp32_are_those_from_before_there_were_formats() -> None:
    assert KvPolicy(PolicyKind.SINK_WINDOW, 4, 1, Storage.FP32).encode() == struct.pack("<qq", 4, 1)
    assert len({KvPolicy(PolicyKind.SINK_WINDOW, 4, 1, storage).encode() for storage in Storage}) == len(Storage)


def blank(*, seed: int = 7, pixels: bytes = b"start") -> Branch:
    origin = Origin((pixels, b"second"), (Action(0),))
    branch = Branch(origin, b"root", seed, 2, BlockTable(BlockPool(64), POLICY, reserve_chunks=16))
    for _ in origin.chunks:
        branch.append(branch.given_record(), _block(branch))
    return branch


def _block(branch: Branch) -> int:
    block = branch.table.pool.allocate()
    assert block is not None
    return block


def grow(branch: Branch, *actions: int) -> Branch:
    for action in actions:
        branch.append(branch.next_record(Action(action)), _block(branch))
    return branch


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_branches_have_equal_keys_exactly_when_their_histories_are_equal(first: list[int], second: list[int]) -> None:
    assert (grow(blank(), *first).key == grow(blank(), *second).key) == (first == second)


def test_a_branch_that_went_back_and_took_the_same_way_again_is_where_it_was() -> None:
    branch = grow(blank(), 1, 2, 3)
    key = branch.key
    branch.rewind(2)
    assert branch.chunk_index == 1
    assert grow(branch, 3, 2).key != key
    branch.rewind(2)
    assert grow(branch, 2, 3).key == key


def test_chunks_of_a_start_have_negative_indices_and_the_first_made_is_0() -> None:
    branch = grow(blank(), 1)
    assert [record.chunk_index for record in branch.records] == [-2, -1, 0]
    assert [record.given for record in branch.records] == [True, True, False]


def test_a_fork_under_another_seed_leaves_its_parent_at_the_first_chunk() -> None:
    parent = grow(blank(), 1)
    child = parent.fork(seed=8)
    assert child.key == parent.key
    assert grow(child, 1).key != grow(parent, 1).key


def test_other_start_pixels_are_another_world() -> None:
    assert blank().key != blank(pixels=b"other").key
    assert blank().key == blank(seed=8).key


@pytest.mark.parametrize("chunk_count", [-1, 2])
def test_a_branch_cannot_go_back_past_its_start(chunk_count: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_count must be 0 to 1, got {chunk_count}"):
        grow(blank(), 1).rewind(chunk_count)


@pytest.mark.parametrize(("chunks", "actions"), [((), ()), ((b"a", b"b"), ()), ((b"a",), (Action(1),))])
def test_an_origin_has_one_action_between_each_two_chunks(
    chunks: tuple[bytes, ...], actions: tuple[Action, ...]
) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        Origin(chunks, actions)


def test_the_mean_batch_size_of_a_chunk_without_ticks_is_0() -> None:
    assert Timing().mean_batch_size == 0
    assert Timing(tick_count=2, batch_size_sum=5).mean_batch_size == 2.5
