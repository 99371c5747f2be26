"""Around every call of a server: its request id, its span, its metrics, and the status that its error becomes.

The edge where `except Exception` is right. It covers the four kinds of RPC alike, for typed handlers and for handlers
of raw bytes (serializer None).
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_status import rpc_status

from worldtree_runtime import access_log
from worldtree_runtime.call_notes import CallNotes, set_notes
from worldtree_runtime.errors import InvalidRequest
from worldtree_runtime.logs import set_request_id
from worldtree_runtime.messages import COST_KEY, HELD_KEY, LOAD_KEY, TENANT, TENANT_KEY
from worldtree_runtime.metrics import METHOD_COUNT_MAX, RpcMetrics
from worldtree_runtime.status import is_known, to_status
from worldtree_runtime.stream_context import StreamContext
from worldtree_runtime.tracing import TRACEPARENT_KEY, Span, TraceContext, Tracer, set_trace

REQUEST_ID_KEY = "x-request-id"

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"([A-Za-z0-9._:/+=@-]{1,128})")
_ABORT_S = 1.0  # a status that is not taken by then is not waited for
_PROBES = ("grpc.health.", "grpc.reflection.")  # neither traced nor in the access log
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# a known error of these codes is ours to repair, so it shows at the default log level
_OURS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_Call: TypeAlias = Callable[[Any, Any], Any]
_Noted: TypeAlias = Callable[[Any, Context, CallNotes | None], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The outermost interceptor of our servers. Each call is counted once, those that a client cancels too.

    What an inner interceptor raises (a caller that isn't allowed in) becomes a status like a handler's error. A stream
    whose reader takes nothing for `unread_s` is ended: its handler holds what others wait for.

    `tracer`: makes each call a span; None: calls are not traced here. `access_log`: the service by whose name each call
    is a line there; None: it isn't. `believes`: whether callers may say for whom they call; those are told in the
    trailers how many calls are under way, and how many sessions are `held`.
    """

    def __init__(
        self,
        metrics: RpcMetrics,
        *,
        unread_s: float = 300.0,
        tracer: Tracer | None = None,
        access_log: str | None = None,
        believes: bool = True,
        held: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._unread_s = unread_s
        self._tracer = tracer
        self._access_log = access_log
        self._believes, self._held = believes, held
        self._clock = clock
        self._under_way = 0  # but for probes, which last for ever and do nothing
        # by method, the handler that was found last and what stands around it: most are the same at each call
        self._known: dict[str, tuple[_Handler, _Handler]] = {}

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
        known = self._known.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        around = self._wrapped(method, handler)
        if known is not None or len(self._known) < METHOD_COUNT_MAX:
            self._known[method] = handler, around
        return around

    def _wrapped(self, method: str, handler: _Handler) -> _Handler:
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
        async def answer(request: Any, context: Context, notes: CallNotes | None) -> Any:
            response = await call(_decoded(request, notes), context)
            # encoded in here, so that an answer that can't be encoded is a bug like any other
            encoded = response if encode is None else encode(response)
            if notes is not None and isinstance(encoded, bytes):
                notes.response_bytes = len(encoded)
            return encoded

        return self._around(method, answer)

    def _stream(self, method: str, call: _Call) -> _Call:
        async def answer(request: Any, context: Context, notes: CallNotes | None) -> None:
            bounded = StreamContext(context, self._unread_s)
            responses = call(_decoded(request, notes), bounded)
            if not hasattr(responses, "__aiter__"):
                await responses  # a coroutine that writes to the context itself
            elif hasattr(responses, "aclose"):
                # closed here and now, not by the garbage collector: a handler's `finally` gives back its blocks
                async with aclosing(responses):
                    await _send(responses, bounded)
            else:
                await _send(responses, bounded)

        return self._around(method, answer)

    def _around(self, method: str, answer: _Noted) -> _Call:
        counts = not method.startswith(_PROBES)

        async def handle(request: Any, context: Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            request_id = _matched(_REQUEST_ID, metadata.get(REQUEST_ID_KEY)) or str(uuid.uuid4())
            trace = TraceContext.read(metadata.get(TRACEPARENT_KEY)) if TRACEPARENT_KEY in metadata else None
            started_s = self._clock()
            code = grpc.StatusCode.UNKNOWN
            self._metrics.started()
            self._under_way += counts
            span, notes = self._observed(method, trace, metadata)
            if span is not None:
                trace = span.context
            if trace is not None:
                set_trace(trace, span)
            set_request_id(request_id)
            description = ""
            try:
                response = await answer(request, context, notes)
                context.set_trailing_metadata(_trailers(context, self._told(request_id)))
                code = code_of(context)
                return response
            except grpc.aio.AbortError:
                code = code_of(context)
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
                code, description = _CODES[status.code], status.message
                _log_error(error, method, code)
                details = dict(rpc_status.to_status(status).trailing_metadata)
                trailers = _trailers(context, {**details, **self._told(request_id)})
            finally:
                self._under_way -= counts
                seconds = self._clock() - started_s
                # an exemplar leads to a trace that is kept somewhere
                trace_id = trace.trace_id if trace is not None and trace.sampled else None
                self._metrics.finished(method, code=code.name, seconds=seconds, trace_id=trace_id)
                if notes is not None:
                    self._tell(method, context, code, seconds, notes, request_id, trace, span, description)
            # it is over here, whenever its caller takes the status
            return await _abort(context, code, description, trailers)

        return handle

    def _tell(
        self,
        method: str,
        context: Context,
        code: grpc.StatusCode,
        seconds: float,
        notes: CallNotes,
        request_id: str,
        trace: TraceContext | None,
        span: Span | None,
        description: str,
    ) -> None:
        """Of a call that is over, to whoever keeps its span and its line."""
        try:
            notes.cost = _cost_of(context) if notes.cost is None else notes.cost
            if span is not None:
                span.end(code.name, _attributes(notes), description=description or context.details() or "")
            if self._access_log is not None:
                access_log.write(
                    self._access_log,
                    method,
                    code=code.name,
                    seconds=seconds,
                    notes=notes,
                    request_id=request_id,
                    trace_id=None if trace is None else trace.trace_id,
                )
        except Exception:  # a call doesn't fail because it can't be told of
            _log.exception("a call could not be told of", extra={"method": method})

    def _told(self, request_id: str) -> dict[str, str | bytes]:
        """What the trailers of every call say."""
        told: dict[str, str | bytes] = {REQUEST_ID_KEY: request_id}
        if not self._believes:
            return told
        told[LOAD_KEY] = str(self._under_way)
        if self._held is not None:
            told[HELD_KEY] = str(self._held())
        return told

    def _observed(
        self, method: str, caller: TraceContext | None, metadata: Mapping[str, str | bytes]
    ) -> tuple[Span | None, CallNotes | None]:
        """The span and the notes of a call that has come; None where nobody wants them."""
        if (self._tracer is None and self._access_log is None) or method.startswith(_PROBES):
            return None, None
        tenant = metadata.get(TENANT_KEY) if self._believes else None
        notes = CallNotes(tenant=tenant if isinstance(tenant, str) and TENANT.fullmatch(tenant) else None)
        set_notes(notes)
        return None if self._tracer is None else self._tracer.begin(method, caller), notes


async def _send(responses: AsyncIterator[Any], context: StreamContext) -> None:
    async for response in responses:
        await context.write(response)


async def _abort(
    context: Context, code: grpc.StatusCode, description: str, trailers: tuple[tuple[str, str | bytes], ...]
) -> NoReturn:
    """Sends the status. Where it stands behind what nobody reads it goes when that is read, and nobody waits here."""
    try:
        async with asyncio.timeout(_ABORT_S):
            await context.abort(code, description, trailers)
    except (grpc.aio.InternalError, TimeoutError) as gone:
        raise asyncio.CancelledError from gone
    raise AssertionError("abort always raises")


class _Undecodable:
    """Stands for a request that isn't a message of its type, until the handler's side of the call can say so."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Requests:
    """A client's messages, each checked when it is read. The first may name the call's session, for its `notes`."""

    def __init__(self, messages: AsyncIterable[Any], notes: CallNotes | None) -> None:
        self._messages = messages
        self._notes = notes
        self._iterator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            # not before the first read: grpc.aio's iterator warns when it is made and never used
            self._iterator = aiter(self._messages)
        message = _checked(await anext(self._iterator))
        if self._notes is not None:
            self._notes.name_session(getattr(message, "session", None))
            self._notes = None
        return message


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


def _decoded(request: Any, notes: CallNotes | None) -> Any:
    if hasattr(request, "__aiter__"):
        return _Requests(request, notes)
    if notes is not None:
        notes.name_session(getattr(request, "session", None))
        if isinstance(request, bytes):
            notes.request_bytes = len(request)
        elif isinstance(request, Message):
            notes.request_bytes = request.ByteSize()
    return _checked(request)


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


def _cost_of(context: Context) -> int | None:
    """What the handler's trailers say; at a gateway those from behind."""
    said = next((value for key, value in context.trailing_metadata() or () if key == COST_KEY), None)
    return int(said) if isinstance(said, str) and said.isascii() and said.isdigit() else None


def _attributes(notes: CallNotes) -> dict[str, str | int]:
    known = (
        ("worldtree.tenant", notes.tenant),
        ("worldtree.session", notes.session),
        ("worldtree.cost", notes.cost),
        ("worldtree.cache", notes.cache),
    )
    return {name: value for name, value in known if value is not None}


def code_of(context: Context) -> grpc.StatusCode:
    """What a handled call ends with. grpc.aio keeps the number, or None while nobody set a code."""
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
