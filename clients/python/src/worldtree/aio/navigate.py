"""A robot that is steered, for asyncio: what it sees goes out, chunks of actions come in."""

import time
from types import TracebackType
from typing import Any

from worldtree import _navigator_calls as _calls
from worldtree.actions import ActionsLike
from worldtree.aio._stream import Stream
from worldtree.aio._transport import Transport
from worldtree.errors import Cancelled, ObservationRefused
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator_convert import action_chunk_from_pb, started_from_pb
from worldtree.navigator_types import ActionChunk, NavigationInfo


class Navigation:
    """As `worldtree.navigate.Navigation`, awaited. It begins on entering its `async with`."""

    def __init__(self, transport: Transport, start: pb.NavigateRequest) -> None:
        self._transport, self._start = transport, start
        self._stream: Stream | None = None
        self._info: NavigationInfo | None = None
        self._began_s = 0.0
        self._sent_count = 0

    @property
    def info(self) -> NavigationInfo:
        assert self._info is not None, "the navigation has not begun: use `async with`"
        return self._info

    async def observe(self, frame: Any, executed: ActionsLike = (), *, taken_at: float | None = None) -> ActionChunk:
        """What to do, now that the robot sees `frame`. Raises ObservationRefused for one that cannot be used."""
        own = self.send(frame, executed, taken_at=taken_at)
        while (answer := await self._next()).HasField("chunk") and answer.chunk.observation < own:
            pass  # of one that was sent before, and not waited for
        return self._read(answer)

    def send(self, frame: Any, executed: ActionsLike = (), *, taken_at: float | None = None) -> int:
        """As `observe`, without waiting; which of the stream's it is, from 0. The newest that waits is planned from."""
        if self._stream is None:
            raise Cancelled("the navigation has ended")
        taken_at_s = self.clock_s if taken_at is None else taken_at
        self._stream.write(_calls.observation(frame, executed, taken_at_s))
        self._sent_count += 1
        return self._sent_count - 1

    async def receive(self) -> ActionChunk:
        """The next chunk. Raises ObservationRefused, and Cancelled when the stream has ended."""
        return self._read(await self._next())

    def _read(self, answer: pb.NavigateResponse) -> ActionChunk:
        if answer.HasField("refusal"):
            raise ObservationRefused.of(answer.refusal)
        return action_chunk_from_pb(answer.chunk, self.info.actions)

    @property
    def clock_s(self) -> float:
        """Seconds since the start: the clock of `taken_at` and of `ActionChunk.starts_at_s`."""
        return time.monotonic() - self._began_s

    async def close(self) -> None:
        """Ends the stream. Safe to call again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def __aenter__(self) -> "Navigation":
        """Raises what the server says of the start."""
        self._stream = self._transport.stream("Navigate", service="navigator")
        self._stream.write(self._start)
        try:
            self._info = started_from_pb((await self._next()).started)
            # Not before: the service's clock has begun by now, so that none of our images is from its future.
            self._began_s = time.monotonic()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _next(self) -> pb.NavigateResponse:
        if self._stream is None:
            raise Cancelled("the navigation has ended")
        answer: pb.NavigateResponse | None = await self._stream.read()
        if answer is None:
            self._stream = None
            raise Cancelled("the navigation has ended")
        return answer
