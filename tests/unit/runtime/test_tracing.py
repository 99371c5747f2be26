"""What a caller's traceparent says, and traces that both ends of a call can name."""

import pytest
from worldtree_runtime.tracing import TraceContext, current_span, current_trace, trace_metadata

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("traceparent", "sampled"),
    [
        (f"00-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),
        (f"42-{TRACE_ID}-{SPAN_ID}-01-and-more", True),
    ],
)
def test_what_a_caller_says_is_read_and_said_again(traceparent: str, sampled: bool) -> None:
    found = TraceContext.read(traceparent)
    assert found == TraceContext(TRACE_ID, SPAN_ID, sampled)
    assert TraceContext.read(found.traceparent) == found


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        b"00",
        "",
        "nonsense",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
    ],
)
def test_what_cannot_be_read_counts_as_not_said(traceparent: object) -> None:
    assert TraceContext.read(traceparent) is None


def test_both_ends_of_a_call_come_to_the_same_trace_beside_it_and_other_calls_to_others() -> None:
    said = TraceContext(TRACE_ID, SPAN_ID, True)
    heard = TraceContext.read(said.traceparent)
    assert heard is not None
    assert said.aside("r-1 0") == heard.aside("r-1 0")
    others = {said.aside("r-1 1"), said.aside("r-2 0"), TraceContext(TRACE_ID, SPAN_ID[::-1], True).aside("r-1 0")}
    assert len(others | {said.aside("r-1 0")}) == 4
    trace_id, span_id = said.aside("r-1 0")
    assert (len(trace_id), len(span_id)) == (32, 16)


def test_outside_of_any_call_there_is_no_trace() -> None:
    assert (current_trace(), current_span(), trace_metadata()) == (None, None, ())
