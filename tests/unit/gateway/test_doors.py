"""Doors close together, and one that fails to open is nobody's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from worldtree_gateway.doors import Doors


@asynccontextmanager
async def door(name: str, log: list[str], *, waits_for: asyncio.Event | None = None) -> AsyncIterator[str]:
    log.append(f"{name} opens")
    try:
        yield name
    finally:
        log.append(f"{name} closes")
        if waits_for is not None:
            await waits_for.wait()
        log.append(f"{name} is closed")


async def test_one_that_takes_long_to_close_keeps_no_other_from_it() -> None:
    doors, log, gate = Doors(), [], asyncio.Event()
    assert await doors.open(door("a", log)) == "a"
    assert await doors.open(door("slow", log, waits_for=gate)) == "slow"
    closing = asyncio.ensure_future(doors.close())
    await asyncio.sleep(0.01)
    assert log[:3] == ["a opens", "slow opens", "a closes"]
    assert sorted(log[3:]) == ["a is closed", "slow closes"]
    assert not closing.done()
    gate.set()
    await closing
    assert log[-1] == "slow is closed"
    await doors.close()  # again, where nothing is open


async def test_who_does_not_open_says_why_and_leaves_the_others_open() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise OSError("the port is taken")
        yield

    doors, log = Doors(), []
    await doors.open(door("a", log))
    with pytest.raises(OSError, match="the port is taken"):
        await doors.open(broken())
    assert log == ["a opens"]
    await doors.close()
    assert log[-1] == "a is closed"


async def test_whoever_has_no_more_time_cuts_them_short() -> None:
    doors, log = Doors(), []
    await doors.open(door("slow", log, waits_for=asyncio.Event()))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await doors.close()
    assert log == ["slow opens", "slow closes"]


async def test_who_is_cancelled_while_one_opens_leaves_it_closed() -> None:
    gate, log = asyncio.Event(), []

    @asynccontextmanager
    async def opening() -> AsyncIterator[None]:
        try:
            await gate.wait()
            yield
        finally:
            log.append("closed")

    doors = Doors()
    task = asyncio.ensure_future(doors.open(opening()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert log == ["closed"]
    await doors.close()
