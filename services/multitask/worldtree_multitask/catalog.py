"""The models of this process."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from worldtree_runtime.errors import NotFound
from worldtree_runtime.model_package import OtherKind, PackageError
from worldtree_runtime.model_repository import ModelRepository, resolve, version_order
from worldtree_runtime.multitask_package import MultitaskPackage

from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.errors import NoModels
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.served import Served

log = logging.getLogger(__name__)


class Catalog:
    """Models by name, version and digest. It may be empty: a repository may hold packages of other services only."""

    def __init__(self, served: Sequence[Served], *, folder: str) -> None:
        self._folder = folder
        self._served = {(each.stored.name, each.stored.version): each for each in served}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def names(self) -> list[str]:
        return sorted({name for name, _ in self._served})

    def get(self, name: str = "", version: str = "", digest: str = "") -> Served:
        """The model that a reference means. An empty name: that of the digest, or of the only model there is.

        Raises NotFound, with the names that there are.
        """
        if not self._served:
            raise NoModels(self._folder)
        digests = {key: each.stored.digest for key, each in self._served.items()}
        if not name:
            holders = sorted({held for (held, _), each in digests.items() if each == digest}) or self.names()
            if len(holders) > 1:
                raise NotFound("model", name, known=holders)
            name = holders[0]
            if digest and not version:
                versions = [held for (each, held), known in digests.items() if each == name and known == digest]
                version = max(versions, key=version_order, default="")
        return self._served[resolve(digests, name, version, digest)]

    def start(self) -> None:
        for each in self:
            each.engine.start()

    def stop(self) -> None:
        for each in self:
            each.engine.stop()


def load_catalog(settings: MultitaskSettings, metrics: MultitaskMetrics) -> Catalog:
    """Loads every multi-task package of the repository; one that is broken is logged, and keeps no other from being
    served. Raises PackageError when there are only broken ones, or no repository.
    """
    repository = ModelRepository(Path(settings.models), MultitaskPackage)
    served: list[Served] = []
    refused: list[PackageError] = []
    for folder in repository.folders():
        try:
            served.append(Served(repository.read(folder), settings, metrics))
        except OtherKind:
            continue
        except PackageError as error:
            refused.append(error)
            log.error(
                "model package refused",
                extra={"file": str(error.file), "field": error.field, "expected": error.expected},
            )
    if refused and not served:
        raise refused[0]
    if not served:
        log.warning("no model of kind multitask to serve", extra={"models": settings.models})
    return Catalog(served, folder=settings.models)
