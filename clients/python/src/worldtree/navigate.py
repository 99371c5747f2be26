"""A robot that is steered, over a synchronous channel: what it sees goes out, chunks of actions come in."""

import queue
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grpc

from worldtree import _navigator_calls as _calls
from worldtree._status import error_from_rpc
from worldtree._transport import Transport
from worldtree.actions import ActionsLike
from worldtree.errors import Cancelled, ObservationRefused
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator_convert import action_chunk_from_pb, started_from_pb
from worldtree.navigator_types import ActionChunk, NavigationInfo


class Navigation:
    """One stream. `observe` waits for the answer; a robot that must not wait calls `send`, and `receive` in a thread of
    its own. Leaving the `with` ends it; the episode is kept for a while, and a stream that names it goes on with it.
    """

    def __init__(self, transport: Transport, start: pb.NavigateRequest) -> None:
        """Raises what the server says of the start."""
        self._out: queue.SimpleQueue[pb.NavigateRequest | None] = queue.SimpleQueue()
        self._out.put(start)
        self._ended = False
        self._sent_count = 0
        self._stream = transport.stream("Navigate", self._requests(), service="navigator")
        try:
            self.info: NavigationInfo = started_from_pb(self._next().started)
        except BaseException:
            self.close()
            raise
        # Not before: the service's clock has begun by now, so that none of our images is from its future.
        self._began_s = time.monotonic()

    def observe(self, frame: Any, executed: ActionsLike = (), *, taken_at: float | None = None) -> ActionChunk:
        """What to do, now that the robot sees `frame` [height, width, 3] uint8, and has executed so much since the
        observation before. `taken_at`: seconds since the start, of the image; None: now.

        Raises ObservationRefused for one that cannot be used: what it says was executed is then to be said again,
        where the error has a field.
        """
        own = self.send(frame, executed, taken_at=taken_at)
        while (answer := self._next()).HasField("chunk") and answer.chunk.observation < own:
            pass  # of one that was sent before, and not waited for
        return self._read(answer)

    def send(self, frame: Any, executed: ActionsLike = (), *, taken_at: float | None = None) -> int:
        """As `observe`, without waiting; which of the stream's it is, from 0. The newest that waits is planned from."""
        if self._ended:
            raise Cancelled("the navigation has ended")
        taken_at_s = self.clock_s if taken_at is None else taken_at
        self._out.put(_calls.observation(frame, executed, taken_at_s))
        self._sent_count += 1
        return self._sent_count - 1

    def receive(self) -> ActionChunk:
        """The next chunk. Raises ObservationRefused, and Cancelled when the stream has ended."""
        return self._read(self._next())

    def _read(self, answer: pb.NavigateResponse) -> ActionChunk:
        if answer.HasField("refusal"):
            raise ObservationRefused.of(answer.refusal)
        return action_chunk_from_pb(answer.chunk, self.info.actions)

    @property
    def clock_s(self) -> float:
        """Seconds since the start: the clock of `taken_at` and of `ActionChunk.starts_at_s`."""
        return time.monotonic() - self._began_s

    def close(self) -> None:
        """Ends the stream. Safe to call again."""
        self._ended = True
        self._out.put(None)
        self._stream.cancel()

    def __enter__(self) -> "Navigation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _requests(self) -> Iterator[pb.NavigateRequest]:
        while (request := self._out.get()) is not None:
            yield request

    def _next(self) -> pb.NavigateResponse:
        try:
            answer: pb.NavigateResponse | None = next(self._stream, None)
        except grpc.RpcError as error:
            self._ended = True
            self._out.put(None)
            raise error_from_rpc(error) from error
        if answer is None:
            self._ended = True
            self._out.put(None)
            raise Cancelled("the navigation has ended")
        return answer
