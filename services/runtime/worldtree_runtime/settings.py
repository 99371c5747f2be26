"""What an operator may turn: worldtree.yaml, then WORLDTREE_* variables, then flags; the later wins."""

import argparse
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from worldtree_runtime.redis_url import FORMS, RedisUrl

SECTIONS = ("gateway", "video", "navigator", "multitask", "reward")
DEFAULT_CONFIG = Path("worldtree.yaml")

# Kubernetes puts these into each pod for a Service named worldtree-<section>; nobody wrote them as settings.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_(TCP|UDP)(_.*)?")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp)://")

# values of these fields are never repeated in a message; an URL may carry a password
_SECRET = re.compile(r"secret|password|token|key|url|endpoint")


class SettingsError(ValueError):
    """A setting can't be read; the message names where it was set, its value and what is accepted."""


class ServiceSettings(BaseModel):
    """The knobs that every service has. A service subclasses it, names its section and adds its own fields.

    Constructing it reads nothing but its arguments; `load` and `from_command_line` read the world around.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    # the mapping in worldtree.yaml, and the infix of the variables: WORLDTREE_<SECTION>_<FIELD>
    section: ClassVar[str] = "service"
    # may also be set for all services at once: at the top of worldtree.yaml, or as WORLDTREE_<FIELD>
    shared: ClassVar[frozenset[str]] = frozenset(
        {
            "host",
            "log_level",
            "log_format",
            "redis_url",
            "models",
            "drain_timeout_s",
            "max_message_bytes",
            "otel_endpoint",
            "otel_sample_share",
        }
    )

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="HTTP port of /metrics, /healthz and /readyz; unset: port + 1, or a free one"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least level to log")
    log_format: Literal["json", "console"] = Field("json", description="one JSON object a line, or lines for people")
    access_log: bool = Field(False, description="one line a call in the log: method, code, seconds, tenant, cost")
    otel_endpoint: str | None = Field(
        None,
        description="http://HOST:PORT or https://HOST:PORT of an OTLP collector (gRPC) for traces; unset: no traces",
    )
    otel_sample_share: float = Field(1.0, ge=0, le=1, description="share of the traces that begin here which are kept")
    redis_url: str | None = Field(None, description=f"{FORMS}, shared by all services; unset: in memory")
    models: str = Field("models", min_length=1, description="model repository: a folder or an fsspec URL")
    replica: str = Field(
        "",
        max_length=40,
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        description="this replica's id, DNS-safe; unset: the section and six random digits",
    )
    unread_s: float = Field(300.0, gt=0, description="a stream whose reader takes nothing for so long is ended")
    drain_timeout_s: float = Field(20.0, ge=0, le=3600, description="seconds that running calls get at shutdown")
    max_message_bytes: int = Field(
        64 * 1024 * 1024, ge=64 * 1024, le=1024**3, description="largest gRPC message, in and out"
    )

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        values.setdefault("replica", f"{cls.section}-{secrets.token_hex(3)}")
        if "metrics_port" not in values:
            port = str(values.get("port", cls.model_fields["port"].default))
            values["metrics_port"] = int(port) + 1 if port.isdecimal() and 0 < int(port) < 65535 else 0
        return values

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        if url is not None:
            RedisUrl.parse(url)
        return url

    @field_validator("otel_endpoint")
    @classmethod
    def _check_otel_endpoint(cls, url: str | None) -> str | None:
        if url is not None and not _is_endpoint(url):
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, and nothing else")
        return url

    @classmethod
    def load(cls, config: Path | None = None, *, environ: Mapping[str, str] | None = None, **flags: Any) -> Self:
        """Reads `config` (else $WORLDTREE_CONFIG, else ./worldtree.yaml if there), the variables, then `flags`.

        A flag of None counts as not given. Raises SettingsError that names the place of the first bad value.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        places: dict[str, str] = {}
        for place, name, value in (
            *cls._from_yaml(config, environ),
            *cls._from_variables(environ),
            *((_flag(name), name, value) for name, value in flags.items() if value is not None),
        ):
            if name not in cls.model_fields:
                raise SettingsError(f"{place}: unknown setting; known: {', '.join(sorted(cls.model_fields))}")
            values[name] = cls._parse(place, name, value)
            places[name] = place
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(_explain(error, places)) from error

    @classmethod
    def flags_parser(cls, prog: str) -> argparse.ArgumentParser:
        """A parser with a flag for every field, so that --help lists every knob with its default and its variable."""
        parser = argparse.ArgumentParser(prog=prog, description=_first_line(cls.__doc__))
        parser.add_argument("--config", type=Path, help="worldtree.yaml to read ($WORLDTREE_CONFIG)")
        for name, field in cls.model_fields.items():
            variable = f"WORLDTREE_{name.upper()}" if name in cls.shared else cls._prefix() + name.upper()
            text = f"{field.description or name.replace('_', ' ')} ({_default(name, field)}; ${variable})"
            options: dict[str, Any] = {"dest": name, "default": None, "help": text.replace("%", "%%")}
            if field.annotation is bool:
                parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, **options)
            else:
                parser.add_argument(_flag(name), metavar=_metavar(field), **options)
        return parser

    @classmethod
    def from_command_line(cls, prog: str, arguments: Sequence[str] | None = None) -> Self:
        """The settings of a process. A setting that can't be read ends it with code 2 and one line that names it."""
        given = vars(cls.flags_parser(prog).parse_args(arguments))
        try:
            return cls.load(given.pop("config"), **given)
        except SettingsError as error:
            print(f"{prog}: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    @classmethod
    def _prefix(cls) -> str:
        return f"WORLDTREE_{cls.section.upper()}_"

    @classmethod
    def _from_yaml(cls, config: Path | None, environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
        named = config or (Path(environ["WORLDTREE_CONFIG"]) if environ.get("WORLDTREE_CONFIG") else None)
        path = named or DEFAULT_CONFIG
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if named is None:
                return []
            raise SettingsError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{path}: {_one_line(error)}") from error
        if document is None:
            return []
        if not isinstance(document, dict):
            raise SettingsError(f"{path}: must be a mapping, got {type(document).__name__}")
        own = document.pop(cls.section, None) or {}
        if not isinstance(own, dict):
            raise SettingsError(f"{path}: {cls.section}: must be a mapping, got {type(own).__name__}")
        for name in document:
            if name not in cls.shared and name not in SECTIONS:
                accepted = ", ".join(sorted({*cls.shared, *SECTIONS, cls.section}))
                raise SettingsError(f"{path}: {name}: unknown setting; known here: {accepted}")
        shared = [(f"{path}: {name}", name, value) for name, value in document.items() if name in cls.shared]
        return shared + [(f"{path}: {cls.section}.{name}", str(name), value) for name, value in own.items()]

    @classmethod
    def _from_variables(cls, environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
        # an empty variable is how compose files and shells say "unset"
        present = {name: value for name, value in environ.items() if value}
        found: list[tuple[str, str, Any]] = []
        for field in sorted(cls.shared):
            variable = f"WORLDTREE_{field.upper()}"
            if variable in present:
                found.append((f"${variable}", field, present[variable]))
        for variable in sorted(present):
            name = variable.removeprefix(cls._prefix())
            if name == variable or _SERVICE_LINK.fullmatch(name):
                continue
            if name == "PORT" and _SERVICE_LINK_VALUE.match(present[variable]):
                continue
            found.append((f"${variable}", name.lower(), present[variable]))
        return found

    @classmethod
    def _parse(cls, place: str, name: str, value: Any) -> Any:
        """Text for a list or a mapping is read as YAML, which JSON is a part of; pydantic reads the plain types."""
        field = cls.model_fields[name]
        if not isinstance(value, str) or not _is_structured(field):
            return value
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingsError(f"{place}: {_one_line(error)}") from error
        if isinstance(parsed, str) and _metavar(field) == "LIST":
            return [part.strip() for part in parsed.split(",")]
        return parsed


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    beyond = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port is not None and not beyond


def _explain(error: ValidationError, places: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        field, *inside = (str(part) for part in problem["loc"] or ("settings",))
        place = ".".join([places.get(field, field), *inside])
        # what concerns several fields comes with the values of all, the secret ones too
        hidden = problem["type"] == "missing" or not problem["loc"] or _SECRET.search(field)
        got = "" if hidden else f", got {problem['input']!r}"
        lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _members(field: FieldInfo) -> list[Any]:
    """The types that a field takes, None and annotations aside."""
    annotation = field.annotation
    arguments = get_args(annotation)
    if arguments and type(None) in arguments:
        return [argument for argument in arguments if argument is not type(None)]
    return [annotation]


def _is_structured(field: FieldInfo) -> bool:
    return _metavar(field) in ("LIST", "MAPPING")


def _metavar(field: FieldInfo) -> str:
    member = _members(field)[0]
    origin = getattr(member, "__origin__", member)
    if origin is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(member)) + "}"
    if isinstance(origin, type):
        if issubclass(origin, list | tuple | set | frozenset):
            return "LIST"
        if issubclass(origin, Mapping | BaseModel):
            return "MAPPING"
        return origin.__name__.upper()
    return "VALUE"


def _default(name: str, field: FieldInfo) -> str:
    if name in ("replica", "metrics_port") or field.default is None:
        return "default: unset"
    if field.is_required():
        return "required"
    factory = cast("Callable[[], object] | None", field.default_factory)
    return f"default: {field.default if factory is None else factory()}"
