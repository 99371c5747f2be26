"""One ModelStreamInfer: many requests under way, their answers in the order of the requests."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from worldtree_runtime.errors import Unavailable

from worldtree_gateway.relay import let_end

_AHEAD_COUNT = 2  # answers to one request that wait to be written

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True, eq=False)
class _UnderWay(Generic[Response]):
    """One request: its answers, after which comes None, and who makes them."""

    answers: "asyncio.Queue[Response | None]"
    task: "asyncio.Task[None]"


class _Room:
    """For so many requests, and so many bytes of them; the first one always fits."""

    def __init__(self, count: int, size_bytes: int) -> None:
        self._count, self._bytes = count, size_bytes
        self._sizes: deque[int] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    async def enter(self, size_bytes: int) -> bool:
        """Waits until it fits. False: the room is closed, also while somebody waits here."""
        while not self._closed and not self._fits(size_bytes):
            self._changed.clear()
            await self._changed.wait()
        if self._closed:
            return False
        self._sizes.append(size_bytes)
        return True

    def leave(self) -> None:
        """Whoever came first leaves first."""
        self._sizes.popleft()
        self._changed.set()

    def close(self) -> None:
        """Nobody enters any more."""
        self._closed = True
        self._changed.set()

    def _fits(self, size_bytes: int) -> bool:
        if not self._sizes:
            return True
        return len(self._sizes) < self._count and sum(self._sizes) + size_bytes <= self._bytes


class InferStream(Generic[Request, Response]):
    """`answer`: the responses to one request; what it raises ends the stream. `limit`, `limit_bytes`: of requests under
    way; `size_of`: the bytes of one.

    Work is begun in the order of the requests, so that those of one sequence take their turns in it.
    """

    def __init__(
        self,
        answer: Callable[[Request], AsyncGenerator[Response]],
        *,
        limit: int,
        limit_bytes: int,
        size_of: Callable[[Request], int],
    ) -> None:
        self._answer = answer
        self._size_of = size_of
        self._room = _Room(limit, limit_bytes)
        self._order: asyncio.Queue[_UnderWay[Response] | None] = asyncio.Queue()  # None: there are no more
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    async def responses(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Response]:
        """All responses, until the client has ended and everything is answered. Whatever ends it, no work goes on.

        Raises Unavailable after `drain`, and what reading the requests raises.
        """
        reading = asyncio.create_task(self._read(requests), name="infer stream: read")
        try:
            while (first := await self._order.get()) is not None:
                while (response := await first.answers.get()) is not None:
                    yield response
                await first.task
                self._room.leave()
            if self._draining:
                raise Unavailable(
                    "DRAINING", "the gateway is about to stop: go on with a new stream", retry_after_s=1.0
                )
            await reading
        finally:
            self._room.close()  # before anything is waited for: the reader would begin what nobody then ends
            let_end(reading)
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def drain(self) -> None:
        """Ends the stream as soon as what has been asked so far is answered."""
        self._draining = True
        self._room.close()
        self._order.put_nowait(None)

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        try:
            async for request in requests:
                if not await self._room.enter(self._size_of(request)):
                    return
                answers: asyncio.Queue[Response | None] = asyncio.Queue(_AHEAD_COUNT)
                task = asyncio.create_task(self._work(request, answers), name="infer stream: answer")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self._order.put_nowait(_UnderWay(answers, task))
        finally:
            self._order.put_nowait(None)

    async def _work(self, request: Request, answers: "asyncio.Queue[Response | None]") -> None:
        try:
            async with aclosing(self._answer(request)) as responses:
                async for response in responses:
                    await answers.put(response)
        except asyncio.CancelledError:
            raise  # nobody reads what there is
        except BaseException:
            await answers.put(None)
            raise
        await answers.put(None)
