"""Spans made and delivered by OpenTelemetry. The only file that imports it, and only where a collector is named."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Tracer as OtelTracerApi
from prometheus_client import CollectorRegistry, Counter

from worldtree_runtime.tracing import Attributes, Past, TraceContext

_CLOSING_S = 1.0  # what the end of a server waits for its last spans to be delivered
_LOOPBACK = ("localhost", "127.", "::1")

# A server's span is not at fault for what its caller did wrong, or for a caller that left; a client's always is.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_CODES = {code.name: code.value[0] for code in grpc.StatusCode}

_log = logging.getLogger(__name__)


class OtelTracer:
    """Spans of one server, `sample_share` of those that begin a trace, to the OTLP collector at `endpoint`.

    Nothing here waits for the collector. Spans that it does not take are dropped, counted, and told of once.
    """

    def __init__(
        self, *, service: str, replica: str, endpoint: str, sample_share: float, registry: CollectorRegistry
    ) -> None:
        self._ids = _Ids()
        self._sampler = TraceIdRatioBased(sample_share)
        self._exporter = _Exporter(endpoint, registry)
        resource = {
            "service.namespace": "worldtree",
            "service.name": f"worldtree-{service}",
            "service.instance.id": replica,
            "service.version": _version(),
        }
        self._provider = TracerProvider(
            sampler=ParentBased(self._sampler),
            resource=Resource.create(resource),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._otel = self._provider.get_tracer("worldtree", _version())
        self._processor: BatchSpanProcessor | None = None

    async def __aenter__(self) -> Self:
        self._processor = BatchSpanProcessor(self._exporter)  # starts its thread
        self._provider.add_span_processor(self._processor)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            assert self._processor is not None, "it was entered"
            self._processor.force_flush()
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="deliver spans", daemon=True).start()
        try:
            async with asyncio.timeout(_CLOSING_S):
                await closed.wait()
        except TimeoutError:
            self._exporter.give_up()

    def begin(self, method: str, caller: TraceContext | None) -> "_Span":
        parent = None if caller is None else set_span_in_context(NonRecordingSpan(_remote(caller)))
        span = self._otel.start_span(method, parent, SpanKind.SERVER, _rpc(method))
        return _Span(self, span, caller, _FAULTS)

    @property
    def otel(self) -> OtelTracerApi:
        return self._otel

    def samples(self, trace_id: int) -> bool:
        """Whether a trace that begins with us is among those that are kept; the same at all with the same share."""
        return self._sampler.should_sample(None, trace_id, "").decision is Decision.RECORD_AND_SAMPLE

    def start_first(self, ids: tuple[int, int], name: str, links: Sequence[Link], begin_ns: int) -> OtelSpan:
        """The first span of a trace, both of whose ids are given."""
        self._ids.given = ids
        try:
            return self._otel.start_span(name, links=links, start_time=begin_ns)
        finally:
            self._ids.given = None


class _Span:
    """`parent`: what a caller said, None for a call of our own. `faults`: codes that are an error; None: all but OK."""

    __slots__ = ("_faults", "_span", "_tracer", "context", "parent")

    def __init__(
        self, tracer: OtelTracer, span: OtelSpan, parent: TraceContext | None, faults: frozenset[str] | None
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._faults = faults
        self.parent = parent
        told = span.get_span_context()
        self.context = TraceContext(f"{told.trace_id:032x}", f"{told.span_id:016x}", told.trace_flags.sampled)

    def child(self, name: str, attributes: Attributes) -> "_Span":
        context = set_span_in_context(self._span)
        span = self._tracer.otel.start_span(name, context, SpanKind.CLIENT, {**_rpc(name), **attributes})
        return _Span(self._tracer, span, self.context, None)

    def event(self, name: str, attributes: Attributes) -> None:
        self._span.add_event(name, attributes)

    def link(self, other: TraceContext) -> None:
        self._span.add_link(_remote(other))

    def end(self, code: str, attributes: Attributes, *, description: str = "") -> None:
        span = self._span
        if span.is_recording():
            span.set_attributes({"rpc.grpc.status_code": _CODES[code], **attributes})
            if code in self._faults if self._faults is not None else code != "OK":
                span.set_attribute("error.type", code)
                span.set_status(Status(StatusCode.ERROR, description or code))
        span.end()

    def aside(self, of: TraceContext, key: str) -> "_SideTrace | None":
        trace_id, span_id = (int(each, 16) for each in of.aside(key))
        return _SideTrace(self._tracer, trace_id, span_id, self._span) if self._tracer.samples(trace_id) else None


class _SideTrace:
    def __init__(self, tracer: OtelTracer, trace_id: int, span_id: int, beside: OtelSpan) -> None:
        self._tracer = tracer
        self.trace_id = f"{trace_id:032x}"
        self._ids = (trace_id, span_id)
        self._links = (Link(beside.get_span_context()),)
        self._context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    def lead(self, root: Past, parts: Sequence[Past]) -> None:
        clock = _Clock()
        first = self._tracer.start_first(self._ids, root.name, self._links, clock.to_ns(root.begin_s))
        for part in parts:
            self._add(part, clock, ())
        _finish(first, root, clock)

    def join(self, part: Past) -> None:
        self._add(part, _Clock(), self._links)

    def _add(self, part: Past, clock: "_Clock", links: Sequence[Link]) -> None:
        below = set_span_in_context(NonRecordingSpan(self._context))
        begin_ns = clock.to_ns(part.begin_s)
        _finish(self._tracer.otel.start_span(part.name, below, links=links, start_time=begin_ns), part, clock)


class _Clock:
    """From time.monotonic() to nanoseconds of the wall clock, as they stand to one another now."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def to_ns(self, at_s: float) -> int:
        return self._offset_ns + round(at_s * 1e9)


