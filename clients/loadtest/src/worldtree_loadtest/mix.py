"""What a scenario asks for: the kinds of operations, each with its weight, its deadline and its size."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# A pause of a stream is not an answer: how long a client may wait for one, at most.
_DEADLINE_MAX_S = 600.0
GOAL = "get to the green goal"  # one that the shipped judge and planners know


class Operation(BaseModel):
    """One kind. `deadline_s` counts from the intended start: an answer after it is worth nothing to whoever asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: float = Field(1.0, gt=0, le=1000)
    deadline_s: float = Field(2.0, gt=0, le=_DEADLINE_MAX_S)


class SessionOperation(Operation):
    """A session is opened, moved by a few actions, and closed."""

    kind: Literal["session"]
    action_count: int = Field(1, ge=0, le=256)


class StepOperation(Operation):
    """One Step of a session that is held open."""

    kind: Literal["step"]
    action_count: int = Field(1, ge=1, le=256)


class PlayOperation(Operation):
    """A session of its own is opened and played in real time. Its latency is that of the first frame."""

    kind: Literal["play"]
    fps: float = Field(5.0, gt=0, le=240)
    chunk_count: int = Field(20, ge=1, le=100_000)


class RolloutOperation(Operation):
    """Futures of a session that is held open."""

    kind: Literal["rollout"]
    sequence_count: int = Field(8, ge=1, le=256)
    depth: int = Field(4, ge=1, le=256)


class GenerateOperation(Operation):
    """A clip. `distinct_count` 0: each is asked for once; else one of so many, the k-th as often as 1 / k^skew."""

    kind: Literal["generate"]
    action_count: int = Field(4, ge=1, le=256)
    distinct_count: int = Field(0, ge=0, le=1_000_000)
    skew: float = Field(1.1, ge=0, le=5)


class ImagineOperation(Operation):
    """Candidates of a session that is held open, imagined and judged by the navigator."""

    kind: Literal["imagine"]
    candidates: int = Field(8, ge=1, le=256)
    horizon: int = Field(3, ge=1, le=64)
    goal: str = GOAL


class PredictOperation(Operation):
    """Images, each its own, answered by the multi-task service for all its tasks alike."""

    kind: Literal["predict"]
    image_count: int = Field(1, ge=1, le=256)


class RobotOperation(Operation):
    """A robot in a closed loop: it decides, acts, and decides again, each `period_s` or as soon as it can.

    Without a `planner` a decision is one Step; with one it is a Plan, whose first action is then taken by a Step.
    """

    kind: Literal["robot"]
    decision_count: int = Field(10, ge=1, le=100_000)
    period_s: float = Field(0.5, gt=0, le=60)
    planner: str | None = None
    goal: str = GOAL


AnyOperation = Annotated[
    SessionOperation
    | StepOperation
    | PlayOperation
    | RolloutOperation
    | GenerateOperation
    | ImagineOperation
    | PredictOperation
    | RobotOperation,
    Field(discriminator="kind"),
]
