"""Calls passed through as bytes: metadata, messages, trailers and status, both ways, message by message.

Nothing is kept: a message is read from one side only when the last one was written to the other. Decoded are only the
nodes of a Rollout and a request whose replica went away, to know what to do again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.errors import DeadlineExceeded
from worldtree_runtime.messages import CHARGED_KEY, COST_KEY
from worldtree_runtime.tracing import Span

from worldtree_gateway.backends import Backend
from worldtree_gateway.domain import Affinity, Method
from worldtree_gateway.hedging import Hedging
from worldtree_gateway.journey import Journey
from worldtree_gateway.metadata import (
    REPLICAS_KEY,
    Context,
    Metadata,
    below,
    cost_in,
    forwarded,
    pass_head,
    pass_trailers,
    passed_trailers,
)
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.quotas import Quotas
from worldtree_gateway.raw_unary import RawAnswer, ask
from worldtree_gateway.retry_budget import RetryBudget
from worldtree_gateway.rollout_nodes import PassedNodes
from worldtree_gateway.routing import Route, Router
from worldtree_gateway.safety import is_repeatable
from worldtree_gateway.verdicts import STATUS_DETAILS_KEY

# To grpc.aio a cancelled client first looks like one that has sent all it had; the cancellation comes a moment later.
# Passed on at once, half an upload would look whole to the backend (100 of 100 tries; with this pause, none).
CANCELLATION_GRACE_S = 0.002

_reading: "set[asyncio.Task[None]]" = set()  # somebody has to hold tasks until they end


class Relay:
    """The four kinds of calls, to the backends of one service.

    A call whose replica goes away is sent to another, as long as that can't do anything twice: see `Journey.allows`.
    """

    def __init__(
        self,
        router: Router,
        metrics: GatewayMetrics,
        quotas: Quotas,
        budget: RetryBudget,
        *,
        unary_timeout_s: float,
        rehome_timeout_s: float,
        hedge_after_s: float | None = None,
    ) -> None:
        self.router = router
        self.quotas = quotas
        self._metrics = metrics
        self._budget = budget
        self._hedging = Hedging(router, budget, metrics, after_s=hedge_after_s)
        self._unary_timeout_s = unary_timeout_s
        self._rehome_timeout_s = rehome_timeout_s

    async def unary_unary(self, method: Method, request: bytes, context: Context) -> bytes:
        left_s = self.unary_left_s(context)
        ends_s = time.monotonic() + left_s
        journey = self.journey(method, request, "unary", left_s)
        route = await journey.begin()
        head: Metadata = ()
        if method.affinity is Affinity.REPLICA:
            head = ((REPLICAS_KEY, ",".join(self.router.replicas)),)

        def said(route: Route, span: Span | None) -> Metadata:
            return forwarded(context, method, route.rehome, span=span)

        send = partial(_send, method, request, ends_s, said)
        while True:
            backend, timeout_s = route.backend, max(0.0, ends_s - time.monotonic())
            try:
                answer, route = await self._hedging.answer(method, request, route, send)
                await pass_head(answer.head, context, head)
                pass_trailers(answer.head, answer.trailers, context)
                self.quotas.owe(cost_in(answer.trailers))
                journey.arrived(route)
                return answer.message
            except grpc.aio.AioRpcError as error:
                self.quotas.owe(cost_in(error.trailing_metadata()))
                failure = journey.allows(error, route, repeatable=partial(is_repeatable, method, request))
                if failure is None:
                    journey.ended("failed")
                    await self.fail(error, backend, context, timeout_s)
            route = await journey.next(failure, route)

    async def unary_stream(self, method: Method, request: bytes, context: Context) -> None:
        journey = self.journey(method, request, "stream", context.time_remaining())
        route = await journey.begin()
        nodes = PassedNodes() if method.request_class is pb.RolloutRequest else None
        passing = head_passed = False
        while True:
            made = _Made(method)
            backend, timeout_s = route.backend, context.time_remaining()
            span = backend.span(method)
            metadata = forwarded(context, method, route.rehome, span=span)
            call = backend.callable(method)(request, timeout=timeout_s, metadata=metadata)
            try:
                with backend.serving(span):
                    if not head_passed:
                        # a rollout that is left has no trailers to say who charges what it made
                        said = ((CHARGED_KEY, "1"),) if nodes is not None else ()
                        await pass_head(await call.initial_metadata(), context, said)
                        head_passed = True
                    arrived = False
                    while (message := await receive(call)) is not None:
                        if not arrived:
                            arrived = True
                            journey.arrived(route)
                        made.passed(message)
                        if nodes is None or nodes.is_new(message):
                            passing = True
                            await context.write(message)
                    if not arrived:
                        journey.arrived(route)
                    made.told(await self._end(call, context, backend))
                return
            except grpc.aio.AioRpcError as error:
                made.told(error.trailing_metadata())
                lasting = passing and (nodes is None or not nodes.resumable)
                failure = (
                    None
                    if lasting
                    else journey.allows(error, route, repeatable=partial(is_repeatable, method, request))
                )
                if failure is None:
                    journey.ended("failed")
                    await self.fail(error, backend, context, timeout_s)
            finally:
                self.quotas.owe(made.cost)
                call.cancel()
            if nodes is not None:
                nodes.restart()
            route = await journey.next(failure, route)

    async def stream_unary(self, method: Method, _requests: object, context: Context) -> bytes:
        first = await context.read()
        backend = self.router.route(method, _or_empty(first)).backend
        timeout_s, span = self.unary_left_s(context), backend.span(method)
        call = backend.callable(method)(timeout=timeout_s, metadata=forwarded(context, method, span=span))
        requests = asyncio.create_task(_pass_requests(first, context, call), name="requests")
        try:
            with backend.serving(span):
                response: bytes = await call
                await pass_head(await call.initial_metadata(), context)
                self.quotas.owe(cost_in(await self._end(call, context, backend)))
                return response
        except grpc.aio.AioRpcError as error:
            await self.fail(error, backend, context, timeout_s)
        finally:
            call.cancel()
            let_end(requests)

    async def stream_stream(self, method: Method, _requests: object, context: Context) -> None:
        await self.pass_streams(method, await context.read(), context)

    async def pass_streams(self, method: Method, first: Any, context: Context) -> None:
        """A call of two streams whose `first` message (or EOF) has been read."""
        backend = self.router.route(method, _or_empty(first)).backend
        timeout_s, span = context.time_remaining(), backend.span(method)
        call = backend.callable(method)(timeout=timeout_s, metadata=forwarded(context, method, span=span))
        requests = asyncio.create_task(_pass_requests(first, context, call), name="requests")
        try:
            with backend.serving(span):
                await pass_head(await call.initial_metadata(), context)
                owed = 0.0
                while (message := await receive(call)) is not None:
                    if method.request_class is navigator_pb.NavigateRequest:
                        # it may go on for hours: each chunk is owed as it passes
                        cost = float(navigator_pb.NavigateResponse.FromString(message).chunk.cost)
                        self.quotas.owe(cost)
                        owed += cost
                        await self.quotas.pace()
                    await context.write(message)
                self.quotas.owe(cost_in(await self._end(call, context, backend)) - owed)
        except grpc.aio.AioRpcError as error:
            await self.fail(error, backend, context, timeout_s)
        finally:
            call.cancel()
            let_end(requests)

    def journey(
        self, method: Method, request: bytes, kind: str, left_s: float | None, *, resumes: bool = False
    ) -> Journey:
        """The way of one call from replica to replica. `resumes`: it goes on with one that broke off elsewhere."""
        return Journey(
            self.router,
            self._metrics,
            method,
            request,
            self._budget,
            kind=kind,
            rehome_timeout_s=self._rehome_timeout_s,
            left_s=left_s,
            resumes=resumes,
        )

    async def fail(
        self, error: grpc.aio.AioRpcError, backend: Backend | None, context: Context, timeout_s: float | None
    ) -> NoReturn:
        """Ends the call as the backend ended it. What the transport made up for it gets the details that ours have."""
        trailers = passed_trailers(error.trailing_metadata())
        if not any(key == STATUS_DETAILS_KEY for key, _ in trailers):
            match error.code():
                case grpc.StatusCode.UNAVAILABLE:
                    self._metrics.upstream_failures.labels(self.router.section).inc()
                    raise self.router.down(backend) from error
                case grpc.StatusCode.DEADLINE_EXCEEDED if timeout_s is not None:
                    raise DeadlineExceeded(
                        "DEADLINE_EXCEEDED",
                        f"no answer within the {timeout_s:.3f} s that the call had left here",
                        timeout_s=f"{timeout_s:.3f}",
                    ) from error
        await context.abort(error.code(), error.details() or "", trailers)
        raise AssertionError("abort always raises")

    async def _end(self, call: Any, context: Context, backend: Backend) -> Any:
        """The trailers of a call that has ended well: its backend has told them, and its caller gets them."""
        trailers = await call.trailing_metadata()
        pass_trailers(await call.initial_metadata(), trailers, context)
        backend.told(trailers)
        return trailers

    def unary_left_s(self, context: Context) -> float:
        """How long a call with one answer may take."""
        left_s = context.time_remaining()
        return self._unary_timeout_s if left_s is None else left_s

    async def ask(self, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None) -> bytes:
        """A unary call apart from any caller. Raises AioRpcError, or what the router raises."""
        async with aclosing(self.messages(method, request, metadata, timeout_s)) as messages:
            return await anext(messages)

    async def messages(
        self, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> AsyncGenerator[bytes]:
        """The same for a call that answers with one message or with many."""
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        journey = self.journey(method, request, "stream" if method.server_streaming else "unary", timeout_s)
        route = await journey.begin()
        passing = False
        send = partial(_send, method, request, ends_s, lambda _, span: below(span, metadata))
        while True:
            made, call = _Made(method), None
            backend = route.backend
            try:
                if not method.server_streaming:
                    answer, route = await self._hedging.answer(method, request, route, send)
                    journey.arrived(route)
                    made.told(answer.trailers)
                    yield answer.message
                    return
                left_s = None if ends_s is None else max(0.0, ends_s - time.monotonic())
                span = backend.span(method)
                with backend.serving(span):
                    call = backend.callable(method)(request, timeout=left_s, metadata=below(span, metadata))
                    while (message := await receive(call)) is not None:
                        if not passing:
                            passing = True
                            journey.arrived(route)
                        made.passed(message)
                        yield message
                    trailers = await call.trailing_metadata()
                    backend.told(trailers)
                    made.told(trailers)
                    return
            except grpc.aio.AioRpcError as error:
                made.told(error.trailing_metadata())
                repeatable = partial(is_repeatable, method, request)
                failure = None if passing else journey.allows(error, route, repeatable=repeatable)
                if failure is None:
                    journey.ended("failed")
                    raise
            finally:
                self.quotas.owe(made.cost)
                if call is not None:
                    call.cancel()
            route = await journey.next(failure, route)


async def _send(
    method: Method,
    request: bytes,
    ends_s: float | None,
    said: Callable[[Route, Span | None], Metadata],
    route: Route,
) -> RawAnswer:
    """A unary call at one replica. `said`: the metadata that goes with it. Raises AioRpcError."""
    backend = route.backend
    span = backend.span(method)
    with backend.serving(span):
        timeout_s = None if ends_s is None else max(0.0, ends_s - time.monotonic())
        answer = await ask(backend.callable(method), request, timeout_s=timeout_s, metadata=said(route, span))
        backend.told(answer.trailers)
    return answer


_STREAMS_OF_CHUNKS: Mapping[type | None, Any] = {
    pb.GenerateRequest: pb.GenerateResponse,
    pb.RolloutRequest: pb.RolloutResponse,
}


class _Made:
    """What one try of a call has cost: as its trailers tell it; of a stream that was left before they came, or whose
    replica died, by what has passed.
    """

    def __init__(self, method: Method) -> None:
        self._response = _STREAMS_OF_CHUNKS.get(method.request_class)
        self._imagines = method.request_class is navigator_pb.ImagineRequest
        self._count = 0
        self._last = b""
        self._told: float | None = None

    def passed(self, message: bytes) -> None:
        self._count += 1
        self._last = message

    def told(self, trailers: Iterable[tuple[str, Any]] | None) -> None:
        if any(key == COST_KEY for key, _ in trailers or ()):
            self._told = cost_in(trailers)

    @property
    def cost(self) -> float:
        if self._told is not None:
            return self._told
        try:
            return self._reckoned()
        except DecodeError:
            return 0.0  # no message of ours; its reader will say so

    def _reckoned(self) -> float:
        if self._imagines and self._last:
            return float(navigator_pb.ImagineResponse.FromString(self._last).spent.cost)
        if self._response is None or not self._last:
            return 0.0
        chunk = self._response.FromString(self._last).chunk
        frames = chunk.frames.tensor.shape[:1]
        return float(self._count * chunk.timing.nfe * (frames[0] if frames else 1))


async def receive(call: Any) -> bytes | None:
    """The next message. None: the call ended OK. Raises AioRpcError."""
    reading = asyncio.ensure_future(anext(aiter(call), None))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        # grpc.aio never frees what arrives for a read that was cancelled (grpc/grpc#43360), so the call is ended
        # instead, which ends the read
        call.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        raise


async def _pass_requests(first: Any, context: Context, call: Any) -> None:
    """One task a call. Ends quietly when the backend has ended the call: the response side knows why."""
    try:
        if first is not grpc.aio.EOF:
            await write(call, first)
            while (message := await context.read()) is not grpc.aio.EOF:
                await write(call, message)
        await asyncio.sleep(CANCELLATION_GRACE_S)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return


async def write(call: Any, message: bytes) -> None:
    """As call.write(), which puts "Internal error from Core" in the place of the status that is on its way when the
    backend ends the call under a write (1 in 20 refused plays with grpcio 1.85). Raises InvalidStateError then, or
    AioRpcError when the call ended before it was open."""
    await call.wait_for_connection()
    if call.done():
        raise asyncio.InvalidStateError("the backend has ended the call")
    try:
        await call._cython_call.send_serialized_message(message)
    except grpc.aio.InternalError as error:
        raise asyncio.InvalidStateError("the backend has ended the call") from error


def let_end(reading: "asyncio.Task[None]") -> None:
    """Leaves a task that may be reading from a client to end with the client's call, in a moment.

    A read that is cancelled in flight is never given back by gRPC's core: 90 bytes and more for each call.
    """
    _reading.add(reading)
    reading.add_done_callback(_ended)


def _ended(reading: "asyncio.Task[None]") -> None:
    _reading.discard(reading)
    if not reading.cancelled():
        reading.exception()  # the call has ended: nobody is left to be told


def _or_empty(message: Any) -> bytes:
    return b"" if message is grpc.aio.EOF else message
