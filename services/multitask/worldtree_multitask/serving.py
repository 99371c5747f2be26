"""The whole service as one context: models loaded, engines running, server up; and all of it down again."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1.multi_task_pb2_grpc import add_MultiTaskServicer_to_server
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.server import RunningServer, start_server
from worldtree_runtime.stores import FolderStore, Store, open_store

from worldtree_multitask.catalog import Catalog, load_catalog
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.creations import Creations
from worldtree_multitask.merges import Merges
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.served import Made
from worldtree_multitask.servicer import MultiTaskServicer

_SERVICE = pb.DESCRIPTOR.services_by_name["MultiTask"].full_name


@asynccontextmanager
async def serve_multitask(settings: MultitaskSettings) -> AsyncIterator[tuple[RunningServer, Catalog]]:
    """Serves from here to the end of the block. Raises PackageError for a broken model, OSError for a taken port."""
    registry = process_registry()
    metrics = MultitaskMetrics(registry)
    async with AsyncExitStack() as stack:
        store = _open_store(settings)
        stack.push_async_callback(store.close)
        catalog = load_catalog(settings, metrics)
        merges = Merges(store, name_reuse_s=settings.name_reuse_s, limit=settings.max_merges)
        creations = Creations[Made](limit=settings.max_creations)
        servicer = MultiTaskServicer(catalog, merges, creations, settings, metrics)

        def register(server: grpc.aio.Server) -> list[str]:
            add_MultiTaskServicer_to_server(servicer, server)
            return [_SERVICE]

        catalog.start()
        stack.callback(catalog.stop)
        stack.push_async_callback(creations.aclose)
        async with start_server(settings, service="multitask", register=register, registry=registry) as server:
            yield server, catalog


def _open_store(settings: MultitaskSettings) -> Store:
    """Where named merges are kept."""
    if settings.redis_url is None and settings.merges_folder is not None:
        return FolderStore(settings.merges_folder)
    return open_store(settings.redis_url)
