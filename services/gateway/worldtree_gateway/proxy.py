"""Gives each call to what answers it: the relay of its service, or the cache before it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio
from worldtree.video.v1 import video_generator_pb2 as pb

from worldtree_gateway.cached_calls import CachedCalls
from worldtree_gateway.domain import Method, Service
from worldtree_gateway.errors import NotConfigured
from worldtree_gateway.metadata import Context
from worldtree_gateway.play_failover import PlayFailover
from worldtree_gateway.relay import Relay

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
    ) -> None:
        """`relays`, `cached_calls` and `plays` by section; a service without a relay is answered UNIMPLEMENTED."""
        self._handlers: dict[str, Handler] = {}
        self._relays = relays
        self._services = {service.full_name: service for service in services}
        for service in services:
            relay = relays.get(service.section)
            if relay is not None:
                for method in service.methods.values():
                    cached = cached_calls.get(service.section) if method.cache is not None else None
                    handler = _handler(method, relay, cached)
                    if method.request_class is pb.PlayRequest:
                        play = partial(plays[service.section].stream_stream, method)
                        handler = grpc.stream_stream_rpc_method_handler(play)
                    self._handlers[method.path] = handler

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
        method = Method(path, client_streaming=True, server_streaming=True)
        return _handler(method, relay, None)


def _handler(method: Method, relay: Relay, cached: CachedCalls | None) -> Handler:
    # no serializers: bytes in, bytes out
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(partial(relay.stream_stream, method))
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(partial(relay.stream_unary, method))
    calls = cached or relay
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(partial(calls.unary_stream, method))
    return grpc.unary_unary_rpc_method_handler(partial(calls.unary_unary, method))


async def _not_configured(service: Service, _requests: object, _context: Context) -> None:
    raise NotConfigured(service.section, service.full_name)
