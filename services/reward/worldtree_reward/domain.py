"""The words of the service, as values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from worldtree_runtime.opinion import Opinion

Frames = NDArray[np.uint8]  # [n, height, width, 3]
Actions = NDArray[np.int64]  # [n]: the action that led to each frame


@dataclass(frozen=True, slots=True)
class Question:
    """What a clip is asked. `category`: None leaves it to the router. `weights`: None leaves them to the category."""

    goal: str
    category: str | None = None
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A goal as networks read it. `notes`: what of it they do not."""

    words: NDArray[np.int64]  # [words]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Which category judges. `unseen`: the goal is of none that the router knows."""

    category: str
    probability: float
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the experts say of a clip so far: one opinion a dimension, one of the whole by category."""

    step_count: int
    dimensions: tuple[Opinion, ...]
    whole: Mapping[str, Opinion]


@dataclass(frozen=True, slots=True)
class DimensionScore:
    name: str
    score: float
    uncertainty: float
    counts: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is told of a clip."""

    reward: Opinion
    route: Route
    dimensions: tuple[DimensionScore, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spent:
    """Where the time of a clip's scoring went, seconds."""

    queue_s: float = 0.0
    run_s: float = 0.0
    batch_sizes: tuple[int, ...] = field(default=())

    @property
    def mean_batch_size(self) -> float:
        return sum(self.batch_sizes) / len(self.batch_sizes) if self.batch_sizes else 0.0
