"""The words of the multi-task service as plain values."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Blend:
    """What decides a merge's weights: coefficients [layers, experts] where task vectors are only added, else the
    weights themselves [parameters]. Exactly one is set. `digest` names the content: equal weights, equal digest.
    """

    digest: str
    coefficients: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None

    @property
    def byte_count(self) -> int:
        array = self.coefficients if self.coefficients is not None else self.weights
        return 0 if array is None else array.nbytes


def blend_of(model_digest: str, coefficients: NDArray[np.float32] | None, weights: NDArray[np.float32] | None) -> Blend:
    """A blend with its digest: SHA-256 over the model's digest and the numbers, little endian."""
    array = coefficients if coefficients is not None else weights
    assert array is not None, "a blend has coefficients or weights"
    own = np.ascontiguousarray(array, "<f4")
    kind = "coefficients" if coefficients is not None else "weights"
    digest = hashlib.sha256(f"{model_digest}/{kind}/{own.shape}/".encode())
    digest.update(own.tobytes())
    return Blend(digest.hexdigest(), own if coefficients is not None else None, own if coefficients is None else None)


@dataclass(frozen=True)
class Recipe:
    """A method with all its parameters told. `parameters`: plain values, as they go over the wire."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScore:
    """Shares of the scoring set answered right, 0 to 1."""

    task: str
    score: float
    expert_score: float
    base_score: float


@dataclass(frozen=True)
class Point:
    """One point of a front. `objectives` and `preference`: one a task."""

    merge: str
    objectives: tuple[float, ...]
    preference: tuple[float, ...]
    sparsity: float


@dataclass(frozen=True)
class Card:
    """A merge that has a name, as it is kept and shown. Times in seconds, `create_s` since the epoch.

    `evaluation_count`: images that went through the network while it was made, each as often as it did.
    """

    name: str
    digest: str
    model: str
    version: str
    model_digest: str
    recipe: Recipe
    create_s: float
    make_s: float
    scores: tuple[TaskScore, ...]
    notes: tuple[str, ...] = ()
    guarded: bool = False
    image_count: int = 0
    evaluation_count: int = 0
    points: tuple[Point, ...] = ()
    hypervolume: float = 0.0
    front: str = ""

    @property
    def mean_score(self) -> float:
        return _mean([each.score for each in self.scores])

    @property
    def kept_share(self) -> float:
        """Mean score over the experts' mean score."""
        experts = _mean([each.expert_score for each in self.scores])
        return self.mean_score / experts if experts else 0.0

    @property
    def tried_count(self) -> int:
        """Sets of weights that its making tried on all the images."""
        return round(self.evaluation_count / self.image_count) if self.image_count else 0

    @property
    def base_score(self) -> float:
        """The base's mean score."""
        return _mean([each.base_score for each in self.scores])

    @property
    def worse_than_base(self) -> bool:
        return self.mean_score < self.base_score


@dataclass(frozen=True)
class Answer:
    """What the network said of one request's images. `probabilities`: by task, [images, classes].

    Seconds: waiting, making the merge's weights (0: they were there), in the network. `batch_size`: images of the run.
    """

    probabilities: Mapping[str, NDArray[np.float32]]
    queue_s: float
    merge_s: float
    run_s: float
    batch_size: int


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
