"""The whole service as one context: models loaded, engines running, server up; and all of it down again."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc.aio
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import add_VideoGeneratorServicer_to_server
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.server import RunningServer, start_server
from worldtree_runtime.stores import FolderStore, MemoryStore, RedisStore, Store, StoreUnavailable, open_store
from worldtree_runtime.video_package import VideoPackage

from worldtree_video.adoption import Adoption
from worldtree_video.catalog import Catalog, Served, load_catalog, load_model
from worldtree_video.config import VideoSettings
from worldtree_video.host_tier import HostTier
from worldtree_video.journal import FolderJournal, Journal, RedisJournal
from worldtree_video.metrics import VideoMetrics
from worldtree_video.reload import Reload
from worldtree_video.scribe import Dump, Scribe
from worldtree_video.servicer import VideoServicer
from worldtree_video.tiers import Tiers

log = logging.getLogger(__name__)
_SERVICE = pb.DESCRIPTOR.services_by_name["VideoGenerator"].full_name
_HOUSEKEEPING_S = 1.0
_TAKE_UP_AGAIN_S = 2.0
_VERIFY_S = 5.0  # for so long a journal that came back empty may go unnoticed where nothing moves


@asynccontextmanager
async def serve_video(settings: VideoSettings) -> AsyncIterator[tuple[RunningServer, Catalog]]:
    """Serves from here to the end of the block. Raises PackageError for a broken model, OSError for a taken port."""
    registry = process_registry()
    metrics = VideoMetrics(registry)
    async with AsyncExitStack() as stack:
        store = _open_store(settings)
        stack.push_async_callback(store.close)
        blocks = _open_block_store(settings)
        tiers = Tiers(
            HostTier(settings.host_mib << 20),
            blocks,
            metrics,
            store_name=_store_name(settings),
            ttl_s=settings.tier_ttl_s,
        )
        if blocks:
            stack.push_async_callback(blocks.close)
        await stack.enter_async_context(tiers)
        journal = _open_journal(settings)
        scribe = None

        def dump(session: str) -> Dump | None:
            tiers.doubt()  # the journal has lost it, and perhaps its blocks too
            return catalog.dump(session)

        if journal:
            stack.push_async_callback(journal.aclose)
            scribe = Scribe(
                journal,
                metrics,
                dump=dump,
                lost=lambda session, owner: catalog.lost(session, owner),
                wait_s=settings.journal_timeout_s,
            )
            stack.push_async_callback(scribe.close)
        catalog = load_catalog(settings, metrics, tiers, scribe)
        repository = ModelRepository(Path(settings.models), VideoPackage)

        def load(folder: Path) -> Served:
            return load_model(repository.read(folder), settings, metrics, tiers, scribe)

        adoption = Adoption(catalog, repository, journal, scribe)
        servicer = VideoServicer(catalog, adoption, settings, store, metrics)

        def register(server: grpc.aio.Server) -> list[str]:
            add_VideoGeneratorServicer_to_server(servicer, server)
            return [_SERVICE]

        reloading: asyncio.Task[None] | None = None

        async def drain() -> None:
            if reloading:
                reloading.cancel()  # what would be loaded now would serve nobody
            await adoption.drain(settings.drain_timeout_s)

        catalog.start()
        stack.callback(catalog.stop)
        stack.push_async_callback(catalog.aclose)
        stack.push_async_callback(adoption.aclose)
        async with start_server(
            settings,
            service="video",
            register=register,
            ready=catalog.has_room,
            on_drain=drain,
            registry=registry,
            held=catalog.session_count,
        ) as server:
            tasks = [
                asyncio.create_task(_keep_house(catalog, settings, metrics)),
                asyncio.create_task(_take_up(adoption)),
            ]
            if scribe:
                tasks.append(asyncio.create_task(_verify_journal(scribe)))
            if settings.reload_s > 0:
                reload = Reload(catalog, repository, load, metrics)
                reloading = asyncio.create_task(reload.run(settings.reload_s))
                tasks.append(reloading)
            try:
                yield server, catalog
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _open_store(settings: VideoSettings) -> Store:
    """Where snapshots are kept."""
    if settings.redis_url is not None:
        return open_store(settings.redis_url)
    folder = _tier_url(settings)
    return FolderStore(folder) if folder else MemoryStore(max_bytes=settings.snapshot_store_mib << 20)


def _open_block_store(settings: VideoSettings) -> Store | None:
    """The tier below host memory; None: there is none."""
    folder = _tier_url(settings)
    if folder:
        return FolderStore(folder)
    return RedisStore(settings.redis_url) if settings.redis_url is not None else None


def _store_name(settings: VideoSettings) -> str:
    return "folder" if _tier_url(settings) else "redis" if settings.redis_url is not None else ""


def _tier_url(settings: VideoSettings) -> str | None:
    if settings.tier_url is None and settings.redis_url is None and settings.journal_folder is not None:
        return str(Path(settings.journal_folder) / "blocks")
    return settings.tier_url


def _open_journal(settings: VideoSettings) -> Journal | None:
    grace_s = settings.journal_grace_s
    if settings.redis_url is not None:
        return RedisJournal(settings.redis_url, settings.replica, timeout_s=settings.journal_timeout_s, grace_s=grace_s)
    if settings.journal_folder is not None:
        return FolderJournal(Path(settings.journal_folder), settings.replica, grace_s=grace_s)
    return None


async def _take_up(adoption: Adoption) -> None:
    """Takes up what this replica had before it was started anew; whoever asks first for one of them needn't wait."""
    while True:
        try:
            count = await adoption.adopt_owned()
        except StoreUnavailable as error:
            log.warning("the journal does not answer: %s", error)
            await asyncio.sleep(_TAKE_UP_AGAIN_S)
            continue
        except Exception:  # each session is still found by the first call on it
            log.exception("sessions of the journal could not be taken up")
            return
        if count:
            log.info("took up sessions from the journal", extra={"session_count": count})
        return


async def _keep_house(catalog: Catalog, settings: VideoSettings, metrics: VideoMetrics) -> None:
    while True:
        try:
            catalog.expire()
            catalog.renew(settings.journal_grace_s / 4)
            catalog.observe(metrics)
        except Exception:  # the next round may do better; without one, no lease would ever end
            log.exception("housekeeping failed")
        await asyncio.sleep(_HOUSEKEEPING_S)


async def _verify_journal(scribe: Scribe) -> None:
    while True:
        await asyncio.sleep(_VERIFY_S)
        try:
            await scribe.verify()
        except Exception:  # the next round may do better
            log.exception("the journal could not be verified")
