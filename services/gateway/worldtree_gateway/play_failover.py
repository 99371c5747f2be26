"""Plays that outlive their replica: begun again at another where their reader stands, with what they were asked for."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from worldtree.play_log import RESUMES_KEY, PlayLog
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.logs import current_request_id
from worldtree_runtime.tracing import Past, Span, chunk_trace

from worldtree_gateway.audit import note_session
from worldtree_gateway.domain import Method
from worldtree_gateway.errors import GatewayDraining, PlayLogFull, PlayNotContinued
from worldtree_gateway.metadata import Context, forwarded, pass_head, pass_trailers
from worldtree_gateway.relay import CANCELLATION_GRACE_S, Relay, let_end, receive, write
from worldtree_gateway.routing import Route
from worldtree_gateway.verdicts import Failure

# while nobody takes the client's messages, so many are read and kept; then it waits too
_KEPT_COUNT_MAX = 1024
_KEPT_BYTES_MAX = 1 << 20
_LEAVING_S = 2.0  # what plays that are ended have for it, before the drain is over


class PlayFailover:
    """The Play calls of one service. `log_bytes` bounds what one play may have waiting to be done; `left` hears of each
    that a drain of `drain_s` has ended.
    """

    def __init__(
        self,
        relay: Relay,
        *,
        log_bytes: int,
        drain_s: float,
        left: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._relay = relay
        self._log_bytes = log_bytes
        self._drain_s = drain_s
        self._left = left
        self._clock = clock
        self._draining = self._closed = False
        self._plays: set[_Play] = set()
        self._late: asyncio.Task[None] | None = None  # held until it ends

    def begin_drain(self) -> None:
        """Ends the plays whose client goes on at another gateway, with the chunk that they are at, and lets in no more
        of them. The others may end well by themselves, and are ended so near the end of the drain.
        """
        self._draining = True
        late_s = self._drain_s - self._leaving_s
        self._late = asyncio.create_task(self._leave_late(late_s), name="plays: leave late")
        self._leave([play for play in self._plays if play.resumes])

    async def drain(self) -> None:
        """Lets nobody in any more. Returns when those who go on elsewhere have left, or soon: one whose reader takes
        nothing holds up nobody.
        """
        self._closed = True
        await self._end_of(lambda play: play.resumes, self._leaving_s)

    @property
    def _leaving_s(self) -> float:
        return min(_LEAVING_S, self._drain_s / 2)

    async def _leave_late(self, after_s: float) -> None:
        await self._end_of(lambda _: True, after_s)
        self._leave([play for play in self._plays if not play.resumes])

    def _leave(self, plays: "list[_Play]") -> None:
        for play in plays:
            play.leave()
            self._left()

    async def _end_of(self, which: "Callable[[_Play], bool]", within_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while left := [play.ended.wait() for play in self._plays if which(play)]:
                    await asyncio.gather(*left)

    async def stream_stream(self, method: Method, _requests: object, context: Context) -> None:
        first = await context.read()
        request = _begin_of(first)
        if request is None:
            # whatever it is, the video service says what is wrong with it
            await self._relay.pass_streams(method, first, context)
            return
        log = PlayLog(first, request)
        play = _Play(self._relay, method, context, log, first, log_bytes=self._log_bytes, clock=self._clock)
        if self._closed or (self._draining and play.resumes):
            raise GatewayDraining
        note_session(request.session)
        self._plays.add(play)
        try:
            await play.pass_on()
        finally:
            self._plays.discard(play)
            play.ended.set()


class _Play:
    """One call: a task reads the client for as long as it lasts, another writes to each replica in turn."""

    def __init__(
        self,
        relay: Relay,
        method: Method,
        context: Context,
        log: PlayLog,
        first: bytes,
        *,
        log_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._relay = relay
        self._clock = clock
        self._method = method
        self._context = context
        self.ended = asyncio.Event()
        self.resumes = any(key == RESUMES_KEY for key, _ in context.invocation_metadata() or ())
        self._log = log
        self._log_bytes = log_bytes
        self._journey = relay.journey(
            method, first, "play", context.time_remaining(), resumes=log.next_index is not None
        )
        self._call: Any = None
        self._moving: asyncio.Task[Route] | None = None  # while it looks for another replica
        self._writable = asyncio.Event()  # the log may have something to send
        self._readable = asyncio.Event()  # the log may have room
        self._writing = False
        self._flowing = False  # the replica has answered and takes messages
        self._head_passed = False
        self._over = False
        self._passing = False  # a chunk: what is to be written now holds one
        self._mistake: BaseException | None = None  # what ends the play, and is no replica's doing

    def leave(self) -> None:
        """Ends it here: its reader has all that was written, and knows what it asked for."""
        self._fail(GatewayDraining())

    async def pass_on(self) -> None:
        """Returns when the play has ended well."""
        route = await self._await_route(self._journey.begin())
        reading = asyncio.create_task(self._read(), name="play: read")
        reading.add_done_callback(self._task_ended)
        try:
            while True:
                backend, timeout_s = route.backend, self._context.time_remaining()
                if self._mistake is not None:
                    raise self._mistake
                try:
                    await self._pass(route, timeout_s)
                    return
                except asyncio.CancelledError:
                    if self._mistake is not None:
                        raise self._mistake from None  # it cancelled the replica's call; nobody cancelled us
                    raise
                except grpc.aio.AioRpcError as error:
                    failure = self._journey.allows(error, route, repeatable=lambda: True)
                    if failure is None:
                        self._journey.ended("failed")
                        await self._relay.fail(error, backend, self._context, timeout_s)
                self._log.restart()
                self._readable.set()
                route = await self._next(failure, route)
        finally:
            self._over = True
            self._readable.set()
            let_end(reading)

    async def _next(self, failure: Failure, route: Route) -> Route:
        """Where the play goes on. Raises what ends it meanwhile."""
        return await self._await_route(self._journey.next(failure, route))

    async def _await_route(self, found: Coroutine[Any, Any, Route]) -> Route:
        if self._mistake is not None:
            found.close()
            raise self._mistake
        self._moving = asyncio.ensure_future(found)
        try:
            return await self._moving
        except asyncio.CancelledError:
            if self._mistake is not None:
                raise self._mistake from None
            raise
        finally:
            self._moving = None

    async def _pass(self, route: Route, timeout_s: float | None) -> None:
        """The play at one replica. Raises AioRpcError when it ends there otherwise than well."""
        context, backend, expected = self._context, route.backend, self._log.next_index
        resuming = self._log.begun
        span = backend.span(self._method)
        chunks = None if span is None else _ChunkSpans(span)
        metadata = forwarded(context, self._method, route.rehome, admitted=resuming, span=span)
        call = backend.callable(self._method)(timeout=timeout_s, metadata=metadata)
        self._call = call
        writing = asyncio.create_task(self._write(call), name="play: write")
        writing.add_done_callback(self._task_ended)
        try:
            with backend.serving(span):
                message = await self._open(call)
                self._flowing = True
                if resuming and message is not None:
                    message = self._resumed(message, route, expected)
                self._journey.arrived(route)
                while message is not None:
                    came_s = self._clock()
                    message = self._translated(message)
                    if message is not None:
                        await context.write(message)
                    if chunks is not None and self._passing:
                        chunks.passed(came_s, self._clock())
                    await self._relay.quotas.pace()
                    message = await receive(call)
                trailers = await call.trailing_metadata()
                backend.told(trailers)
                pass_trailers(await call.initial_metadata(), trailers, context)
        finally:
            self._flowing = False
            writing.cancel()
            call.cancel()

    async def _open(self, call: Any) -> bytes | None:
        """The replica's first message. One that doesn't come in time, while the client waits, will not come."""
        journey = self._journey
        try:
            async with asyncio.timeout(journey.left_s if journey.paused else None):
                if not self._head_passed:
                    await pass_head(await call.initial_metadata(), self._context)
                    self._head_passed = True
                return await receive(call)
        except TimeoutError:
            raise journey.expired() from None

    def _resumed(self, message: bytes, route: Route, expected: int | None) -> bytes:
        """Says in the first message of a resumed play what only the gateway knows."""
        response = pb.PlayResponse.FromString(message)
        resumed = response.resumed
        actual = resumed.chunk_index if response.HasField("resumed") else response.begun.session.chunk_index
        if expected is not None and (actual != expected or not response.HasField("resumed")):
            raise PlayNotContinued(route.backend.replica, expected=expected, actual=actual)
        if not resumed.rehomed:
            resumed.bit_identical = True  # the replica was not gone, only the way to it
        resumed.rehomed = True
        resumed.replica = resumed.replica or route.backend.replica or ""
        resumed.pause_duration.FromNanoseconds(round(self._journey.pause_s * 1e9))
        return response.SerializeToString()

    def _translated(self, message: bytes) -> bytes | None:
        """What the client gets for a replica's message. None: nothing."""
        self._passing = False
        try:
            response = pb.PlayResponse.FromString(message)
        except DecodeError:
            return message
        self._passing = response.HasField("played")
        if self._passing:
            frames = response.played.chunk.frames.tensor.shape[:1]
            self._relay.quotas.owe(response.played.chunk.timing.nfe * (frames[0] if frames else 0))
        for_client = self._log.read(response)
        self._writable.set()
        self._readable.set()
        if not self._log.restarted:
            return message  # all counts are the client's own
        return response.SerializeToString() if for_client else None

    async def _read(self) -> None:
        """Reads the client: one message when the last is written, or, while nobody takes them, as many as are kept."""
        while (message := await self._context.read()) is not grpc.aio.EOF:
            if self._over:
                return
            self._log.add(message)
            if self._log.kept_bytes > self._log_bytes:
                raise PlayLogFull(self._log_bytes)
            self._writable.set()
            while self._must_wait() and not self._over:
                self._readable.clear()
                await self._readable.wait()
        await asyncio.sleep(CANCELLATION_GRACE_S)
        self._log.end()
        self._writable.set()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """What a task raises ends the play, which would wait for ever else."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._mistake = error
        if self._call is not None:
            self._call.cancel()
        if self._moving is not None:
            self._moving.cancel()

    def _must_wait(self) -> bool:
        log = self._log
        if self._flowing and not log.catching_up:
            return self._writing or log.waiting_count > 0
        if not log.restarted:
            return True  # nothing has come from the replica yet
        return log.waiting_count >= _KEPT_COUNT_MAX or log.waiting_bytes >= _KEPT_BYTES_MAX

    async def _write(self, call: Any) -> None:
        """Ends quietly when the replica has ended the call: the reading side knows why."""
        try:
            await write(call, self._log.begin())
            while True:
                asked = self._log.take()
                if asked is None:
                    self._writable.clear()
                    await self._writable.wait()
                    continue
                if asked.is_end:
                    await call.done_writing()
                    return
                self._writing = True
                try:
                    await write(call, asked.raw)
                finally:
                    self._writing = False
                self._readable.set()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return


class _ChunkSpans:
    """What a gateway has of each chunk's trace: from its coming to when the client's side has taken it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._request_id = current_request_id()
        self._count = 0

    def passed(self, begin_s: float, end_s: float) -> None:
        """One more chunk of the call of `span`, all of which come by here."""
        trace = chunk_trace(self._span, self._span.context, self._request_id, self._count)
        self._count += 1
        if trace is not None:
            trace.join(Past("pass", begin_s, end_s))


def _begin_of(first: Any) -> pb.PlayRequest | None:
    """The first message of a play, where it is one."""
    if first is grpc.aio.EOF:
        return None
    try:
        request = pb.PlayRequest.FromString(first)
    except DecodeError:
        return None
    return request if request.session and request.HasField("begin") else None