class _Ids(RandomIdGenerator):
    """Random ids, except for a first span whose `given` ids others know too."""

    given: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.given is None else self.given[0]

    def generate_span_id(self) -> int:
        return super().generate_span_id() if self.given is None else self.given[1]


class _Exporter(SpanExporter):
    """OTLP over gRPC. It says when spans begin to get lost and when they arrive again, not each time."""

    def __init__(self, endpoint: str, registry: CollectorRegistry) -> None:
        host = urlsplit(endpoint).hostname or ""
        # a proxy of the environment does not lead back to this machine
        options = (("grpc.enable_http_proxy", 0),) if host.startswith(_LOOPBACK) else None
        self._endpoint = endpoint
        self._otlp = OTLPSpanExporter(
            endpoint=endpoint,
            insecure=urlsplit(endpoint).scheme == "http",
            channel_options=options,  # type: ignore[arg-type]
        )
        self._arriving = True
        self._spans = Counter("worldtree_spans_total", "Spans by what became of them.", ("result",), registry=registry)
        for result in ("sent", "lost"):
            self._spans.labels(result)
        # one line for each try, for as long as nobody answers
        logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._otlp.export(spans)
        arriving = result is SpanExportResult.SUCCESS
        self._spans.labels("sent" if arriving else "lost").inc(len(spans))
        if arriving != self._arriving:
            self._arriving = arriving
            log = _log.info if arriving else _log.warning
            log("spans arrive again" if arriving else "spans are lost", extra={"collector": self._endpoint})
        return result

    def give_up(self) -> None:
        """Ends a delivery that is under way, and all that would follow."""
        self._otlp.shutdown(timeout_millis=0)

    def shutdown(self) -> None:
        self.give_up()


def _finish(span: OtelSpan, past: Past, clock: _Clock) -> None:
    span.set_attributes(past.attributes)
    if past.failed:
        span.set_status(Status(StatusCode.ERROR))
    span.end(clock.to_ns(past.end_s))


def _remote(context: TraceContext) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=True, trace_flags=flags)


def _rpc(method: str) -> dict[str, str]:
    service, _, name = method.partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


def _version() -> str:
    try:
        return version("worldtree-server")
    except PackageNotFoundError:  # run from its sources
        return "0"
