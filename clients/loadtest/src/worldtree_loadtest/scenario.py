"""Scenario files: read, checked, refused with the field, the value and what is accepted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from worldtree_loadtest.mix import AnyOperation, PlayOperation

SHIPPED = Path(__file__).with_name("scenarios")
Metric = Literal[
    "p50_s",
    "p90_s",
    "p99_s",
    "p999_s",
    "max_s",
    "error_share",
    "refused_share",
    "goodput_share",
    "goodput_per_s",
    "late_chunk_share",
    "goodput_past_knee",
    "knee_per_s",
    "refused_without_retry_info",
    "unsent_share",
]
OF_A_RAMP = ("goodput_past_knee", "knee_per_s")


class ScenarioError(ValueError):
    """A scenario that cannot be run: one line for each thing that is wrong with it."""


class Phase(BaseModel):
    """A time with a rate of arrivals, or one that goes from a rate to another in as many `plateaus`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=40)
    seconds: float = Field(gt=0, le=86_400)
    rate_per_s: float = Field(gt=0, le=10_000)
    to_rate_per_s: float | None = Field(None, gt=0, le=10_000)
    plateaus: int = Field(1, ge=1, le=200)
    measured: bool = True

    @model_validator(mode="after")
    def _climbs(self) -> "Phase":
        if (self.to_rate_per_s is None) != (self.plateaus == 1):
            raise ValueError("to_rate_per_s and plateaus belong together: set both (plateaus 2 or more), or none")
        return self


class Threshold(BaseModel):
    """What a figure has to reach. `operation`: of which kind; unset: of all together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: Metric
    operation: str | None = None
    phase: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def _has_one_limit(self) -> "Threshold":
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a threshold needs at_most or at_least, and not both")
        return self


class Scenario(BaseModel):
    """A load and what is asked of the server under it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    about: str = Field(min_length=1)
    model: str = "minigrid"
    nfe: int = Field(0, ge=0, le=64)
    sessions: int = Field(16, ge=1, le=10_000, description="held open for steps, rollouts and imaginings")
    max_in_flight: int = Field(2000, ge=1, le=50_000, description="operations under way; one more is not sent")
    poisson: bool = Field(False, description="arrivals at random moments with the rate as their mean, not evenly")
    seed: int = Field(7, ge=0)
    phases: tuple[Phase, ...] = Field(min_length=1)
    operations: tuple[AnyOperation, ...] = Field(min_length=1)
    thresholds: tuple[Threshold, ...] = ()

    @model_validator(mode="after")
    def _names_what_is_there(self) -> "Scenario":
        kinds: list[str] = [operation.kind for operation in self.operations]
        names = [phase.name for phase in self.phases]
        for what, known in (("kind of operation", kinds), ("name of a phase", names)):
            twice = sorted({name for name in known if known.count(name) > 1})
            if twice:
                raise ValueError(f"each {what} may stand once, got {', '.join(twice)} twice")
        for index, threshold in enumerate(self.thresholds):
            for field, value, known in (
                ("operation", threshold.operation, kinds),
                ("phase", threshold.phase, names),
            ):
                if value is not None and value not in known:
                    raise ValueError(f"thresholds[{index}].{field} must be one of {', '.join(known)}, got {value!r}")
            if threshold.metric in OF_A_RAMP and all(phase.plateaus == 1 for phase in self.phases):
                raise ValueError(f"thresholds[{index}].metric {threshold.metric} needs a phase with plateaus, got none")
            if threshold.metric == "late_chunk_share" and not any(
                isinstance(operation, PlayOperation) for operation in self.operations
            ):
                raise ValueError(f"thresholds[{index}].metric late_chunk_share needs an operation play, got none")
        if not any(phase.measured for phase in self.phases):
            raise ValueError("phases must hold one that is measured, got none")
        return self

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def scaled(self, *, seconds: float = 1.0, rate: float = 1.0) -> "Scenario":
        """The same load for so many times as long, at so many times the rate."""
        phases = [
            phase.model_copy(
                update={
                    "seconds": phase.seconds * seconds,
                    "rate_per_s": phase.rate_per_s * rate,
                    "to_rate_per_s": None if phase.to_rate_per_s is None else phase.to_rate_per_s * rate,
                }
            )
            for phase in self.phases
        ]
        return self.model_copy(update={"phases": tuple(phases)})


def shipped() -> dict[str, Path]:
    """The scenarios that come with this package, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"))}


def load(name_or_file: str) -> Scenario:
    """A shipped scenario by its name, or one out of a file. Raises ScenarioError with all that is wrong with it."""
    file = shipped().get(name_or_file, Path(name_or_file))
    try:
        text = file.read_text()
    except OSError as error:
        raise ScenarioError(
            f"scenario {name_or_file!r} is neither a file ({error.strerror}) nor one of {', '.join(shipped())}"
        ) from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ScenarioError(f"{file} must hold the fields of a scenario, got {type(document).__name__}")
    return parse(document, name=file.stem)


def parse(document: Mapping[str, Any], *, name: str) -> Scenario:
    """A scenario out of its fields. Raises ScenarioError."""
    try:
        return Scenario.model_validate({"name": name, **document})
    except ValidationError as error:
        lines = [_line(dict(each)) for each in error.errors()]
        raise ScenarioError("\n".join(f"{name}: {line}" for line in lines)) from None


# What pydantic knows of a limit, in the words of our other messages.
_LIMITS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "below {lt:g}",
    "less_than_equal": "{le:g} or less",
    "too_short": "{min_length} or more long",
    "string_too_short": "{min_length} or more characters",
    "string_too_long": "{max_length} or fewer characters",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
}


def _line(error: dict[str, Any]) -> str:
    field, kind, value = _field(error["loc"]), error["type"], error["input"]
    if kind == "missing":
        return f"{field} is missing"
    if kind == "extra_forbidden":
        return f"{field} is no field of this, got {value!r}"
    if kind == "union_tag_not_found":
        return f"{field}.kind is missing"
    if kind == "value_error":  # of our own checks: it names field and value itself
        problem = str(error["ctx"]["error"])
        return f"{field}: {problem}" if field else problem
    if kind == "union_tag_invalid":
        field, value = f"{field}.kind", error["ctx"]["tag"]
    accepted = _LIMITS[kind].format(**error["ctx"]) if kind in _LIMITS else _lowered(error["msg"])
    return f"{field} must be {accepted}, got {value!r}"


def _lowered(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("a valid ")


def _field(place: Sequence[str | int]) -> str:
    """`operations[0].fps`, without the kind of the operation that stands between."""
    text = ""
    for index, part in enumerate(place):
        if isinstance(part, int):
            text += f"[{part}]"
        elif not (index == 2 and place[0] == "operations"):
            text += f".{part}" if text else part
        elif index == len(place) - 1:
            continue
    return text
