"""What the multi-task service is asked with and answers: frozen values, nothing that talks to a server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
ClassIds = npt.NDArray[np.int32]
Needs = Literal["nothing", "images", "labels", "unknown"]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One thing that can be asked of an image. `classes` are the answers by class id; scores are shares of the scoring
    set answered right, 0 to 1."""

    name: str
    description: str
    classes: tuple[str, ...]
    expert_score: float
    base_score: float


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A way to merge experts. `immediate`: predict takes it as a Recipe; the others need create_merge.

    `parameters` is their JSON Schema: types, defaults and limits by name.
    """

    name: str
    description: str
    immediate: bool
    needs: Needs
    parameters: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images that come with a model, to learn merges from."""

    name: str
    description: str
    image_count: int
    labeled: bool


@dataclass(frozen=True, slots=True)
class TaskModel:
    """A served multi-task model. The order of `tasks` is that of preference weights and of columns of coefficients."""

    name: str
    version: str
    digest: str
    description: str
    height_px: int
    width_px: int
    tasks: tuple[TaskInfo, ...]
    layers: tuple[str, ...]
    parameter_count: int
    methods: tuple[MethodInfo, ...] = field(repr=False)
    image_sets: tuple[ImageSet, ...]
    models: tuple[str, ...]  # names of all that are served


@dataclass(frozen=True, init=False)
class Recipe:
    """A method and its parameters: `Recipe("ties", density=0.2)`. Those left out have the method's defaults."""

    method: str
    parameters: Mapping[str, Any]

    def __init__(self, method: str, /, **parameters: Any) -> None:
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "parameters", parameters)

    def __repr__(self) -> str:
        told = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"Recipe({self.method!r}{told})"


@dataclass(frozen=True, slots=True, eq=False)
class TaskAnswer:
    """The answers to one task. `classes` names the class ids."""

    task: str
    classes: tuple[str, ...]
    class_ids: ClassIds  # [images]
    probabilities: Floats = field(repr=False)  # [images, classes], each row sums to 1

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image, by name; its id where a model that is gone cannot name it."""
        return [self.classes[each] if each < len(self.classes) else str(each) for each in self.class_ids.tolist()]

    @property
    def confidence(self) -> Floats:
        """The probability of the most probable class, [images]."""
        best: Floats = self.probabilities.max(axis=1)
        return best


@dataclass(frozen=True, slots=True)
class PredictTiming:
    """Where the time of a prediction went; of a cached answer, when it was made. `merge_s` 0: the weights were there.

    `batch_size`: images of the batch, this call's and others'.
    """

    queue_s: float
    merge_s: float
    run_s: float
    batch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Answer(Mapping[str, TaskAnswer]):
    """Answers by task, in the order asked: `answer["front_object"].labels`.

    `merge_digest` names the content of the merge that answered; `cached`: a gateway had the answer already.
    """

    answers: Mapping[str, TaskAnswer]
    model: str
    version: str
    digest: str
    merge_digest: str
    timing: PredictTiming
    cached: bool

    def __getitem__(self, task: str) -> TaskAnswer:
        return self.answers[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.answers)

    def __len__(self) -> int:
        return len(self.answers)


@dataclass(frozen=True, slots=True)
class MergeProgress:
    """How far the making of a merge is. `total` 0: unknown. `objective`: what the method minimises; None: nothing."""

    phase: str
    done: int
    total: int
    objective: float | None
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Shares of a task's scoring set that a merge, the task's own expert and the base answer right, 0 to 1."""

    task: str
    score: float
    expert_score: float
    base_score: float


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """A merge with its card. `recipe` tells every parameter; `kept_share` is its mean score over the experts'.

    Two are equal when their names and contents are: `digest` covers the model and what decides the weights.
    """

    name: str
    digest: str
    model: str
    version: str
    model_digest: str
    recipe: Recipe
    create_time: datetime
    make_s: float
    scores: tuple[TaskScore, ...]
    mean_score: float
    kept_share: float
    worse_than_base: bool
    guarded: bool  # a guard acted: entropy minimisation ran into confident constants and was stopped
    notes: tuple[str, ...]
    layers: tuple[str, ...]
    experts: tuple[str, ...]
    # [layers, experts]: how much of each expert is in each layer; None where the method does more than to add
    coefficients: Floats | None = field(repr=False)
    image_count: int
    evaluation_count: int
    front_point_count: int  # of a front, its points, which are merges themselves; else 0
    front: str | None  # the front that it is a point of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Merge) and (self.name, self.digest) == (other.name, other.digest)

    def __hash__(self) -> int:
        return hash((self.name, self.digest))


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A merge that no other point beats on all objectives; `merge` is its name.

    `preference` [tasks] is the one that it suits best, `objectives` [tasks] what the search saw of each task: agreement
    with the expert (or right answers, where there were labels), 0 to 1. `sparsity`: share of coefficients that are 0.
    """

    merge: str
    preference: tuple[float, ...]
    scores: tuple[TaskScore, ...]
    objectives: tuple[float, ...]
    sparsity: float

    @property
    def mean_score(self) -> float:
        return sum(each.score for each in self.scores) / len(self.scores) if self.scores else 0.0


@dataclass(frozen=True, slots=True)
class ParetoFront:
    """The points of a search with several objectives, the best mean score first.

    `hypervolume`: volume between the points' objectives and the origin, 0 to 1.
    """

    name: str
    points: tuple[FrontPoint, ...]
    hypervolume: float
    evaluation_count: int


# Called as the making of a merge goes on.
OnMergeProgress = Callable[[MergeProgress], None]
# What answers: a merge's name, a merge, a point of a front, a recipe, or a preference by task or in order of the tasks.
MergeLike = str | Merge | FrontPoint | Recipe | Mapping[str, float] | Sequence[float] | npt.NDArray[Any]
