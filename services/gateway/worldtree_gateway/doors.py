"""The ways in beside gRPC, which make calls to the gateway's own server: opened one by one, closed all at once."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

T = TypeVar("T")


class Doors:
    """Each is open in a task of its own, so that one that takes long to close keeps no other from it."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, door: AbstractAsyncContextManager[T]) -> T:
        """What the context gives. Raises what entering it raises."""
        opened: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def hold() -> None:
            async with door as given:
                if not opened.done():
                    opened.set_result(given)
                await self._closing.wait()

        task = asyncio.create_task(hold(), name="door")
        try:
            await asyncio.wait((task, opened), return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                await task
        except BaseException:
            task.cancel()
            raise
        self._tasks.append(task)
        return opened.result()

    async def close(self) -> None:
        """Returns when all are. Raises what the first raises that fails; who is cancelled cuts them short."""
        self._closing.set()
        await asyncio.gather(*self._tasks)
