"""JSON is read beside the loop, which goes on meanwhile."""

import asyncio
import threading

import pytest
from worldtree_gateway.json_thread import JsonThread


async def test_the_loop_goes_on_while_a_body_is_read() -> None:
    thread, loop_went_on = JsonThread(), threading.Event()

    def read(body: bytes, more: int) -> int:
        assert loop_went_on.wait(20)
        return len(body) + more

    reading = asyncio.create_task(thread.run(read, b"x" * 5000, 1))
    await asyncio.sleep(0)
    loop_went_on.set()
    assert await reading == 5001
    thread.close()


async def test_what_is_short_is_done_at_once_and_what_is_long_beside_the_loop() -> None:
    thread = JsonThread()
    here = threading.get_ident()
    assert await thread.work(threading.get_ident, 100) == here
    assert await thread.work(threading.get_ident, 100_000) != here
    thread.close()


@pytest.mark.parametrize("size", [1, 5000])
async def test_what_is_wrong_with_a_body_is_raised(size: int) -> None:
    thread = JsonThread()

    def read(_: bytes) -> None:
        raise ValueError("no JSON")

    with pytest.raises(ValueError, match="no JSON"):
        await thread.run(read, b"x" * size)
    thread.close()
