"""A package as one file: zipped, the same bytes wherever it is done; and installed into a repository at one stroke."""

import os
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worldtree_runtime.model_package import PackageError
from worldtree_runtime.model_repository import package_digest

from worldtree_video.tools.findings import Report
from worldtree_video.tools.validate import validate

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first day that a zip file knows
_PLAIN_FILE = 0o100644 << 16
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that are unpacked piece by piece
_UNPACKED_MAX = 4 << 30  # bytes; a small file may say of itself that it unpacks to any number of them


@dataclass(frozen=True, slots=True)
class Packed:
    """A package in a file, or in a repository. `path`: where it is now; None: its report says why it is not."""

    report: Report
    path: str | None = None
    size_bytes: int = 0


def pack(folder: Path, out: Path | None = None) -> Packed:
    """Zips a valid package as NAME/VERSION/..., so that unzipping it in a repository installs it.

    Nothing is compressed: weights hardly get smaller, and no library's version is in the bytes. `out` is there whole or
    not at all. Raises PackageError when it lies in the package itself.
    """
    folder = folder.resolve()
    out = out or Path(f"{folder.parent.name}-{folder.name}.zip")
    _check_outside(folder, out, "out")
    report = validate(folder)
    if not report.valid:
        return Packed(report)
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=out.parent) as scratch:
        written = Path(scratch) / "package.zip"
        with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                inside = PurePosixPath(folder.parent.name, folder.name, *path.relative_to(folder).parts)
                entry = zipfile.ZipInfo(str(inside), _LONG_AGO)
                entry.external_attr = _PLAIN_FILE
                entry.create_system = 3  # as if on Unix, wherever it is
                large = path.stat().st_size >= 1 << 31
                with path.open("rb") as source, archive.open(entry, "w", force_zip64=large) as to:
                    shutil.copyfileobj(source, to, 1 << 20)
        os.replace(written, out)
    return Packed(report, str(out), out.stat().st_size)


def install(source: Path, repository: Path) -> Packed:
    """Puts a packed package, or the folder of one, into a repository: whole or not at all, and never over another.

    A server that follows the repository serves it a moment later. Raises PackageError, also for what would unpack to
    more than 4 GiB.
    """
    if source.is_dir():
        _check_outside(source, repository, "models")
    repository.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the last step is a rename; deeper than packages lie, so that nobody takes it for one.
    with tempfile.TemporaryDirectory(prefix=".installing-", dir=repository) as scratch:
        unpacked = _unpacked(source, Path(scratch) / "package")
        report = validate(unpacked)
        if not report.valid:
            return Packed(report)
        place = repository / unpacked.parent.name / unpacked.name
        if place.exists():
            if package_digest(place) != report.digest:
                raise PackageError(place, "version", "must not change once it is installed; give it another version")
        else:
            place.parent.mkdir(exist_ok=True)
            os.rename(unpacked, place)
    return Packed(report, str(place), sum(path.stat().st_size for path in place.rglob("*") if path.is_file()))


def _check_outside(folder: Path, place: Path, field: str) -> None:
    # It would be copied into itself, over and over.
    if place.resolve().is_relative_to(folder.resolve()):
        raise PackageError(place, field, f"must not lie in the package {folder}")


def _unpacked(source: Path, scratch: Path) -> Path:
    """The folder NAME/VERSION below `scratch`."""
    if source.is_dir():
        folder = source.resolve()
        return Path(shutil.copytree(folder, scratch / folder.parent.name / folder.name))
    try:
        with zipfile.ZipFile(source) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            roots = {PurePosixPath(entry.filename).parts[:2] for entry in entries}
            if len(roots) != 1:
                raise PackageError(source, "zip", f"must hold one folder NAME/VERSION, got {len(roots)}")
            size_bytes = sum(entry.file_size for entry in entries)
            if size_bytes > _UNPACKED_MAX:
                raise PackageError(source, "zip", f"must unpack to at most {_UNPACKED_MAX} bytes, not {size_bytes}")
            for entry in entries:
                parts = PurePosixPath(entry.filename).parts
                if ".." in parts or parts[0] == "/" or len(parts) < 3:
                    raise PackageError(source, entry.filename, "must lie in NAME/VERSION/")
                if entry.compress_type not in _METHODS:
                    raise PackageError(source, entry.filename, "must be stored or deflated")
                to = scratch.joinpath(*parts)
                to.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as inside, to.open("wb") as outside:  # a link in it becomes a plain file
                    shutil.copyfileobj(inside, outside, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: it is encrypted
        raise PackageError(source, "zip", f"must be a package as `worldtree models pack` writes it: {error}") from error
    return scratch.joinpath(*roots.pop())
