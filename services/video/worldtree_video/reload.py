"""Follows the model repository while serving: versions that appear are loaded beside the others, and those that are
gone are let go when nobody uses them any more.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG

from worldtree_runtime.model_package import OtherKind, PackageError
from worldtree_runtime.model_repository import ModelRepository, package_digest, version_order
from worldtree_runtime.video_package import VideoPackage

from worldtree_video.catalog import Catalog, Served, log_refused
from worldtree_video.metrics import VideoMetrics

log = logging.getLogger(__name__)

# (path inside the package, nanoseconds of its content's last change and of any, bytes) of each file. What a copy with
# the times of its source, or a tool that sets them back, cannot hide is in the second time.
Signature = tuple[tuple[str, int, int, int], ...]


class Reload:
    """For one event loop, which never waits for a disk or a model.

    `load` reads and loads the package of a folder, in a thread of the loop's default executor; the engine of what it
    returns does not run yet. A package is read when it stood still for one look, so that one that is being copied is
    seldom met; one that is broken is told of once, and read again when it changes. One that is missing in two looks is
    gone; but the last version of a name stays until what is there of that name was read, so that a version put in its
    place at one stroke finds callers served.
    """

    def __init__(
        self,
        catalog: Catalog,
        repository: ModelRepository[VideoPackage],
        load: Callable[[Path], Served],
        metrics: VideoMetrics,
    ) -> None:
        self._catalog = catalog
        self._root = repository.root
        self._load = load
        self._metrics = metrics
        # Those that are served count as read: they are what they were when the process loaded them.
        self._seen = {entry.stored.folder: signature(entry.stored.folder) for entry in catalog}
        self._read = dict(self._seen)
        self._missing: set[Path] = set()  # those that are served, and were not there at the last look
        self._unlucky: set[Path] = set()  # those that failed for no fault of their own
        self._empty = False

    async def run(self, every_s: float) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except OSError as error:  # a disk that fails, a folder that goes while it is listed; at the next look again
                log.warning("the model repository cannot be read: %s", error)
            except Exception:  # our mistake, and no reason to look never again
                log.exception("the model repository cannot be followed")

    async def look(self) -> None:
        """One look at the repository, and what follows from it."""
        found = await asyncio.to_thread(signatures, self._root)
        # A folder that is not there, or not mounted, is no order to serve nothing.
        if not found and not self._empty:
            log.error("the model repository is empty: what is loaded stays", extra={"models": str(self._root)})
        self._empty = not found
        if found:
            still = [folder for folder in found if self._seen.get(folder) == found[folder]]
            self._seen = found
            self._read = {folder: read for folder, read in self._read.items() if folder in found}
            for folder in still:
                if self._read.get(folder) != found[folder]:
                    self._read[folder] = found[folder]
                    await self._take(folder, found[folder])
        self._let_go(found)
        for entry in self._catalog:
            if self._catalog.is_leaving(entry) and not entry.in_use:
                await self._catalog.remove(entry)
                # Other files may stand in its folder by now, and there is memory again for those that found none.
                for folder in (entry.stored.folder, *self._unlucky):
                    self._read.pop(folder, None)
                self._unlucky.clear()
                self._tell(entry, "unloaded", "model version unloaded")

    def _let_go(self, found: dict[Path, Signature]) -> None:
        served = {entry.stored.folder for entry in self._catalog}
        missing = served - found.keys() if found else set()
        gone, self._missing = missing & self._missing, missing
        unread = {folder.parent.name for folder in found if self._read.get(folder) != found[folder]}
        # The newest last: of several that are gone, it is the one that stays for a while.
        for entry in sorted(self._catalog, key=lambda entry: version_order(entry.stored.version)):
            if entry.stored.folder not in gone or self._catalog.is_leaving(entry):
                continue
            if entry.stored.name not in unread or self._has_other(entry):
                self._catalog.retire(entry)
                self._tell(entry, "retired", "model version is gone: it takes no new sessions")

    def _has_other(self, served: Served) -> bool:
        """Whether another version of the same model takes new sessions."""
        return any(
            entry is not served and entry.stored.name == served.stored.name and not self._catalog.is_leaving(entry)
            for entry in self._catalog
        )

    async def _take(self, folder: Path, still: Signature) -> None:
        """A package that is new here, or not what it was."""
        for entry in self._catalog:
            if entry.stored.folder == folder:
                await self._compare(entry)
                return
        name = folder.parent.name
        try:
            served = await asyncio.to_thread(self._load, folder)
            changed = await asyncio.to_thread(signature, folder) != still
        except OtherKind:
            pass  # another service's
        except PackageError as error:
            log_refused(error)
            self._metrics.reloads.labels(name, "refused").inc()
        except OSError as error:  # it goes while it is read, or its disk does
            del self._read[folder]
            log.warning("model package cannot be read: %s", error, extra={"package": str(folder)})
        except Exception:  # memory, a device: no reason to stop
            self._unlucky.add(folder)
            log.exception("model package could not be loaded", extra={"package": str(folder)})
            self._metrics.reloads.labels(name, "refused").inc()
        else:
            if changed:
                del self._read[folder]  # it changed while it was being read: what was loaded may be half of each
                return
            served.worlds.engine.start()
            self._catalog.add(served)
            self._tell(served, "loaded", "model version takes new sessions")

    async def _compare(self, entry: Served) -> None:
        """A version that is loaded, and whose files are other than they were."""
        try:
            digest = await asyncio.to_thread(package_digest, entry.stored.folder)
        except OSError as error:  # it is being removed, or its disk fails: at the next look again
            self._read.pop(entry.stored.folder, None)
            log.warning("model package cannot be read: %s", error, extra={"package": str(entry.stored.folder)})
            return
        if digest == entry.stored.digest:
            if self._catalog.is_leaving(entry):
                self._catalog.reinstate(entry)
                self._tell(entry, "loaded", "model version is back: it takes new sessions")
            return
        log.error(
            "a version that is served must not change: refused, give what changed a version of its own",
            extra={"model": entry.stored.name, "version": entry.stored.version, "served": entry.stored.digest},
        )
        self._metrics.reloads.labels(entry.stored.name, "refused").inc()

    def _tell(self, served: Served, result: str, message: str) -> None:
        self._metrics.reloads.labels(served.stored.name, result).inc()
        log.info(message, extra={"model": served.stored.name, "version": served.stored.version})


def signatures(root: Path) -> dict[Path, Signature]:
    """The packages of a repository, and what their files look like from outside. Raises OSError."""
    return {file.parent: signature(file.parent) for file in sorted(root.glob("*/*/model.yaml"))}


def signature(folder: Path) -> Signature:
    """Changes whenever a file of a package is written; reads none of them. Raises OSError."""
    entries = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # gone since it was listed, or a link to nowhere
            continue
        if S_ISREG(stat.st_mode):
            entries.append((str(path.relative_to(folder)), stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size))
    return tuple(entries)
