"""Shelf and scheduler: what lies here, what waits, and what goes next."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_multitask.errors import TooManyWaiting
from worldtree_multitask.scheduler import Scheduler, Waiting
from worldtree_multitask.shelf import Shelf

KEYS = st.sampled_from("abcdef")


@given(st.lists(st.tuples(st.sampled_from(["put", "get", "discard"]), KEYS, st.integers(0, 60))))
def test_a_shelf_keeps_to_its_budget_and_to_the_latest(steps: list[tuple[str, str, int]]) -> None:
    left: list[str] = []
    shelf: Shelf[str] = Shelf(100, given_up=left.append)
    for act, key, size in steps:
        if act == "put":
            shelf.put(key, key, size)
            assert shelf.get(key) == key  # whoever needs it now has it
        elif act == "get":
            assert shelf.get(key) in (key, None)
        else:
            shelf.discard(key)
            assert key not in shelf
        shelf.check_integrity()


def test_the_longest_unused_leaves_first() -> None:
    left: list[str] = []
    shelf: Shelf[int] = Shelf(3, given_up=left.append)
    for index, key in enumerate("abc"):
        shelf.put(key, index, 1)
    assert shelf.get("a") == 0
    shelf.put("d", 3, 1)
    assert left == ["b"]
    shelf.put("huge", 4, 100)  # larger than the room: it stays alone, for the one who needs it
    assert len(shelf) == 1
    shelf.check_integrity()


@given(st.lists(st.tuples(KEYS, st.integers(1, 9), st.booleans()), max_size=60))
def test_each_request_runs_once_with_its_own_merge_and_in_its_order(asked: list[tuple[str, int, bool]]) -> None:
    scheduler = Scheduler(max_batch=8, max_waiting=10_000)
    requests = [Waiting(key, count) for key, count, _ in asked]
    for request in requests:
        scheduler.add(request)
        scheduler.check_integrity()
    for request, (_, _, cancelled) in zip(requests, asked, strict=True):
        request.cancelled = cancelled
    ran: list[Waiting] = []
    while batch := scheduler.next_batch():
        assert len({request.key for request in batch}) == 1
        assert len(batch) == 1 or sum(request.image_count for request in batch) <= 8
        ran += batch
        scheduler.check_integrity()
    assert Counter(map(id, ran)) == Counter(id(each) for each in requests if not each.cancelled)
    for key in "abcdef":
        own = [request for request in requests if request.key == key and not request.cancelled]
        assert [request for request in ran if request.key == key] == own
    assert scheduler.waiting_images == 0


def test_merges_take_turns() -> None:
    scheduler = Scheduler(max_batch=2, max_waiting=100)
    for key in ("a", "a", "a", "a", "b"):
        scheduler.add(Waiting(key, 1))
    assert [batch[0].key for batch in iter(scheduler.next_batch, [])] == ["a", "b", "a"]


def test_more_than_may_wait_is_refused_and_nothing_is_kept_of_it() -> None:
    scheduler = Scheduler(max_batch=8, max_waiting=10)
    scheduler.add(Waiting("a", 8))
    with pytest.raises(TooManyWaiting, match="8 images wait for their run, 10 at most may") as refused:
        scheduler.add(Waiting("a", 3))
    assert refused.value.retry_after_s
    scheduler.check_integrity()
    assert sum(request.image_count for request in scheduler.next_batch()) == 8
    scheduler.add(Waiting("a", 30))  # alone it is taken, or it never could be
    assert len(scheduler.next_batch()) == 1
