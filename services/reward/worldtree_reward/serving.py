"""The whole service as one context: judges loaded, engines running, server up; and all of it down again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree.reward.v1.reward_scorer_pb2_grpc import add_RewardScorerServicer_to_server
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.server import RunningServer, start_server

from worldtree_reward.catalog import Catalog, load_catalog
from worldtree_reward.config import RewardSettings
from worldtree_reward.metrics import RewardMetrics
from worldtree_reward.servicer import RewardServicer

_SERVICE = pb.DESCRIPTOR.services_by_name["RewardScorer"].full_name


@asynccontextmanager
async def serve_reward(settings: RewardSettings) -> AsyncIterator[tuple[RunningServer, Catalog]]:
    """Serves from here to the end of the block. Raises PackageError for a broken model, OSError for a taken port."""
    registry = process_registry()
    metrics = RewardMetrics(registry)
    async with AsyncExitStack() as stack:
        catalog = load_catalog(settings, metrics)
        for each in catalog:
            stack.push_async_callback(asyncio.to_thread, each.close)  # it waits for who looks after a backend
        servicer = RewardServicer(catalog, settings, metrics)

        def register(server: grpc.aio.Server) -> list[str]:
            add_RewardScorerServicer_to_server(servicer, server)
            return [_SERVICE]

        catalog.start()
        stack.push_async_callback(asyncio.to_thread, catalog.stop)  # it waits for the runs under way

        def ready() -> bool:
            # one whose backend is away says so to its own callers, and keeps the others from nobody
            return not len(catalog) or any(each.ready for each in catalog)

        async with start_server(
            settings, service="reward", register=register, ready=ready, registry=registry
        ) as server:
            yield server, catalog
