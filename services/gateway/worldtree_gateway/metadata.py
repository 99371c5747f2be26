"""What is said beside a call's messages: a caller's metadata as its backend gets it, a backend's as its caller does."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc.aio
from worldtree_runtime.interceptors import REQUEST_ID_KEY
from worldtree_runtime.logs import current_request_id
from worldtree_runtime.messages import CHARGED_KEY, COST_KEY, HELD_KEY, LOAD_KEY, REPLICA_KEY, TENANT_KEY
from worldtree_runtime.tracing import TRACEPARENT_KEY, Span, trace_metadata

from worldtree_gateway.authenticator import AUTHORIZATION_KEY, CREDENTIALS
from worldtree_gateway.domain import Method
from worldtree_gateway.identity import current_caller
from worldtree_gateway.verdicts import STATUS_DETAILS_KEY

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata = tuple[tuple[str, str | bytes], ...]

REHOME_KEY = "worldtree-rehome"  # the replica that is gone, said to the one that is to take its session on
REPLICAS_KEY = "worldtree-replicas"  # what Introspect's caller gets: the names that can be asked for
ADMITTED_KEY = "worldtree-admitted"  # a play that broke off: its fps was promised before

# what belongs to one connection, or is written anew by the transport; "grpc-..." goes too
_HOP_BY_HOP = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "host", "keep-alive", "te", "user-agent"}
)
_COST_MAX = 1e9  # of one call; a backend that says more is mistaken
_OURS = frozenset({REHOME_KEY, TENANT_KEY, ADMITTED_KEY, TRACEPARENT_KEY, *CREDENTIALS})


def forwarded(
    context: Context, method: Method, rehome: str | None = None, *, admitted: bool = False, span: Span | None = None
) -> Metadata:
    """A caller's metadata as its backend gets it, under the request id that our own logs use, and below our `span`.

    What only a gateway may say, a caller can't: who a call is for, that its session's replica is gone, and
    that a play was admitted before. What only a gateway needs, a backend doesn't get: credentials, but for one that may
    ask a gateway in turn.
    """
    theirs = tuple(pair for pair in clean(context.invocation_metadata() or ()) if pair[0] not in _OURS)
    if method.takes_credentials:
        theirs = (*theirs, *_credentials(context))
    ours: Metadata = ((TENANT_KEY, current_caller().tenant),)
    if rehome is not None:
        ours = (*ours, (REHOME_KEY, rehome))
    if admitted:
        ours = (*ours, (ADMITTED_KEY, "1"))
    request_id = current_request_id()
    if request_id is not None:
        ours = (*ours, (REQUEST_ID_KEY, request_id))
    return (*theirs, *ours, *trace_metadata(span))


def _credentials(context: Context) -> Metadata:
    """As `authorization`, however they were shown: what a backend passes on."""
    return tuple(
        (AUTHORIZATION_KEY, value if key == AUTHORIZATION_KEY else f"Bearer {value}")
        for key, value in context.invocation_metadata() or ()
        if key in CREDENTIALS and isinstance(value, str)
    )


def below(span: Span | None, metadata: Metadata) -> Metadata:
    """What was to be forwarded, of a call that is made for many: below `span`, where it is traced."""
    if span is None:
        return metadata
    return (*(pair for pair in metadata if pair[0] != TRACEPARENT_KEY), *trace_metadata(span))


def clean(metadata: Iterable[tuple[str, Any]]) -> Metadata:
    return tuple(
        (key, value)
        for key, value in metadata
        if key not in _HOP_BY_HOP
        and (not key.startswith("grpc-") or key == STATUS_DETAILS_KEY)
        and key != REQUEST_ID_KEY  # the interceptor writes it at each side
        and key not in (LOAD_KEY, HELD_KEY)  # said to this gateway
    )


async def pass_head(head: Iterable[tuple[str, Any]], context: Context, ours: Metadata = ()) -> None:
    """Costs a write of its own, so the replica's name, which all of ours send, goes to the trailers instead."""
    passed = (*(pair for pair in clean(head) if pair[0] != REPLICA_KEY), *ours)
    if passed:
        await context.send_initial_metadata(passed)


def pass_trailers(head: Iterable[tuple[str, Any]], trailers: Iterable[tuple[str, Any]], context: Context) -> None:
    passed = (*passed_trailers(trailers), *(pair for pair in head if pair[0] == REPLICA_KEY))
    if passed:
        context.set_trailing_metadata(passed)


def passed_trailers(trailers: Iterable[tuple[str, Any]] | None) -> Metadata:
    """As a caller gets them, with the word that it was charged where something was made."""
    theirs = clean(trailers or ())
    return (*theirs, (CHARGED_KEY, "1")) if any(key == COST_KEY for key, _ in theirs) else theirs


def cost_in(trailers: Iterable[tuple[str, Any]] | None) -> float:
    """Frames that a call has made, each counted once for each of its function evaluations; 0 where nothing is said."""
    said = next((value for key, value in trailers or () if key == COST_KEY), "")
    return min(float(said), _COST_MAX) if isinstance(said, str) and said.isascii() and said.isdigit() else 0.0
