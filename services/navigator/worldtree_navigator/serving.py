"""The whole service as one context: channels open, server up; and all of it down again."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import add_NavigatorServicer_to_server
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.server import RunningServer, start_server

from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.peers import Peers
from worldtree_navigator.servicer import NavigatorServicer

_SERVICE = pb.DESCRIPTOR.services_by_name["Navigator"].full_name


@asynccontextmanager
async def serve_navigator(settings: NavigatorSettings) -> AsyncIterator[RunningServer]:
    """Serves from here to the end of the block. Raises OSError for a taken port."""
    registry = process_registry()
    async with AsyncExitStack() as stack:
        peers = Peers(settings)
        stack.push_async_callback(peers.close)
        servicer = NavigatorServicer(peers, settings, NavigatorMetrics(registry))

        def register(server: grpc.aio.Server) -> list[str]:
            add_NavigatorServicer_to_server(servicer, server)
            return [_SERVICE]

        server = start_server(settings, service="navigator", register=register, registry=registry)
        yield await stack.enter_async_context(server)
