"""Around every call of a server: its request id, its metrics, and the status that its error becomes.

The edge where `except Exception` is right. It covers the four kinds of RPC alike, for typed handlers and for handlers
of raw bytes (serializer None).
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
from grpc_status import rpc_status

from worldtree_runtime.errors import DeadlineExceeded, InvalidRequest
from worldtree_runtime.logs import request_context
from worldtree_runtime.metrics import RpcMetrics
from worldtree_runtime.status import is_known, to_status

REQUEST_ID_KEY = "x-request-id"

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"([A-Za-z0-9._:/+=@-]{1,128})")
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C Trace Context
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# a known error of these codes is ours to repair, so it shows at the default log level
_OURS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_Call: TypeAlias = Callable[[Any, Any], Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The outermost interceptor of our servers. Each call is counted once, those that a client cancels too.

    What an inner interceptor raises (a caller that isn't allowed in) becomes a status like a handler's error. A stream
    whose reader takes nothing for `unread_s` is ended: its handler holds what others wait for.
    """

    def __init__(
        self, metrics: RpcMetrics, *, unread_s: float = 300.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._unread_s = unread_s
        self._clock = clock

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _MaybeHandler:
        method = handler_call_details.method.removeprefix("/")
        try:
            handler = await continuation(handler_call_details)
        except Exception as error:
            # stream_stream reads nothing by itself, so it can end a call of any kind
            return grpc.stream_stream_rpc_method_handler(self._stream(method, _raiser(error)))
        if handler is None:
            return None
        decode = None if handler.request_deserializer is None else _tolerant(handler.request_deserializer)
        encode = handler.response_serializer
        if not handler.response_streaming:
            call = handler.stream_unary if handler.request_streaming else handler.unary_unary
            assert call is not None, f"{method}: a handler without a behaviour"
            build = grpc.stream_unary_rpc_method_handler if handler.request_streaming else _unary_unary
            return build(self._unary(method, call, encode), decode, None)
        call = handler.stream_stream if handler.request_streaming else handler.unary_stream
        assert call is not None, f"{method}: a handler without a behaviour"
        build = grpc.stream_stream_rpc_method_handler if handler.request_streaming else _unary_stream
        return build(self._stream(method, call), decode, encode)

    def _unary(self, method: str, call: _Call, encode: Callable[[Any], bytes] | None) -> _Call:
        async def handle(request: Any, context: Context) -> Any:
            async with self._around(method, context):
                response = await call(_decoded(request), context)
                # encoded in here, so that an answer that can't be encoded is a bug like any other
                return response if encode is None else encode(response)

        return handle

    def _stream(self, method: str, call: _Call) -> _Call:
        async def handle(request: Any, context: Context) -> None:
            async with self._around(method, context):
                responses = call(_decoded(request), context)
                if not hasattr(responses, "__aiter__"):
                    await responses  # a coroutine that writes to the context itself
                elif hasattr(responses, "aclose"):
                    # closed here and now, not by the garbage collector: a handler's `finally` gives back its blocks
                    async with aclosing(responses):
                        await self._send(responses, context)
                else:
                    await self._send(responses, context)

        return handle

    async def _send(self, responses: AsyncIterator[Any], context: Context) -> None:
        async for response in responses:
            try:
                async with asyncio.timeout(self._unread_s):
                    await context.write(response)
            except TimeoutError as error:
                raise DeadlineExceeded(
                    "UNREAD", f"nothing was read for {self._unread_s:g} s", limit_s=f"{self._unread_s:g}"
                ) from error

    @asynccontextmanager
    async def _around(self, method: str, context: Context) -> AsyncIterator[None]:
        metadata = dict(context.invocation_metadata() or ())
        request_id = _matched(_REQUEST_ID, metadata.get(REQUEST_ID_KEY)) or str(uuid.uuid4())
        trace_id = _matched(_TRACEPARENT, metadata.get("traceparent"))
        started_s = self._clock()
        code = grpc.StatusCode.UNKNOWN
        self._metrics.started()
        try:
            with request_context(request_id):
                try:
                    yield
                    context.set_trailing_metadata(_trailers(context, {REQUEST_ID_KEY: request_id}))
                    code = _code_of(context)
                except grpc.aio.AbortError:
                    code = _code_of(context)
                    raise
                except asyncio.CancelledError:
                    code = _cancelled(context, method)
                    raise
                except grpc.aio.InternalError as error:
                    # a write failed because nobody is there to read; the cancellation only comes later
                    code = _cancelled(context, method)
                    raise asyncio.CancelledError from error
                except Exception as error:
                    status = to_status(error, request_id=request_id)
                    code = _CODES[status.code]
                    _log_error(error, method, code)
                    details = dict(rpc_status.to_status(status).trailing_metadata)
                    trailers = _trailers(context, {**details, REQUEST_ID_KEY: request_id})
                    try:
                        await context.abort(code, status.message, trailers)
                    except grpc.aio.InternalError as gone:
                        raise asyncio.CancelledError from gone
        finally:
            seconds = self._clock() - started_s
            self._metrics.finished(method, code=code.name, seconds=seconds, trace_id=trace_id)


class _Undecodable:
    """Stands for a request that isn't a message of its type, until the handler's side of the call can say so."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Requests:
    """A client's messages, each checked when it is read."""

    def __init__(self, messages: AsyncIterable[Any]) -> None:
        self._messages = messages
        self._iterator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            # not before the first read: grpc.aio's iterator warns when it is made and never used
            self._iterator = aiter(self._messages)
        return _checked(await anext(self._iterator))


def _unary_unary(call: _Call, decode: Any, encode: Any) -> _Handler:
    return grpc.unary_unary_rpc_method_handler(call, decode, encode)


def _unary_stream(call: _Call, decode: Any, encode: Any) -> _Handler:
    return grpc.unary_stream_rpc_method_handler(call, decode, encode)


def _tolerant(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Left to itself, the transport answers UNKNOWN and the exception's text, before any handler is asked."""

    def decode_or_note(raw: bytes) -> Any:
        try:
            return decode(raw)
        except Exception as error:
            return _Undecodable(error)

    return decode_or_note


def _decoded(request: Any) -> Any:
    return _Requests(request) if hasattr(request, "__aiter__") else _checked(request)


def _checked(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        message = "the bytes are not a message of the type that this method takes"
        raise InvalidRequest("request", message, reason="UNDECODABLE_REQUEST") from request.error
    return request


def _raiser(error: Exception) -> _Call:
    async def fail(_request: Any, _context: Context) -> None:
        raise error

    return fail


def _matched(pattern: re.Pattern[str], value: str | bytes | None) -> str | None:
    """What the pattern's group finds; strangers write the metadata, so anything else counts as absent."""
    found = pattern.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found else None


def _trailers(context: Context, ours: Mapping[str, str | bytes]) -> tuple[tuple[str, str | bytes], ...]:
    """The handler's trailers and ours; a proxied answer brings some of ours from behind, which are replaced."""
    theirs = tuple((key, value) for key, value in context.trailing_metadata() or () if key not in ours)
    return (*theirs, *ours.items())


def _code_of(context: Context) -> grpc.StatusCode:
    """grpc.aio keeps the number, or None while nobody set a code."""
    code: Any = context.code()
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)


def _cancelled(context: Context, method: str) -> grpc.StatusCode:
    """A client that left isn't an error of ours. One whose time is over left too, which the metrics tell apart."""
    left_s = context.time_remaining()
    over = left_s is not None and left_s <= 0
    _log.debug("the caller's deadline passed" if over else "the call was cancelled", extra={"method": method})
    return grpc.StatusCode.DEADLINE_EXCEEDED if over else grpc.StatusCode.CANCELLED


def _log_error(error: Exception, method: str, code: grpc.StatusCode) -> None:
    fields = {"method": method, "code": code.name}
    if not is_known(error):
        _log.error("a call failed by a bug", exc_info=error, extra=fields)
    elif code in _OURS:
        # what lies behind it is worth a traceback; where it was raised is not
        _log.warning("a call failed: %s", error, exc_info=error.__cause__, extra=fields)
    else:
        _log.debug("a call was refused: %s", error, extra=fields)
