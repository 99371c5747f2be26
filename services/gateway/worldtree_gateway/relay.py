"""Calls passed through as bytes: metadata, messages, trailers and status, both ways, message by message.

Nothing is decoded and nothing is kept: a message is read from one side only when the last one was written to the other.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from worldtree_runtime.errors import DeadlineExceeded
from worldtree_runtime.interceptors import REQUEST_ID_KEY
from worldtree_runtime.logs import current_request_id

from worldtree_gateway.backends import REPLICA_KEY, Backend
from worldtree_gateway.domain import Method
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.routing import Router

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata = tuple[tuple[str, str | bytes], ...]

STATUS_DETAILS_KEY = "grpc-status-details-bin"

# what belongs to one connection, or is written anew by the transport; "grpc-..." goes too
_HOP_BY_HOP = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "host", "keep-alive", "te", "user-agent"}
)
# To grpc.aio a cancelled client first looks like one that has sent all it had; the cancellation comes a moment later.
# Passed on at once, half an upload would look whole to the backend (100 of 100 tries; with this pause, none).
_CANCELLATION_GRACE_S = 0.002


class Relay:
    """The four kinds of calls, to the backends of one service."""

    def __init__(self, router: Router, metrics: GatewayMetrics, *, unary_timeout_s: float) -> None:
        self._router = router
        self._metrics = metrics
        self._unary_timeout_s = unary_timeout_s

    async def unary_unary(self, method: Method, request: bytes, context: Context) -> bytes:
        backend = self._router.pick(method, request)
        timeout_s = self._timeout_s(context)
        backend.in_flight += 1
        try:
            call = backend.callable(method)(request, timeout=timeout_s, metadata=forwarded(context))
            return await _pass_answer(call, context)
        except grpc.aio.AioRpcError as error:
            await self.fail(error, backend, context, timeout_s)
        finally:
            backend.in_flight -= 1

    async def unary_stream(self, method: Method, request: bytes, context: Context) -> None:
        backend = self._router.pick(method, request)
        timeout_s = context.time_remaining()
        backend.in_flight += 1
        call = backend.callable(method)(request, timeout=timeout_s, metadata=forwarded(context))
        try:
            await self._pass_messages(call, context)
        except grpc.aio.AioRpcError as error:
            await self.fail(error, backend, context, timeout_s)
        finally:
            backend.in_flight -= 1
            call.cancel()

    async def stream_unary(self, method: Method, _requests: object, context: Context) -> bytes:
        first = await context.read()
        backend = self._router.pick(method, _or_empty(first))
        timeout_s = self._timeout_s(context)
        backend.in_flight += 1
        call = backend.callable(method)(timeout=timeout_s, metadata=forwarded(context))
        requests = asyncio.create_task(_pass_requests(first, context, call), name="requests")
        try:
            return await _pass_answer(call, context)
        except grpc.aio.AioRpcError as error:
            await self.fail(error, backend, context, timeout_s)
        finally:
            backend.in_flight -= 1
            requests.cancel()
            call.cancel()

    async def stream_stream(self, method: Method, _requests: object, context: Context) -> None:
        first = await context.read()
        backend = self._router.pick(method, _or_empty(first))
        timeout_s = context.time_remaining()
        backend.in_flight += 1
        call = backend.callable(method)(timeout=timeout_s, metadata=forwarded(context))
        requests = asyncio.create_task(_pass_requests(first, context, call), name="requests")
        try:
            await self._pass_messages(call, context)
        except grpc.aio.AioRpcError as error:
            await self.fail(error, backend, context, timeout_s)
        finally:
            backend.in_flight -= 1
            requests.cancel()
            call.cancel()

    async def fail(
        self, error: grpc.aio.AioRpcError, backend: Backend | None, context: Context, timeout_s: float | None
    ) -> NoReturn:
        """Ends the call as the backend ended it. What the transport made up for it gets the details that ours have."""
        trailers = clean(error.trailing_metadata() or ())
        if not any(key == STATUS_DETAILS_KEY for key, _ in trailers):
            match error.code():
                case grpc.StatusCode.UNAVAILABLE:
                    self._metrics.upstream_failures.labels(self._router.section).inc()
                    raise self._router.down(backend) from error
                case grpc.StatusCode.DEADLINE_EXCEEDED if timeout_s is not None:
                    raise DeadlineExceeded(
                        "DEADLINE_EXCEEDED",
                        f"no answer within the {timeout_s:.3f} s that the call had left here",
                        timeout_s=f"{timeout_s:.3f}",
                    ) from error
        await context.abort(error.code(), error.details() or "", trailers)
        raise AssertionError("abort always raises")

    def _timeout_s(self, context: Context) -> float:
        left_s = context.time_remaining()
        return self._unary_timeout_s if left_s is None else left_s

    async def _pass_messages(self, call: Any, context: Context) -> None:
        await pass_head(call, context)
        while (message := await _receive(call)) is not None:
            await context.write(message)
        await pass_trailers(call, context)

    async def ask(self, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None) -> bytes:
        """A unary call apart from any caller. Raises AioRpcError, or what the router raises."""
        backend = self._router.pick(method, request)
        backend.in_flight += 1
        try:
            response: bytes = await backend.callable(method)(request, timeout=timeout_s, metadata=metadata)
            return response
        finally:
            backend.in_flight -= 1

    async def messages(
        self, method: Method, request: bytes, metadata: Metadata, timeout_s: float | None
    ) -> AsyncIterator[bytes]:
        """The same for a call that answers with one message or with many."""
        if not method.server_streaming:
            yield await self.ask(method, request, metadata, timeout_s)
            return
        backend = self._router.pick(method, request)
        backend.in_flight += 1
        call = backend.callable(method)(request, timeout=timeout_s, metadata=metadata)
        try:
            while (message := await _receive(call)) is not None:
                yield message
        finally:
            backend.in_flight -= 1
            call.cancel()


def forwarded(context: Context) -> Metadata:
    """A caller's metadata as its backend gets it, under the request id that our own logs use."""
    request_id = current_request_id()
    ours: Metadata = () if request_id is None else ((REQUEST_ID_KEY, request_id),)
    return (*clean(context.invocation_metadata() or ()), *ours)


