"""What a method of merging is, what it may use, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from worldtree_multitask.merging.layout import Coefficients, Flat, Layout

Images: TypeAlias = NDArray[np.uint8]  # [images, height, width, 3]
Labels: TypeAlias = NDArray[np.int64]  # [images]
Logits: TypeAlias = NDArray[np.float32]  # [images, classes]


class Cancelled(Exception):  # noqa: N818 - it is no error: who asked for the merge has left
    """Raised by `Context.tell`; a method lets it pass."""


class Needs(Enum):
    """What a method learns from."""

    NOTHING = auto()
    IMAGES = auto()
    LABELS = auto()


class Parameters(BaseModel):
    """The knobs of a method: pydantic fields with defaults, limits and descriptions. Unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a method is. `total`: 0 where it is unknown; `objective`: what is minimised, NaN where nothing is."""

    phase: str
    done: int
    total: int
    objective: float = float("nan")


class Network(Protocol):
    """The network as methods see it: weights and images in, logits out. Counts what it is asked.

    `weights` is the caller's and may change after the call: a network that keeps any of it keeps a copy.
    """

    evaluation_count: int

    def logits(self, weights: Flat, images: Images, task: str) -> Logits:
        """The head of `task` on `images` [n, height, width, 3] with these weights."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a method works with besides the weights.

    `experts`: names of the task vectors, in their order. `images`: by task, where the caller or the package has some;
    `labels`: of the same images, by task. `corners`: the package's learned map from preferences to coefficients,
    [tasks, layers, experts]; None: it has none. `tasks`: in their order; empty: the experts' names. A task's own expert
    has its name; an expert of another name belongs to no task. `tell` is called at least once a second or so; it raises
    Cancelled when nobody wants the merge any more. `rng` is the only source of chance: the same seed gives the same
    merge.
    """

    layout: Layout
    experts: tuple[str, ...]
    network: Network
    images: Mapping[str, Images] = field(default_factory=dict)
    labels: Mapping[str, Labels] = field(default_factory=dict)
    corners: NDArray[np.float32] | None = None
    tasks: tuple[str, ...] = ()
    tell: Callable[[Step], None] = lambda _: None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


@dataclass(frozen=True, slots=True)
class Point:
    """One merge of a front. `objectives`: one a task, 0 to 1, more is better. `preference`: the one it suits best."""

    coefficients: Coefficients
    objectives: tuple[float, ...]
    preference: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Merged:
    """What a method made: coefficients where it only adds task vectors, weights where it does more. Exactly one is set.

    `notes`: what the caller should know, a sentence each. `guarded`: whether a guard stopped a collapse.
    `front`: of a search with several objectives, no point of it worse than another in all. `hypervolume`: of the front.
    """

    coefficients: Coefficients | None = None
    weights: Flat | None = None
    notes: tuple[str, ...] = ()
    guarded: bool = False
    front: tuple[Point, ...] = ()
    hypervolume: float = 0.0


class Method(Protocol):
    """A way to merge. Plug-ins: entry points of the group `worldtree.merge_methods`, each naming such a class."""

    name: ClassVar[str]
    description: ClassVar[str]  # one line: what it does, the paper's name
    needs: ClassVar[Needs]
    immediate: ClassVar[bool]  # made in milliseconds, so that a prediction may wait for it
    parameters: ClassVar[type[Parameters]]

    def merge(self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: Any) -> Merged:
        """`base` [parameters], `task_vectors` [experts, parameters]; neither may be written to.

        `parameters` is an instance of the class's own `parameters`. Raises ValueError, whose message names the
        parameter, the value and what is accepted, for what only shows here; Cancelled when `context.tell` does.
        """


def check_experts(chosen: Sequence[str], known: tuple[str, ...]) -> list[int]:
    """Columns of the chosen experts. Empty: all. Raises ValueError for one that is unknown or named twice."""
    if not chosen:
        return list(range(len(known)))
    for name in chosen:
        if name not in known:
            raise ValueError(f"experts must be some of {list(known)}, got {name!r}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"experts must be distinct, got {list(chosen)}")
    return [known.index(name) for name in chosen]
