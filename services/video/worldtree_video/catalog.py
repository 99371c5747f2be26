"""The models that this process serves: each package with its engine, its worlds and its start scenes."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldtree.common.v1 import common_pb2 as common
from worldtree_runtime.messages import from_stored
from worldtree_runtime.model_package import OtherKind, PackageError
from worldtree_runtime.model_repository import ModelRepository, resolve
from worldtree_runtime.pictures import PictureError, read_png, split_strip
from worldtree_runtime.video_package import DiscreteActions, StartSpec, StoredVideo, VideoPackage

from worldtree_video import formats
from worldtree_video.archive import Archive
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, Origin, Storage
from worldtree_video.engine import Engine
from worldtree_video.errors import SessionNotFound
from worldtree_video.host_tier import HostTier
from worldtree_video.metrics import Reading, VideoMetrics
from worldtree_video.model import VideoModel
from worldtree_video.scene import SceneModel
from worldtree_video.scribe import Dump, Scribe
from worldtree_video.tiers import Tiers
from worldtree_video.worlds import Worlds

log = logging.getLogger(__name__)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Served:
    """One version of a model being served. `starts`: its start scenes by name."""

    stored: StoredVideo
    worlds: Worlds
    archive: Archive
    starts: dict[str, Origin]
    scene: SceneModel | None = None
    # Calls that have found it and may yet open a session, or look at what it is, while they last.
    calls: "set[asyncio.Task[Any]]" = field(default_factory=set)

    @property
    def package(self) -> VideoPackage:
        return self.stored.package

    @property
    def ref(self) -> common.ModelRef:
        return from_stored(self.stored)

    @property
    def in_use(self) -> bool:
        """Whether there is a session, a call or a block of it."""
        engine = self.worlds.engine
        with engine.lock:
            # A broken engine lets go of nothing that it had in hand, and nobody will ever need it.
            return bool(self.calls or len(engine.sessions) or (engine.busy and not engine.broken))

    def reading(self) -> Reading:
        """What the gauges show of it."""
        reading = self.worlds.engine.reading()
        reading.blocks.update(self.worlds.residency.outside())
        return reading

    def keep_for_caller(self) -> None:
        """Counts the running call among those that have found it."""
        with suppress(RuntimeError):  # no event loop: there is nobody to keep it for
            task = asyncio.current_task()
            if task and task not in self.calls:
                self.calls.add(task)
                task.add_done_callback(self.calls.discard)


class Catalog:
    """Every served model, each version with an engine of its own. Sessions are found by name across all of them.

    A version that is *leaving* takes no new sessions; those that it has go on. For one event loop.
    """

    def __init__(self, served: list[Served]) -> None:
        self._served = {_key(entry.stored): entry for entry in served}
        self._leaving: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[Served]:
        """Also those that are leaving. What comes or goes meanwhile changes nothing for the one who iterates."""
        return iter(self._served.values())

    def newest(self) -> list[Served]:
        """The newest version of each model, by name."""
        names = {name for name, version in self._served if (name, version) not in self._leaving}
        return [self.resolve(common.ModelRef(name=name)) for name in sorted(names)]

    def resolve(self, ref: common.ModelRef, *, leaving: bool = False) -> Served:
        """The model that a reference means; `leaving`: also one that takes no new sessions. Raises NotFound.

        It stays at least until the running call ends.
        """
        digests = {
            key: entry.stored.digest for key, entry in self._served.items() if leaving or key not in self._leaving
        }
        served = self._served[resolve(digests, ref.name, ref.version, ref.digest)]
        served.keep_for_caller()
        return served

    def add(self, served: Served) -> None:
        """Serves one version more; its engine runs already."""
        self._served = {**self._served, _key(served.stored): served}

    def retire(self, served: Served) -> None:
        """Lets a version take no new sessions any more."""
        self._leaving.add(_key(served.stored))

    def reinstate(self, served: Served) -> None:
        """Takes back `retire`."""
        self._leaving.discard(_key(served.stored))

    def is_leaving(self, served: Served) -> bool:
        return _key(served.stored) in self._leaving

    async def remove(self, served: Served) -> None:
        """Stops a version that nobody uses, and forgets it."""
        key = _key(served.stored)
        self._served = {each: entry for each, entry in self._served.items() if each != key}
        self._leaving.discard(key)
        served.worlds.draining = True  # whoever should come all the same is told to try again, and meets the next one
        try:
            await served.worlds.protection.aclose()
        finally:
            # Shielded: a stop of the service meanwhile must not leave a thread behind that nobody knows any more.
            await asyncio.shield(asyncio.to_thread(served.worlds.engine.stop))
            served.worlds.residency.tiers.drop(served.stored.digest)

    def of_session(self, name: str) -> Served:
        """The model that a session belongs to. Raises SessionNotFound."""
        for entry in self:
            with entry.worlds.engine.lock:
                if name in entry.worlds.engine.sessions:
                    return entry
        raise SessionNotFound(name)

    def has_room(self) -> bool:
        """Whether every model could take on a session that asks for no format: what readiness says."""
        return all(
            not entry.worlds.engine.broken and entry.worlds.engine.has_room(entry.worlds.settings.headroom_blocks)
            for entry in self
            if not self.is_leaving(entry)
        )

    def dump(self, session: str) -> Dump | None:
        """A session in full, for the scribe; None: it is not here."""
        return next((dump for entry in self if (dump := entry.worlds.protection.dump(session))), None)

    def lost(self, session: str, owner: str) -> None:
        """Another replica has adopted a session."""
        for entry in self:
            entry.worlds.lost(session, owner)

    def renew(self, margin_s: float) -> None:
        """Tells the journal of leases that have moved by more than a margin."""
        for entry in self:
            entry.worlds.protection.renew(margin_s)

    async def aclose(self) -> None:
        """Ends what is under way beside the calls."""
        await asyncio.gather(*(entry.worlds.protection.aclose() for entry in self))

    def expire(self) -> int:
        """Closes the sessions whose lease has ended; returns how many."""
        return sum(entry.worlds.expire() for entry in self)

    def session_count(self) -> int:
        """Of all versions of all models."""
        return sum(len(entry.worlds.engine.sessions) for entry in self)

    def observe(self, metrics: VideoMetrics) -> None:
        """Sets the gauges of every model, all its versions together."""
        readings: dict[str, list[Reading]] = {}
        for entry in self:
            readings.setdefault(entry.stored.name, []).append(entry.reading())
        metrics.observe_models(readings)

    def start(self) -> None:
        """Starts every engine."""
        for entry in self:
            entry.worlds.engine.start()

    def stop(self) -> None:
        """Stops every engine."""
        for entry in self:
            entry.worlds.engine.stop()


def load_catalog(
    settings: VideoSettings, metrics: VideoMetrics, tiers: Tiers | None = None, scribe: Scribe | None = None
) -> Catalog:
    """Loads every package of the model repository that can be served; one that is broken is logged, and must not keep
    the others from being served. Raises PackageError when there is none, or only broken ones: that of the first.
    """
    repository = ModelRepository(Path(settings.models), VideoPackage)
    tiers = tiers or Tiers(HostTier(settings.host_mib * _MIB), None, metrics)
    served: list[Served] = []
    refused: list[PackageError] = []
    for folder in repository.folders():
        try:
            served.append(load_model(repository.read(folder), settings, metrics, tiers, scribe))
        except OtherKind:
            continue  # another service's
        except PackageError as error:
            refused.append(error)
    if not served:
        raise refused[0] if refused else PackageError(repository.root, "models", "holds no package of kind video")
    for each in refused:
        log_refused(each)
    return Catalog(served)


def log_refused(error: PackageError) -> None:
    """Tells of a package that is not served, by file, field and what was expected."""
    log.error(
        "model package refused", extra={"file": str(error.file), "field": error.field, "expected": error.expected}
    )


def load_model(
    stored: StoredVideo,
    settings: VideoSettings,
    metrics: VideoMetrics,
    tiers: Tiers | None = None,
    scribe: Scribe | None = None,
) -> Served:
    """Loads one package and measures how large a tick pays. Raises PackageError."""
    tiers = tiers or Tiers(HostTier(settings.host_mib * _MIB), None, metrics)
    package = stored.package
    starts = {start.name: read_start(stored, start) for start in package.starts}
    model = VideoModel(
        stored, block_counts=_block_counts(stored, settings), device=settings.device, threads=settings.threads
    )
    scene = (
        SceneModel(
            stored,
            package.prompt,
            model.codec,
            device=settings.device,
            threads=settings.threads,
            waiting_max=settings.max_waiting_scenes,
        )
        if package.prompt
        else None
    )
    cost = model.measure() if settings.max_batch is None else model.measure(max_batch=settings.max_batch)
    max_batch = settings.max_batch or cost.best_batch
    log.info(
        "measured tick",
        extra={
            "model": stored.name,
            "max_batch": max_batch,
            "tick_s": {n: round(s, 5) for n, s in cost.seconds.items()},
            "commit_s": round(cost.commit_s, 5),
        },
    )
    engine = Engine(
        model,
        max_batch=max_batch,
        home=settings.replica,
        metrics=metrics,
        cost=cost,
        play_load_max=settings.play_load_max,
        prefix_cache=settings.prefix_cache,
        low_blocks=settings.headroom_blocks,
    )
    log.info(
        "model loaded", extra={"model": stored.name, "version": stored.version, "block_count": engine.pool.block_count}
    )
    worlds = Worlds(engine, settings, tiers, scribe)
    return Served(stored, worlds, Archive(worlds), starts, scene)


def _key(stored: StoredVideo) -> tuple[str, str]:
    return stored.name, stored.version


def _block_counts(stored: StoredVideo, settings: VideoSettings) -> dict[Storage, int]:
    """Blocks of each format offered. Raises PackageError when a pool is too small to hold one session."""
    kv = stored.package.kv
    sizes_mib = {
        Storage.FP32: ("pool_mib", settings.pool_mib),
        Storage.FP16: ("fp16_pool_mib", settings.fp16_pool_mib),
        Storage.INT8: ("int8_pool_mib", settings.int8_pool_mib),
    }
    counts = {}
    for storage, (setting, size_mib) in sizes_mib.items():
        if size_mib == 0:
            continue
        size_bytes = formats.block_bytes(kv, storage)
        counts[storage] = size_mib * _MIB // size_bytes
        if counts[storage] <= kv.window + settings.headroom_blocks:
            raise PackageError(
                stored.folder / "model.yaml",
                "kv",
                f"{setting} {size_mib} holds {counts[storage]} blocks of {size_bytes} bytes; "
                f"a window of {kv.window} and headroom_blocks {settings.headroom_blocks} need more",
            )
    return counts


def read_start(stored: StoredVideo, start: StartSpec) -> Origin:
    """A start scene from its PNG strip. Raises PackageError when it does not fit the model."""
    package = stored.package
    file = stored.folder / start.file
    chunk_count = len(start.actions) + 1
    frame_count = chunk_count * package.frames_per_chunk
    frame = package.frame
    expected = (frame.width_px * frame_count, frame.height_px)
    if chunk_count > package.kv.window:
        raise PackageError(file, f"starts.{start.name}", f"holds {chunk_count} chunks, the window {package.kv.window}")
    try:
        width, height, pixels = read_png(file.read_bytes(), max_pixels=expected[0] * expected[1])
        if (width, height) != expected:
            raise PictureError(f"must be {expected[0]} x {expected[1]} pixels, got {width} x {height}")
        frames = split_strip(pixels, width=width, height=height, frame_count=frame_count)
    except PictureError as error:
        raise PackageError(file, f"starts.{start.name}", str(error)) from error
    step = package.frames_per_chunk
    chunks = tuple(b"".join(frames[first : first + step]) for first in range(0, frame_count, step))
    return Origin(chunks, tuple(_start_action(stored, start, action) for action in start.actions), start.name)


def _start_action(stored: StoredVideo, start: StartSpec, value: str | int | tuple[float, ...]) -> Action:
    space = stored.package.action
    if isinstance(space, DiscreteActions):
        if isinstance(value, str) and value in space.names:
            return Action(space.names.index(value))
        if isinstance(value, int) and space.accepts(value):
            return Action(value)
    elif isinstance(value, tuple) and space.accepts(value):
        return Action(value)
    raise PackageError(
        stored.folder / "model.yaml", f"starts.{start.name}.actions", f"{value!r} is no action of the model"
    )