def clean(metadata: Iterable[tuple[str, Any]]) -> Metadata:
    return tuple(
        (key, value)
        for key, value in metadata
        if key not in _HOP_BY_HOP
        and (not key.startswith("grpc-") or key == STATUS_DETAILS_KEY)
        and key != REQUEST_ID_KEY  # the interceptor writes it at each side
    )


async def pass_head(call: Any, context: Context) -> None:
    """Costs a write of its own, so the replica's name, which all of ours send, goes to the trailers instead."""
    head = tuple(pair for pair in clean(await call.initial_metadata()) if pair[0] != REPLICA_KEY)
    if head:
        await context.send_initial_metadata(head)


async def pass_trailers(call: Any, context: Context) -> None:
    replica = tuple(pair for pair in await call.initial_metadata() if pair[0] == REPLICA_KEY)
    trailers = clean(await call.trailing_metadata())
    if replica or trailers:
        context.set_trailing_metadata((*trailers, *replica))


async def _pass_answer(call: Any, context: Context) -> bytes:
    """A call's one answer, its metadata and trailers passed on. Raises AioRpcError."""
    response: bytes = await call
    await pass_head(call, context)
    await pass_trailers(call, context)
    return response


async def _receive(call: Any) -> bytes | None:
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
            await call.write(first)  # waits until the call is open
            while (message := await context.read()) is not grpc.aio.EOF:
                await _write(call, message)
        await asyncio.sleep(_CANCELLATION_GRACE_S)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return


async def _write(call: Any, message: bytes) -> None:
    """As call.write(), which puts "Internal error from Core" in the place of the status that is on its way when the
    backend ends the call under a write (1 in 20 refused plays with grpcio 1.85). Raises InvalidStateError then."""
    if call.done():
        raise asyncio.InvalidStateError("the backend has ended the call")
    try:
        await call._cython_call.send_serialized_message(message)
    except grpc.aio.InternalError as error:
        raise asyncio.InvalidStateError("the backend has ended the call") from error


def _or_empty(message: Any) -> bytes:
    return b"" if message is grpc.aio.EOF else message
