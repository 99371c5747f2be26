"""What services that are asked for a caller are told of it."""

from contextvars import copy_context
from types import SimpleNamespace

from worldtree_navigator.peers import passed_metadata
from worldtree_runtime.logs import request_context
from worldtree_runtime.tracing import TraceContext, set_trace

THEIRS, OURS = TraceContext("a" * 32, "b" * 16, True), TraceContext("a" * 32, "c" * 16, True)
SAID = (
    ("worldtree-tenant", "acme"),
    ("authorization", "Bearer given"),
    ("traceparent", THEIRS.traceparent),
    ("user-agent", "a robot"),
)


def passed(trace: TraceContext | None) -> dict[str, str]:
    def ask() -> dict[str, str]:
        if trace is not None:
            set_trace(trace, None)
        with request_context("r-1"):
            return dict(passed_metadata(SimpleNamespace(invocation_metadata=lambda: SAID)))

    return copy_context().run(ask)


def test_peers_are_asked_in_the_trace_of_the_call_and_not_in_its_callers_place() -> None:
    assert passed(OURS) == {
        "worldtree-tenant": "acme",
        "authorization": "Bearer given",
        "traceparent": OURS.traceparent,
        "x-request-id": "r-1",
    }


def test_outside_of_any_trace_none_is_made_up() -> None:
    assert "traceparent" not in passed(None)
