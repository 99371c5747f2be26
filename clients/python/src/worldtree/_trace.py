"""The trace that a program is in, where it traces itself with OpenTelemetry. Nothing is loaded for that."""

import sys


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """What a call tells the server, so that its spans join the program's. Nothing outside of any trace."""
    trace = sys.modules.get("opentelemetry.trace")  # a program that traces has it
    if trace is None:
        return ()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    return (("traceparent", f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"),)
