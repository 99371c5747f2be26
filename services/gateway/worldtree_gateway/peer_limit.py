"""So many calls at a time from one address, however many connections it makes and whoever it says it is."""

import ipaddress
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from worldtree_runtime.interceptors import Context

from worldtree_gateway.errors import TooManyPeerCalls
from worldtree_gateway.handlers import Handler, MaybeHandler, responses_to
from worldtree_gateway.metrics import GatewayMetrics

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]]
_NETWORK = ("ipv4:", "ipv6:")
_IPV6_PREFIX = 64  # what one subscriber has: it may take any address in there


class PeerCalls:
    """Of all ports of this process together: calls by gRPC, connections by HTTP and openpi. `limit`: 0 for none."""

    def __init__(self, limit: int, metrics: GatewayMetrics) -> None:
        self._limit, self._metrics = limit, metrics
        self._calls: Counter[str] = Counter()  # under way, by address

    @contextmanager
    def counted(self, address: str) -> Iterator[None]:
        """One for as long as the block runs. Raises TooManyPeerCalls."""
        if not self._limit:
            yield
            return
        peer = network_of(address)
        if self._calls[peer] >= self._limit:
            self._metrics.limited.labels("peer").inc()
            raise TooManyPeerCalls(peer, self._limit)
        self._calls[peer] += 1
        try:
            yield
        finally:
            self._calls[peer] -= 1
            if not self._calls[peer]:
                del self._calls[peer]


@lru_cache(4096)
def network_of(address: str) -> str:
    """Whose an address is, as far as that can be told: of IPv6, all in one network of 64 bits are one's."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False))


class PeerLimit(grpc.aio.ServerInterceptor):
    """In front of all that handles a call. What comes over the gateway's own socket is counted where it came in.

    An address is known only where a call is handled, so what takes long before that (a key's hash) is left until then.
    """

    def __init__(self, peers: PeerCalls) -> None:
        self._peers = peers

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> MaybeHandler:
        handler = await continuation(handler_call_details)
        return None if handler is None else self._limited(handler)

    @contextmanager
    def _counted(self, context: Context) -> Iterator[None]:
        peer = context.peer()
        if not peer.startswith(_NETWORK):
            yield
            return
        address = unquote(peer.partition(":")[2].rpartition(":")[0])
        with self._peers.counted(address.strip("[]")):
            yield

    def _limited(self, handler: Handler) -> Handler:
        decode, encode = handler.request_deserializer, handler.response_serializer
        if not handler.response_streaming:
            behaviour: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

            async def answer(request: Any, context: Context) -> Any:
                with self._counted(context):
                    return await behaviour(request, context)

            if handler.request_streaming:
                return grpc.stream_unary_rpc_method_handler(answer, decode, encode)
            return grpc.unary_unary_rpc_method_handler(answer, decode, encode)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counted(context):
                async with aclosing(responses_to(handler, request, context)) as responses:
                    async for response in responses:
                        yield response

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, decode, encode)
        return grpc.unary_stream_rpc_method_handler(stream, decode, encode)
