"""The whole service as one context: models loaded, engines running, server up; and all of it down again."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc.aio
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import add_VideoGeneratorServicer_to_server
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.server import RunningServer, start_server
from worldtree_runtime.stores import MemoryStore, Store, open_store

from worldtree_video.catalog import Catalog, load_catalog
from worldtree_video.config import VideoSettings
from worldtree_video.metrics import VideoMetrics
from worldtree_video.servicer import VideoServicer

log = logging.getLogger(__name__)
_SERVICE = pb.DESCRIPTOR.services_by_name["VideoGenerator"].full_name
_HOUSEKEEPING_S = 1.0


@asynccontextmanager
async def serve_video(settings: VideoSettings) -> AsyncIterator[tuple[RunningServer, Catalog]]:
    """Serves from here to the end of the block. Raises PackageError for a broken model, OSError for a taken port."""
    registry = process_registry()
    metrics = VideoMetrics(registry)
    catalog = load_catalog(settings, metrics)
    store = _open_store(settings)
    servicer = VideoServicer(catalog, settings, store, metrics)

    def register(server: grpc.aio.Server) -> list[str]:
        add_VideoGeneratorServicer_to_server(servicer, server)
        return [_SERVICE]

    catalog.start()
    try:
        async with start_server(
            settings, service="video", register=register, ready=catalog.has_room, registry=registry
        ) as server:
            housekeeping = asyncio.create_task(_keep_house(catalog))
            try:
                yield server, catalog
            finally:
                housekeeping.cancel()
                with suppress(asyncio.CancelledError):
                    await housekeeping
    finally:
        catalog.stop()
        await store.close()


def _open_store(settings: VideoSettings) -> Store:
    if settings.redis_url is None:
        return MemoryStore(max_bytes=settings.snapshot_store_mib << 20)
    return open_store(settings.redis_url)


async def _keep_house(catalog: Catalog) -> None:
    while True:
        try:
            catalog.expire()
            catalog.observe()
        except Exception:  # the next round may do better; without one, no lease would ever end
            log.exception("housekeeping failed")
        await asyncio.sleep(_HOUSEKEEPING_S)
