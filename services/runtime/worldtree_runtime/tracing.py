"""Which trace a call is part of, and its span. Knows W3C's Trace Context, and no OpenTelemetry: that is in otel.py.

Without a tracer, the trace of a call is the one that its caller names. With one, each call is a span of its own in the
caller's trace, or the first of a new one.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

TRACEPARENT_KEY = "traceparent"

Attributes: TypeAlias = Mapping[str, str | bool | int | float]

_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span as others name it. Ids are lower-case hex: 32 digits for the trace, 16 for the span in it."""

    trace_id: str
    span_id: str
    sampled: bool

    @classmethod
    def read(cls, traceparent: Any) -> Self | None:
        """What a caller's metadata says. Strangers write it, so whatever can't be read counts as not said."""
        found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
        if found is None or (found[1] == "00" and found[5]):  # only versions to come may say more
            return None
        return cls(found[2], found[3], bool(int(found[4], 16) & 1))

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def aside(self, key: str) -> tuple[str, str]:
        """Ids of a trace that goes with this span, and of its first span. Who has span and key comes to the same."""
        digest = hashlib.sha256(f"{self.trace_id} {self.span_id} {key}".encode()).hexdigest()
        return digest[:32], digest[32:48]


@dataclass(frozen=True, slots=True)
class Past:
    """A span that is over when it is told. Its times are those of time.monotonic()."""

    name: str
    begin_s: float
    end_s: float
    attributes: Attributes = field(default_factory=dict)
    failed: bool = False


class SideTrace(Protocol):
    """A trace of its own beside a call's, linked to the call's span. Both ends of a call can tell of the same one."""

    @property
    def trace_id(self) -> str:
        """Its id, for exemplars."""

    def lead(self, root: Past, parts: Sequence[Past]) -> None:
        """Its first span and those below it. For one of the two ends."""

    def join(self, part: Past) -> None:
        """One more span below the first. For the other end."""


class Span(Protocol):
    """Something that is under way, in one trace."""

    @property
    def context(self) -> TraceContext:
        """What those who are called meanwhile are told."""

    @property
    def parent(self) -> TraceContext | None:
        """What the caller said."""

    def child(self, name: str, attributes: Attributes) -> "Span":
        """A call that is made for this one, until it is ended."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Something that happens now."""

    def link(self, other: TraceContext) -> None:
        """Another span has to do with it, in this trace or in another."""

    def end(self, code: str, attributes: Attributes, *, description: str = "") -> None:
        """It ends now with a canonical code, by name. Once."""

    def aside(self, of: TraceContext, key: str) -> SideTrace | None:
        """The trace that `of.aside(key)` names. None: it is not among those that are sampled."""


class Tracer(Protocol):
    """Makes the spans of one server, and delivers them from `async with` to its end."""

    def begin(self, method: str, caller: TraceContext | None) -> Span:
        """A call that has come. `method`: package.Service/Name."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


# A call is a task of its own, and each task that its handler starts inherits these.
_trace: ContextVar[TraceContext | None] = ContextVar("worldtree_trace", default=None)
_span: ContextVar[Span | None] = ContextVar("worldtree_span", default=None)


def set_trace(trace: TraceContext, span: Span | None) -> None:
    """From here on this task works in `trace`, for `span` where that is our own."""
    _trace.set(trace)
    _span.set(span)


def current_trace() -> TraceContext | None:
    """The trace that this task works in; None where nobody traces."""
    return _trace.get()


def current_span() -> Span | None:
    """The span of the call that this task works for; None where calls are not traced here."""
    return _span.get()


def chunk_trace(span: Span, heard: TraceContext, request_id: str | None, number: int) -> SideTrace | None:
    """The trace of one chunk of a play, beside the play's own: so that an hour of chunks is no single trace.

    Who makes chunks and who passes them on tell of the same one: both know what the maker `heard` of the call's trace,
    the request and how many chunks came before. `span`: the teller's own. None: it is not among those that are kept.
    """
    return span.aside(heard, f"{request_id} {number}")


def trace_metadata(span: Span | None = None) -> tuple[tuple[str, str], ...]:
    """What those are told who are called for the current call: `span` if there is one, else the call's own."""
    trace = current_trace() if span is None else span.context
    return () if trace is None else ((TRACEPARENT_KEY, trace.traceparent),)
