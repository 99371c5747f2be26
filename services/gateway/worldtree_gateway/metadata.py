"""What is said beside a call's messages: a caller's metadata as its backend gets it, a backend's as its caller does."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import grpc.aio
from worldtree_runtime.interceptors import REQUEST_ID_KEY
from worldtree_runtime.logs import current_request_id
from worldtree_runtime.messages import REPLICA_KEY, TENANT_KEY

from worldtree_gateway.domain import ANONYMOUS_TENANT
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
_OURS = frozenset({REHOME_KEY, TENANT_KEY, ADMITTED_KEY})


def forwarded(context: Context, rehome: str | None = None, *, admitted: bool = False) -> Metadata:
    """A caller's metadata as its backend gets it, under the request id that our own logs use.

    What only a gateway may say, a caller can't: who a call is for, that its session's replica is gone, and
    that a play was admitted before.
    """
    theirs = tuple(pair for pair in clean(context.invocation_metadata() or ()) if pair[0] not in _OURS)
    ours: Metadata = ((TENANT_KEY, ANONYMOUS_TENANT),)
    if rehome is not None:
        ours = (*ours, (REHOME_KEY, rehome))
    if admitted:
        ours = (*ours, (ADMITTED_KEY, "1"))
    request_id = current_request_id()
    if request_id is not None:
        ours = (*ours, (REQUEST_ID_KEY, request_id))
    return (*theirs, *ours)


def clean(metadata: Iterable[tuple[str, Any]]) -> Metadata:
    return tuple(
        (key, value)
        for key, value in metadata
        if key not in _HOP_BY_HOP
        and (not key.startswith("grpc-") or key == STATUS_DETAILS_KEY)
        and key != REQUEST_ID_KEY  # the interceptor writes it at each side
    )


async def pass_head(call: Any, context: Context, ours: Metadata = ()) -> None:
    """Costs a write of its own, so the replica's name, which all of ours send, goes to the trailers instead."""
    head = (*(pair for pair in clean(await call.initial_metadata()) if pair[0] != REPLICA_KEY), *ours)
    if head:
        await context.send_initial_metadata(head)


async def pass_trailers(call: Any, context: Context) -> None:
    replica = tuple(pair for pair in await call.initial_metadata() if pair[0] == REPLICA_KEY)
    trailers = clean(await call.trailing_metadata())
    if replica or trailers:
        context.set_trailing_metadata((*trailers, *replica))
