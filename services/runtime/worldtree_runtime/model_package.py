"""What every model package's `model.yaml` says, and how it is read: checked before anything is loaded."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Kind = Literal["video", "multitask", "navigator", "reward"]
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


class Part(BaseModel):
    """A mapping of `model.yaml`: what it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Package(Part):
    """What all kinds of packages have (DESIGN section 5)."""

    format: Literal[1]
    kind: Kind
    name: Name
    version: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    description: str = ""
    license: str = ""

    def paths(self) -> dict[str, str]:
        """The files that it needs, relative to its folder, by the field that names each."""
        return {}

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_text(cls, value: object) -> object:
        # YAML reads `version: 1` as a number; the folder's name is text.
        return str(value) if isinstance(value, int) else value

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
    (own,) = get_args(package_class.model_fields["kind"].annotation)
    kind = _kind(raw)
    if kind != own and kind in get_args(Kind):
        raise OtherKind(file, "kind", f"must be {own!r} for this service, got {kind!r}")
    try:
        return package_class.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise PackageError(file, ".".join(map(str, first["loc"])) or "model.yaml", first["msg"]) from error


def _kind(raw: Any) -> object:
    return raw.get("kind") if isinstance(raw, dict) else None
