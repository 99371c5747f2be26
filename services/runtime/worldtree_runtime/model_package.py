"""What every model package's `model.yaml` says, and how it is read: checked before anything is loaded."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from worldtree_runtime.address import joined

Kind = Literal["video", "multitask", "navigator", "reward", "maze"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]


class PackageError(ValueError):
    """A model package that cannot be served. The message names the file, the field and what was expected."""

    def __init__(self, file: Path, field: str, expected: str) -> None:
        super().__init__(f"{file}: {field}: {expected}")
        self.file = file
        self.field = field
        self.expected = expected


class OtherKind(PackageError):  # noqa: N818 - a package of another service is none of our errors
    """A package of another service, which may lie in the same repository."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that runs a graph in this process's place. `version`: of the model there; empty: the server's choice."""

    url: str
    host: str
    port: int
    model: str
    version: str

    @property
    def address(self) -> str:
        return joined(self.host, self.port)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name may mean anything


_BACKEND = re.compile(r"triton://(?:\[([0-9a-fA-F:]+)\]|([^][:/@\s]+)):(\d{1,5})/([^/\s]+)(?:/(\d+))?")


class Part(BaseModel):
    """A mapping of `model.yaml`: what it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(Part):
    """What all kinds of packages have (DESIGN section 5). `backend`: the Triton server that runs the largest graph of a
    kind that may be run elsewhere; None, written `onnxruntime`: nobody but this process.
    """

    # why no graph of the kind can be run elsewhere; None: one can
    stays: ClassVar[str | None]

    format: Literal[1]
    kind: Kind
    name: Name
    version: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    description: str = ""
    license: str = ""
    backend: Backend | None = None

    def paths(self) -> dict[str, str]:
        """The files that it needs, relative to its folder, by the field that names each."""
        return {}

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_text(cls, value: object) -> object:
        # YAML reads `version: 1` as a number; the folder's name is text.
        return str(value) if isinstance(value, int) else value

    @field_validator("backend", mode="before")
    @classmethod
    def _read_backend(cls, value: object) -> Backend | None:
        if value is None or value == "onnxruntime":
            return None
        if cls.stays is not None:
            raise ValueError(f"must be onnxruntime for kind {cls.own_kind()}: {cls.stays}")
        found = _BACKEND.fullmatch(value) if isinstance(value, str) else None
        if found is None or not 0 < int(found[3]) < 65536:
            raise ValueError(f"must be triton://HOST:PORT/MODEL or triton://HOST:PORT/MODEL/VERSION, got {value!r}")
        return Backend(found[0], found[1] or found[2], int(found[3]), found[4], found[5] or "")

    @classmethod
    def own_kind(cls) -> str:
        (own,) = get_args(cls.model_fields["kind"].annotation)
        return str(own)

    @model_validator(mode="after")
    def _paths_stay_inside(self) -> Self:
        for path in self.paths().values():
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"files must lie inside the package, got {path}")
        return self


P = TypeVar("P", bound=Package)


def read_package(file: Path, package_class: type[P]) -> P:
    """Reads and checks a `model.yaml`. Raises PackageError, naming the first field that is wrong; OtherKind when it is
    a package of another service.
    """
    try:
        raw = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PackageError(file, "model.yaml", f"must be readable YAML: {error}") from error
    own, kind = package_class.own_kind(), _kind(raw)
    if kind != own and kind in get_args(Kind):
        raise OtherKind(file, "kind", f"must be {own!r} for this service, got {kind!r}")
    try:
        return package_class.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise PackageError(file, ".".join(map(str, first["loc"])) or "model.yaml", first["msg"]) from error


def _kind(raw: Any) -> object:
    return raw.get("kind") if isinstance(raw, dict) else None
