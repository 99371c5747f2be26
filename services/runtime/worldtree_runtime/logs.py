"""Structured logs: one JSON object a line for machines, one short line for people. They go to stderr."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from worldtree_runtime.tracing import current_trace

# set by the interceptors for as long as a call is handled; each task that a handler starts inherits it
_request_id: ContextVar[str | None] = ContextVar("worldtree_request_id", default=None)

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "request_id",
    "trace_id",
    "taskName",
}


def current_request_id() -> str | None:
    """The request that this task works for; None outside of any."""
    return _request_id.get()


def set_request_id(request_id: str) -> None:
    """From here on this task, and each that it starts, works for that request."""
    _request_id.set(request_id)


@contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Every log line written inside names `request_id`."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def configure(level: str, format: Literal["json", "console"]) -> None:  # noqa: A002 - named as its setting
    """Sends the logs of the whole process to stderr. Calling it again replaces what an earlier call set up."""
    handler = _Stderr()
    handler.setFormatter(JsonFormatter() if format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, _Stderr)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # grpc.aio tells of its event loop several times a call at debug, which buries everything else
    logging.getLogger("grpc").setLevel(max(root.level, logging.INFO))


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, request_id, trace_id, what was given as `extra`, and the traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = _request_id_of(record)
        if request_id is not None:
            line["request_id"] = request_id
        trace_id = _trace_id_of(record)
        if trace_id is not None:
            line["trace_id"] = trace_id
        line.update(_extra(record))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """The same, short and in reading order."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _extra(record)
        request_id = _request_id_of(record)
        if request_id is not None:
            fields["request_id"] = request_id
        trace_id = _trace_id_of(record)
        if trace_id is not None:
            fields["trace_id"] = trace_id
        line = f"{_time(record)[11:23]} {record.levelname:7} {record.name}: {record.getMessage()}"
        line += "".join(f" {key}={value}" for key, value in fields.items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """A class of our own, so that `configure` replaces its own handler and leaves those of others."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _request_id_of(record: logging.LogRecord) -> str | None:
    given = getattr(record, "request_id", None)
    return str(given) if given is not None else current_request_id()


def _trace_id_of(record: logging.LogRecord) -> str | None:
    given = getattr(record, "trace_id", None)
    if given is not None:
        return str(given)
    trace = current_trace()
    return None if trace is None else trace.trace_id


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
