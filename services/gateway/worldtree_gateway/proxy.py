"""Gives each call to what answers it: the relay of its service, or the cache before it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.call_notes import note_tenant

from worldtree_gateway.cached_calls import CachedCalls
from worldtree_gateway.canary import Canary
from worldtree_gateway.domain import Method, Service
from worldtree_gateway.errors import NotConfigured
from worldtree_gateway.identity import current_caller
from worldtree_gateway.metadata import Context
from worldtree_gateway.play_failover import PlayFailover
from worldtree_gateway.quotas import Quotas
from worldtree_gateway.relay import Relay
from worldtree_gateway.session_quota import SessionQuota

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Proxy(grpc.GenericRpcHandler):
    """Answers for every service it knows, configured or not; other services are not found here."""

    def __init__(
        self,
        services: Sequence[Service],
        relays: Mapping[str, Relay],
        cached_calls: Mapping[str, CachedCalls],
        plays: Mapping[str, PlayFailover],
        canary: Canary,
        sessions: SessionQuota | None = None,
    ) -> None:
        """`relays`, `cached_calls` and `plays` by section; a service without a relay is answered UNIMPLEMENTED.
        `sessions`: None for no limit.
        """
        self._handlers: dict[str, Handler] = {}
        self._relays, self._canary = relays, canary
        self._services = {service.full_name: service for service in services}
        for service in services:
            relay = relays.get(service.section)
            if relay is not None:
                for method in service.methods.values():
                    cached = cached_calls.get(service.section) if method.cache is not None else None
                    play = plays[service.section] if method.request_class is pb.PlayRequest else None
                    opening = sessions if sessions is not None and sessions.covers(method) else None
                    self._handlers[method.path] = _handler(method, relay, canary, cached, play, opening)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> MaybeHandler:
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is not None:
            return handler
        service = self._services.get(path[1:].partition("/")[0])
        if service is None:
            return None
        relay = self._relays.get(service.section)
        if relay is None:
            return grpc.stream_stream_rpc_method_handler(partial(_not_configured, service))
        # Unknown here, perhaps known to a newer backend. On the wire every kind of call is a stream both ways.
        method = Method(path, client_streaming=True, server_streaming=True, takes_credentials=not service.homes)
        return _handler(method, relay, self._canary)


def _handler(
    method: Method,
    relay: Relay,
    canary: Canary,
    cached: CachedCalls | None = None,
    play: PlayFailover | None = None,
    sessions: SessionQuota | None = None,
) -> Handler:
    # no serializers: bytes in, bytes out
    let_in = partial(_let_in, relay.quotas, canary, method, sessions)
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(let_in((play or relay).stream_stream))
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(let_in(relay.stream_unary))
    calls = cached or relay
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(let_in(calls.unary_stream))
    return grpc.unary_unary_rpc_method_handler(let_in(calls.unary_unary))


def _let_in(
    quotas: Quotas,
    canary: Canary,
    method: Method,
    sessions: SessionQuota | None,
    answer: Callable[..., Awaitable[Any]],
) -> Callable[..., Awaitable[Any]]:
    """`answer`, for callers who may still call, of the version that is theirs."""

    async def admitted(request: Any, context: Context) -> Any:
        note_tenant(current_caller().tenant)
        await quotas.admit()
        if sessions is not None:
            async with sessions.opening(method, request, context):
                return await answer(method, canary.pinned(method, request), context)
        if not (method.client_streaming and method.server_streaming):
            pinned = request if method.client_streaming else canary.pinned(method, request)
            return await answer(method, pinned, context)
        with quotas.stream():
            return await answer(method, request, context)

    return admitted


async def _not_configured(service: Service, _requests: object, _context: Context) -> None:
    raise NotConfigured(service.section, service.full_name)
