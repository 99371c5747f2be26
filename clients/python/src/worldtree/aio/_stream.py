"""A bidirectional stream for asyncio, carried by gRPC's threads instead of grpc.aio.

grpc.aio loses the server's status when a write is under way as the stream ends: it reports "Internal error from Core"
in its place (seen with grpcio 1.85 for every other refused play). A play writes at any time, and its errors must keep
their reason, so here a thread reads and gRPC's own thread writes.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from worldtree._status import error_from_rpc
from worldtree.errors import WorldtreeError

Read = asyncio.Future[Any]


class Stream:
    """One call. Writing never waits; reading is awaited; at most one read at a time."""

    def __init__(self, open_call: Callable[[Iterator[Any]], Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._written: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Read | None] = queue.SimpleQueue()
        self._pending: Read | None = None
        self._call = open_call(iter(self._written.get, None))
        # A daemon: a program that forgets its play must still be able to end.
        threading.Thread(
            target=_answer_reads, args=(self._call, self._reads, self._loop), name="worldtree-play", daemon=True
        ).start()

    def write(self, request: Any | None) -> None:
        """None: no more will come."""
        self._written.put(request)

    def done_writing(self) -> None:
        self._written.put(None)

    async def read(self) -> Any | None:
        """The next message, None at the end. Raises what the server said when it ended the stream with an error."""
        if self._pending is None:
            self._pending = self._loop.create_future()
            self._reads.put(self._pending)
        pending = self._pending
        try:
            # Shielded: a read that was given up is the next one's, or its message would be lost.
            return await asyncio.shield(pending)
        finally:
            if pending.done():
                self._pending = None

    def cancel(self) -> None:
        self._call.cancel()
        self._written.put(None)
        self._reads.put(None)


def _answer_reads(call: Any, reads: "queue.SimpleQueue[Read | None]", loop: asyncio.AbstractEventLoop) -> None:
    while (read := reads.get()) is not None:
        error: WorldtreeError | None = None
        message = None
        try:
            message = next(call, None)
        except grpc.RpcError as failure:
            error = error_from_rpc(failure)
        try:
            loop.call_soon_threadsafe(_settle, read, message, error)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more


def _settle(read: Read, message: Any, error: WorldtreeError | None) -> None:
    if read.done():
        return
    if error is not None:
        read.set_exception(error)
    else:
        read.set_result(message)
