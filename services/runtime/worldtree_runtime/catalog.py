"""The models that one process serves, by name, version and digest."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from worldtree_runtime.errors import NotFound
from worldtree_runtime.model_package import OtherKind, Package, PackageError
from worldtree_runtime.model_repository import ModelRepository, StoredPackage, resolve, version_order

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What runs a model, in a thread of its own."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class ServedModel(Protocol):
    """One version of a model, loaded."""

    @property
    def stored(self) -> StoredPackage[Any]: ...
    @property
    def engine(self) -> Engine: ...


S = TypeVar("S", bound=ServedModel)
P = TypeVar("P", bound=Package)


class Catalog(Generic[S]):
    """It may be empty: a repository may hold packages of other services only."""

    def __init__(self, served: Sequence[S], *, kind: str, folder: str) -> None:
        self._kind = kind
        self._folder = folder
        self._served = {(each.stored.name, each.stored.version): each for each in served}

    def __iter__(self) -> Iterator[S]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)

    def names(self) -> list[str]:
        return sorted({name for name, _ in self._served})

    def get(self, name: str = "", version: str = "", digest: str = "") -> S:
        """The model that a reference means. An empty name: that of the digest, or of the only model there is.

        Raises NotFound, with the names that there are.
        """
        if not self._served:
            raise NotFound("model", f"of kind {self._kind} in {self._folder}", reason="MODEL_NOT_FOUND", known=[])
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


def load_catalog(
    folder: str,
    package_class: type[P],
    load: Callable[[StoredPackage[P]], S],
    *,
    kind: str,
    required: bool = True,
) -> Catalog[S]:
    """Loads every package of a kind; one that is broken is logged, and keeps no other from being served.

    `required`: whether there must be a repository; without, there is nothing to serve. Raises PackageError when there
    are only broken ones.
    """
    if not required and not any(Path(folder).glob("*/*/model.yaml")):
        return Catalog([], kind=kind, folder=folder)
    repository = ModelRepository(Path(folder), package_class)
    served: list[S] = []
    refused: list[PackageError] = []
    for each in repository.folders():
        try:
            served.append(load(repository.read(each)))
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
        log.warning("no model of kind %s to serve", kind, extra={"models": folder})
    return Catalog(served, kind=kind, folder=folder)
