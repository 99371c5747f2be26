"""The whole service as one context: channels open, server up; and all of it down again."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import add_NavigatorServicer_to_server
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.server import RunningServer, start_server

from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.map_planning import MapPlanner
from worldtree_navigator.maze_catalog import load_mazes
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.peers import Peers
from worldtree_navigator.policies import Policies, load_policies
from worldtree_navigator.servicer import NavigatorServicer

_SERVICE = pb.DESCRIPTOR.services_by_name["Navigator"].full_name


@asynccontextmanager
async def serve_navigator(settings: NavigatorSettings) -> AsyncIterator[RunningServer]:
    """Serves from here to the end of the block. Raises PackageError for a broken model, OSError for a taken port."""
    registry = process_registry()
    metrics = NavigatorMetrics(registry)
    async with AsyncExitStack() as stack:
        peers = Peers(settings)
        stack.push_async_callback(peers.close)
        maps = MapPlanner(load_mazes(settings, metrics))
        maps.start()
        stack.callback(maps.stop)
        policies = load_policies(settings, metrics)
        policies.start()
        stack.callback(policies.stop)
        servicer = NavigatorServicer(peers, maps, Policies(policies), settings, metrics)

        def register(server: grpc.aio.Server) -> list[str]:
            add_NavigatorServicer_to_server(servicer, server)
            return [_SERVICE]

        server = start_server(settings, service="navigator", register=register, registry=registry)
        yield await stack.enter_async_context(server)
