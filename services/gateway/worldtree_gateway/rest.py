"""The HTTP side of a gateway, on a port of its own: the inference protocol under /v2, RPCs as JSON under /v1.

Each request is a call to the gateway's own gRPC server, with what its caller shows: keys, roles, quotas, the cache and
failover hold for it as for any.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
from tritonclient.grpc import service_pb2_grpc
from worldtree_runtime.address import joined

from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.domain import Service
from worldtree_gateway.http_door import HttpDoor
from worldtree_gateway.http_server import HttpRequest, HttpServer
from worldtree_gateway.json_thread import JsonThread
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.oip_rest import Rest, error_response
from worldtree_gateway.security import Security
from worldtree_gateway.transcoding import PREFIX, Transcoder

_log = logging.getLogger(__name__)


@asynccontextmanager
async def serve_rest(
    settings: GatewaySettings,
    port: int,
    target: str,
    security: Security,
    services: Sequence[Service],
    metrics: GatewayMetrics,
) -> AsyncIterator[str]:
    """Serves from here to the end of the block, and yields its HOST:PORT, encrypted where the gateway is.

    `target`: the gRPC server, which lets in whom it lets in. Raises OSError where the port can't be had.
    """
    options = (
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    door, thread = HttpDoor(security, metrics), JsonThread()
    json_bytes = min(settings.http_json_bytes, settings.max_message_bytes)
    async with AsyncExitStack() as stack:
        stack.callback(thread.close)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
        inference = Rest(
            service_pb2_grpc.GRPCInferenceServiceStub(channel),
            door,
            thread,
            json_bytes=json_bytes,
            message_bytes=settings.max_message_bytes,
            timeout_s=settings.unary_timeout_s,
        )
        transcoder = Transcoder(
            channel, services, door, thread, body_bytes=json_bytes, timeout_s=settings.unary_timeout_s
        )

        def side(request: HttpRequest) -> Transcoder | Rest:
            return transcoder if request.path.startswith(PREFIX) else inference

        server = HttpServer(
            lambda request: side(request).admit(request),
            lambda request: side(request).answer(request),
            error_response,
            security.peers,
            buffer_bytes=settings.http_buffer_bytes,
            max_connections=settings.max_connections,
        )
        context = None if security.certificates is None else security.certificates.context()
        await server.start(settings.host, port, context)
        address = joined(settings.host, server.port)
        _log.info("serving by HTTP", extra={"http": address})
        try:
            yield address
        finally:
            await server.stop(min(5.0, settings.drain_timeout_s))
