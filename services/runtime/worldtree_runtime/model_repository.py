"""A folder of model packages, `name/version/`, and the digest that names each package's content."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from worldtree_runtime.errors import NotFound
from worldtree_runtime.model_package import OtherKind, Package, PackageError, read_package

# The card describes a package; correcting a sentence in it must not make a new model of it.
_NOT_DIGESTED = frozenset({"MODEL_CARD.md"})


P = TypeVar("P", bound=Package)


@dataclass(frozen=True)  # no slots: what a generic one is an instance of is written to it
class StoredPackage(Generic[P]):
    """A package that was read and checked. `digest`: SHA-256 over its files, 64 hex digits."""

    folder: Path
    package: P
    digest: str

    @property
    def name(self) -> str:
        return self.package.name

    @property
    def version(self) -> str:
        return self.package.version


class ModelRepository(Generic[P]):
    """The packages of one kind under a folder, beside those of others.

    Reading is explicit (`scan`), so a server sees a change only when it asks.
    """

    def __init__(self, root: Path, package_class: type[P]) -> None:
        self.root = root
        self._package_class = package_class

    def scan(self) -> list[StoredPackage[P]]:
        """Reads every package of the kind, by name and version. Raises PackageError at the first that is broken."""
        packages: list[StoredPackage[P]] = []
        for folder in self.folders():
            with suppress(OtherKind):
                packages.append(self.read(folder))
        return packages

    def folders(self) -> list[Path]:
        """Where packages lie, of whatever kind. Raises PackageError when there is none."""
        if not self.root.is_dir():
            raise PackageError(self.root, "models", "must be a folder of name/version/model.yaml packages")
        folders = [file.parent for file in sorted(self.root.glob("*/*/model.yaml"))]
        if not folders:
            raise PackageError(self.root, "models", "holds no name/version/model.yaml")
        return folders

    def holds(self, name: str, version: str) -> bool:
        """Whether a version lies there, be it broken or sound."""
        return (self.root / name / version / "model.yaml").is_file()

    def read(self, folder: Path) -> StoredPackage[P]:
        """Reads one package. Raises PackageError when a file is missing or a name does not match its folder, OtherKind
        when it is of another kind.
        """
        file = folder / "model.yaml"
        package = read_package(file, self._package_class)
        for field, value, expected in (
            ("name", package.name, folder.parent.name),
            ("version", package.version, folder.name),
        ):
            if value != expected:
                raise PackageError(file, field, f"must be {expected!r} like its folder, got {value!r}")
        for field, path in package.paths().items():
            if not (folder / path).is_file():
                raise PackageError(file, field, f"names {path}, which is missing")
        return StoredPackage(folder, package, package_digest(folder))


def package_digest(folder: Path) -> str:
    """SHA-256 over the sorted relative paths and contents of a package's files, the model card left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in _NOT_DIGESTED):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        digest.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which "10" comes after "9" and "1.2" after "1.1"."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in version.split("."))


def resolve(packages: dict[tuple[str, str], str], name: str, version: str, digest: str) -> tuple[str, str]:
    """The (name, version) that a reference means among `packages` (their digests by name and version).

    An empty version means the newest; a digest must match. Raises NotFound.
    """
    versions = sorted((v for n, v in packages if n == name), key=version_order)
    if not versions:
        raise NotFound("model", name, known=sorted({n for n, _ in packages}))
    if version and version not in versions:
        raise NotFound("model", f"{name}/{version}", known=[f"{name}/{v}" for v in versions])
    chosen = (name, version or versions[-1])
    if digest and packages[chosen] != digest:
        raise NotFound("model", f"{name}@{digest}", known=[f"{name}@{packages[chosen]}"])
    return chosen
