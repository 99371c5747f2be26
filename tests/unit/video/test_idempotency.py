"""A repeat gets the first answer."""

import asyncio

import pytest
from worldtree_video.idempotency import Idempotency


class Counter:
    """A call that can be watched and held up."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        answer = self.calls
        await self.may_end.wait()
        if self.error:
            raise self.error
        return answer


async def test_a_repeat_gets_the_first_answer_and_calls_nothing() -> None:
    calls, counter = Idempotency(ttl_s=10), Counter()
    assert [await calls.once("Fork", "id", counter) for _ in range(3)] == [1, 1, 1]
    assert counter.calls == 1


async def test_answers_are_forgotten_one_by_one_as_their_time_ends() -> None:
    now_s = 0.0
    calls, counter = Idempotency(ttl_s=10, clock=lambda: now_s), Counter()
    for request_id in ("a", "b", "c"):
        await calls.once("Fork", request_id, counter)
        now_s += 4
    now_s = 14.0
    assert [await calls.once("Fork", request_id, counter) for request_id in ("c", "b", "a")] == [3, 4, 5]


async def test_without_a_request_id_or_under_another_or_in_another_method_it_is_another_call() -> None:
    calls, counter = Idempotency(ttl_s=10), Counter()
    for method, request_id in (("Fork", ""), ("Fork", ""), ("Fork", "a"), ("Fork", "b"), ("Restore", "a")):
        await calls.once(method, request_id, counter)
    assert counter.calls == 5


async def test_a_repeat_that_comes_during_the_first_call_waits_for_its_answer() -> None:
    calls, counter = Idempotency(ttl_s=10), Counter()
    counter.may_end.clear()
    both = [asyncio.create_task(calls.once("Fork", "id", counter)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    counter.may_end.set()
    assert await asyncio.gather(*both) == [1, 1]


async def test_a_caller_that_vanishes_can_come_back_for_the_answer() -> None:
    calls, counter = Idempotency(ttl_s=10), Counter()
    counter.may_end.clear()
    first = asyncio.create_task(calls.once("Fork", "id", counter))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    counter.may_end.set()
    assert await calls.once("Fork", "id", counter) == 1
    assert counter.calls == 1


async def test_a_failure_is_not_remembered() -> None:
    calls, counter = Idempotency(ttl_s=10), Counter()
    counter.error = ValueError("no room")
    with pytest.raises(ValueError, match="no room"):
        await calls.once("Fork", "id", counter)
    counter.error = None
    await asyncio.sleep(0)
    assert await calls.once("Fork", "id", counter) == 2


async def test_an_answer_is_forgotten_after_its_time() -> None:
    now = 0.0
    calls, counter = Idempotency(ttl_s=10, clock=lambda: now), Counter()
    assert await calls.once("Fork", "id", counter) == 1
    now = 9.0
    assert await calls.once("Fork", "id", counter) == 1
    now = 10.0
    assert await calls.once("Fork", "id", counter) == 2


async def test_an_old_failure_does_not_take_a_newer_answer_with_it() -> None:
    now = 0.0
    calls, slow, quick = Idempotency(ttl_s=10, clock=lambda: now), Counter(), Counter()
    slow.may_end.clear()
    slow.error = ValueError("too late")
    first = asyncio.create_task(calls.once("Fork", "id", slow))
    await asyncio.sleep(0)
    now = 11.0
    assert await calls.once("Fork", "id", quick) == 1
    slow.may_end.set()
    with pytest.raises(ValueError, match="too late"):
        await first
    await asyncio.sleep(0)
    assert await calls.once("Fork", "id", quick) == 1
