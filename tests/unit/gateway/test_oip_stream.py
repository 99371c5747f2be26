"""One stream of requests: answers in their order, work side by side, and no task left whatever ends it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

import pytest
from worldtree_gateway.oip_stream import InferStream
from worldtree_runtime.errors import Unavailable


async def each(requests: Iterable[int]) -> AsyncIterator[int]:
    for request in requests:
        yield request


def open_stream(answer: Any, *, limit: int, limit_bytes: int = 1000) -> InferStream[int, Any]:
    return InferStream(answer, limit=limit, limit_bytes=limit_bytes, size_of=lambda request: 10 * (request + 1))


async def collect(responses: AsyncGenerator[int], told: list[int]) -> None:
    """To its end, whatever that is: what came before it is in `told`."""
    async with aclosing(responses):
        async for response in responses:
            told.append(response)  # noqa: PERF401


async def until_idle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def tasks() -> int:
    return len(asyncio.all_tasks())


async def test_answers_come_in_the_order_of_the_requests() -> None:
    async def answer(request: int) -> AsyncGenerator[tuple[int, int]]:
        for part in range(3):
            await asyncio.sleep(0.001 * (5 - request))
            yield request, part

    stream = open_stream(answer, limit=8)
    told = [response async for response in stream.responses(each(range(5)))]
    assert told == [(request, part) for request in range(5) for part in range(3)]


async def test_requests_are_worked_on_side_by_side_up_to_the_limit() -> None:
    working, most = 0, 0
    go_on = asyncio.Event()

    async def answer(request: int) -> AsyncGenerator[int]:
        nonlocal working, most
        working += 1
        most = max(most, working)
        await go_on.wait()
        working -= 1
        yield request

    stream = open_stream(answer, limit=3)
    told: list[int] = []
    collecting = asyncio.create_task(collect(stream.responses(each(range(10))), told))
    await until_idle()
    assert working == most == 3
    go_on.set()
    await collecting
    assert told == list(range(10))
    assert most == 3


async def test_answers_that_nobody_reads_are_not_made() -> None:
    made = 0

    async def answer(_request: int) -> AsyncGenerator[int]:
        nonlocal made
        for part in range(100):
            made += 1
            yield part

    stream = open_stream(answer, limit=2)
    async with aclosing(stream.responses(each([0]))) as responses:
        assert await anext(responses) == 0
        await until_idle()
        assert made <= 5
        assert await anext(responses) == 1


async def test_a_client_that_leaves_ends_all_work() -> None:
    ended: list[int] = []

    async def answer(request: int) -> AsyncGenerator[int]:
        try:
            yield request
            await asyncio.Event().wait()
        finally:
            ended.append(request)

    before = tasks()
    stream = open_stream(answer, limit=4)
    async with aclosing(stream.responses(each(range(3)))) as responses:
        assert await anext(responses) == 0
        await until_idle()
    assert sorted(ended) == [0, 1, 2]
    await until_idle()
    assert tasks() == before


async def test_what_an_answer_raises_ends_the_stream_after_what_came_before() -> None:
    async def answer(request: int) -> AsyncGenerator[int]:
        yield request
        if request == 1:
            raise ZeroDivisionError
        await asyncio.sleep(0.001)

    before, told = tasks(), list[int]()
    with pytest.raises(ZeroDivisionError):
        await collect(open_stream(answer, limit=4).responses(each(range(4))), told)
    assert told == [0, 1]
    await until_idle()
    assert tasks() == before


async def test_what_reading_raises_ends_the_stream_after_what_was_asked() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 0
        raise ZeroDivisionError

    async def answer(request: int) -> AsyncGenerator[int]:
        await asyncio.sleep(0.001)
        yield request

    told: list[int] = []
    with pytest.raises(ZeroDivisionError):
        await collect(open_stream(answer, limit=4).responses(requests()), told)
    assert told == [0]


async def test_a_drain_answers_what_was_asked_and_ends() -> None:
    asked = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        yield 0
        yield 1
        asked.set()
        await asyncio.Event().wait()

    async def answer(request: int) -> AsyncGenerator[int]:
        await asyncio.sleep(0.001)
        yield request

    stream = open_stream(answer, limit=4)
    told: list[int] = []
    collecting = asyncio.create_task(collect(stream.responses(requests()), told))
    await asked.wait()
    stream.drain()
    with pytest.raises(Unavailable):
        await collecting
    assert told == [0, 1]


async def test_large_requests_wait_for_one_another() -> None:
    working: list[int] = []
    go_on = asyncio.Event()

    async def answer(request: int) -> AsyncGenerator[int]:
        working.append(request)
        await go_on.wait()
        yield request

    told: list[int] = []
    stream = open_stream(answer, limit=8, limit_bytes=60)
    collecting = asyncio.create_task(collect(stream.responses(each([0, 1, 2, 3, 99, 0])), told))
    await until_idle()
    assert working == [0, 1, 2]  # 10 + 20 + 30 bytes
    go_on.set()
    await collecting
    assert told == [0, 1, 2, 3, 99, 0]


async def test_requests_that_wait_for_room_wait_no_longer_than_the_stream() -> None:
    begun: list[int] = []

    async def answer(request: int) -> AsyncGenerator[int]:
        begun.append(request)
        await asyncio.Event().wait()
        yield request

    before, told = tasks(), list[int]()
    collecting = asyncio.create_task(collect(open_stream(answer, limit=2).responses(each(range(9))), told))
    await until_idle()
    collecting.cancel()  # as gRPC does where the client leaves
    await asyncio.wait([collecting])
    await until_idle()
    assert tasks() == before
    assert begun == [0, 1]


async def test_nothing_is_begun_once_the_stream_is_over() -> None:
    under_way: list[int] = []

    async def requests() -> AsyncIterator[int]:
        for request in range(6):
            await asyncio.sleep(0)
            yield request

    async def answer(request: int) -> AsyncGenerator[int]:
        if request == 0:
            raise ZeroDivisionError
        under_way.append(request)
        try:
            for part in range(5):
                yield part
        finally:
            under_way.remove(request)

    before, told = tasks(), list[int]()
    with pytest.raises(ZeroDivisionError):
        await collect(open_stream(answer, limit=32).responses(requests()), told)
    await until_idle()
    assert under_way == told == []
    assert tasks() == before


async def test_a_drain_does_not_wait_for_what_waits_for_room() -> None:
    go_on = asyncio.Event()

    async def answer(request: int) -> AsyncGenerator[int]:
        await go_on.wait()
        yield request

    before, told = tasks(), list[int]()
    stream = open_stream(answer, limit=2)
    collecting = asyncio.create_task(collect(stream.responses(each(range(9))), told))
    await until_idle()
    stream.drain()
    await until_idle()
    go_on.set()
    with pytest.raises(Unavailable):
        await collecting
    assert told == [0, 1]
    await until_idle()
    assert tasks() == before
