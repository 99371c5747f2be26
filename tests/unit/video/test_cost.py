"""What a tick is expected to cost, from what was timed and what was seen."""

import pytest
from worldtree_video.cost import CostModel, Overhead

CPU = {1: 0.003, 2: 0.0054, 4: 0.0102, 8: 0.0198}
GPU = {1: 0.010, 2: 0.010, 4: 0.010, 8: 0.011}


def test_sizes_between_those_timed_lie_on_a_line_and_larger_ones_go_on_along_the_last() -> None:
    cost = CostModel(CPU)
    assert cost.denoise_s(4) == 0.0102
    assert cost.denoise_s(3) == pytest.approx(0.0078)
    assert cost.denoise_s(10) == pytest.approx(0.0198 + 2 * 0.0024)


def test_a_chunk_costs_its_evaluations_and_a_commit() -> None:
    cost = CostModel(CPU)
    assert cost.chunk_s(4) == pytest.approx(4 * 0.003 + 0.003)  # the commit is guessed until one was seen
    for _ in range(200):
        cost.observe(denoised_count=0, denoise_s=0.0, committed_count=1, commit_s=0.001)
    assert cost.chunk_s(4) == pytest.approx(4 * 0.003 + 0.001, rel=0.01)
    assert cost.chunk_s(2, 2) == pytest.approx(2 * 0.0054 + cost.commit_s(2))


def test_one_hiccup_moves_an_estimate_little_and_a_slower_machine_is_learnt() -> None:
    cost = CostModel(CPU)
    cost.observe(denoised_count=1, denoise_s=1.0, committed_count=0, commit_s=0.0)
    assert cost.denoise_s(1) == pytest.approx(0.00345)
    for _ in range(100):
        cost.observe(denoised_count=1, denoise_s=0.009, committed_count=0, commit_s=0.0)
    assert cost.denoise_s(1) == pytest.approx(0.009, rel=0.05)


def test_sizes_that_are_not_run_get_slower_with_the_machine_and_keep_what_is_their_own() -> None:
    cost = CostModel(CPU)
    for _ in range(1000):
        cost.observe(denoised_count=1, denoise_s=0.0039, committed_count=0, commit_s=0.0)  # 0.9 ms of its own
        cost.observe(denoised_count=8, denoise_s=0.0207, committed_count=0, commit_s=0.0)
    assert cost.denoise_s(1) == pytest.approx(0.0039, rel=0.02)
    assert cost.denoise_s(8) == pytest.approx(0.0207, rel=0.02)
    for _ in range(1000):
        cost.observe(denoised_count=8, denoise_s=0.0414, committed_count=0, commit_s=0.0)  # half as fast
    assert cost.denoise_s(1) == pytest.approx(0.0078, rel=0.15)


def test_a_size_that_was_timed_in_a_bad_moment_is_never_dearer_than_a_larger_one() -> None:
    cost = CostModel({**CPU, 1: 0.1})
    assert cost.denoise_s(1) == CPU[2]


def test_members_share_a_tick_where_a_batch_is_nearly_free() -> None:
    assert CostModel(CPU).together(8, 1.25) == 1
    assert CostModel(GPU).together(8, 1.25) == 8
    assert CostModel(GPU).together(3, 1.25) == 3


def test_a_tick_is_as_large_as_the_time_it_has_and_never_empty() -> None:
    cost = CostModel(CPU)
    assert cost.within(8, 1.0) == 8
    assert cost.within(8, 0.011) == 4
    assert cost.within(8, -1.0) == 1


def test_nothing_timed_is_free_until_it_was_seen() -> None:
    cost = CostModel({})
    assert cost.chunk_s(4) == 0.0
    cost.observe(denoised_count=2, denoise_s=0.02, committed_count=2, commit_s=0.01)
    assert cost.denoise_s(2) == 0.02
    assert cost.denoise_s(1) == 0.02
    assert cost.chunk_s(4, 2) == pytest.approx(0.09)


def test_the_overhead_is_learnt_from_ticks_that_had_work_waiting() -> None:
    overhead = Overhead()
    assert overhead.stretched(2.0) == 2.0
    now = 0.0
    for _ in range(200):
        overhead.after(now)
        overhead.observe(begun_s=now + 0.002, ended_s=now + 0.012, graphs_s=0.008)
        now += 0.012
    assert overhead.stretched(1.0) == pytest.approx(1.5, rel=0.01)


def test_time_without_work_is_no_overhead() -> None:
    overhead = Overhead()
    for tick in range(200):
        overhead.after(None)
        overhead.observe(begun_s=10.0 * tick, ended_s=10.0 * tick + 0.01, graphs_s=0.01)
    assert overhead.stretched(1.0) == pytest.approx(1.0)
