"""One version of a model as it is served: its engine, how recipes become blends, and what cards say of them."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError
from worldtree_runtime.errors import InvalidRequest, NotFound
from worldtree_runtime.multitask_package import MultitaskPackage, StoredMultitask

from worldtree_multitask.blends import Blends
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.domain import Blend, Recipe, TaskScore, blend_of
from worldtree_multitask.engine import Engine
from worldtree_multitask.errors import NotImmediate
from worldtree_multitask.merging import Cancelled, Context, Merged, Method, Needs, Step, method, methods
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.model import Model
from worldtree_multitask.package import ImageSet, read_contents

_NO_IMAGES = ImageSet({}, {})


@dataclass(frozen=True)
class MadePoint:
    """One point of a front, before it has a name. `objectives` and `preference`: one a task."""

    blend: Blend
    scores: tuple[TaskScore, ...]
    objectives: tuple[float, ...]
    preference: tuple[float, ...]
    sparsity: float


@dataclass(frozen=True)
class Made:
    """A merge before it has a name."""

    blend: Blend
    recipe: Recipe
    scores: tuple[TaskScore, ...]
    notes: tuple[str, ...]
    guarded: bool
    make_s: float
    image_count: int
    evaluation_count: int
    front: tuple[MadePoint, ...] = ()
    hypervolume: float = 0.0


class Served:
    """`start` and `stop` its engine. `make` and `create` may run in any thread."""

    def __init__(self, stored: StoredMultitask, settings: MultitaskSettings, metrics: MultitaskMetrics) -> None:
        """Raises PackageError."""
        self.stored = stored
        self.contents = read_contents(stored)
        self.model = Model(stored, self.contents, device=settings.device, threads=settings.threads)
        self.engine = Engine(
            self.model,
            metrics,
            name=stored.name,
            shelf_bytes=settings.shelf_mib << 20,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting_images,
        )
        self.blends = Blends(self.make)
        self._metrics = metrics
        self.reference_scores = self._reference_scores()

    @property
    def package(self) -> MultitaskPackage:
        return self.stored.package

    def _reference_scores(self) -> dict[str, tuple[float, float]]:
        """By task: what its own expert and the base answer right of the scoring set."""
        weights = self.contents.base + self.contents.task_vectors
        return {
            task: (self._score(weights[column], task), self._score(self.contents.base, task))
            for column, task in enumerate(self.package.task_names)
        }

    def resolve(self, recipe: Recipe, *, immediate: bool) -> Recipe:
        """The recipe with every parameter told. Raises NotFound for a method, InvalidRequest for a parameter.

        `immediate`: whether it must be one that is made in passing.
        """
        found = self._method(recipe.method)
        if immediate and not found.immediate:
            raise NotImmediate(recipe.method, [each for each in methods() if _known(each).immediate])
        try:
            parameters = found.parameters.model_validate(dict(recipe.parameters))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(["recipe.parameters", *(str(part) for part in first["loc"])])
            given = first.get("input")
            silent = first["type"] in ("missing", "extra_forbidden") or not first["loc"]
            got = "" if silent else f", got {given!r}"
            raise InvalidRequest(field, f"{field}: {first['msg'].removeprefix('Value error, ')}{got}") from error
        return Recipe(recipe.method, parameters.model_dump(mode="json"))

    def make(self, recipe: Recipe) -> Blend:
        """The blend of an immediate recipe. Raises InvalidRequest."""
        return self._blend(self._merge(recipe, _NO_IMAGES, lambda _: None)[0])

    def create(self, recipe: Recipe, images: ImageSet, tell: Callable[[Step], None]) -> Made:
        """Makes a merge and measures it. Raises InvalidRequest, and Cancelled when `tell` does."""
        begun_s = time.perf_counter()
        tell(Step("making", 0, 0))
        merged, evaluation_count = self._merge(recipe, images, tell)
        blend = self._blend(merged)
        make_s = time.perf_counter() - begun_s
        self._metrics.make_seconds.labels(self.stored.name, recipe.method).observe(make_s)
        front: list[MadePoint] = []
        for index, point in enumerate(merged.front):
            tell(Step("scoring", index, len(merged.front) + 1))
            own = blend_of(self.stored.digest, point.coefficients, None)
            sparsity = float(np.mean(point.coefficients == 0))
            front.append(MadePoint(own, self.scores(own), point.objectives, point.preference, sparsity))
        tell(Step("scoring", len(merged.front), len(merged.front) + 1))
        scores = self.scores(blend)
        front.sort(key=lambda point: -sum(each.score for each in point.scores))
        return Made(
            blend,
            recipe,
            scores,
            merged.notes,
            merged.guarded,
            make_s,
            images.image_count,
            evaluation_count,
            tuple(front),
            merged.hypervolume,
        )

    def scores(self, blend: Blend) -> tuple[TaskScore, ...]:
        """How a merge answers the scoring set, task by task."""
        contents = self.contents
        if blend.coefficients is not None:
            weights = contents.layout.combine(contents.base, contents.task_vectors, blend.coefficients)
        else:
            assert blend.weights is not None, "a blend has coefficients or weights"
            weights = blend.weights
        return tuple(
            TaskScore(task, self._score(weights, task), *self.reference_scores[task])
            for task in self.package.task_names
        )

    def _score(self, weights: np.ndarray, task: str) -> float:
        scoring = self.contents.image_sets[self.package.scoring]
        logits = self.model.network().logits(weights, scoring.images[task], task)
        return float(np.mean(logits.argmax(axis=1) == scoring.labels[task]))

    def _merge(self, recipe: Recipe, images: ImageSet, tell: Callable[[Step], None]) -> tuple[Merged, int]:
        found = self._method(recipe.method)
        network = self.model.network()
        check_needs(recipe, images)
        context = Context(
            layout=self.contents.layout,
            experts=self.package.task_names,
            tasks=self.package.task_names,
            network=network,
            images=images.images,
            labels=images.labels,
            corners=self.contents.corners,
            tell=tell,
            rng=np.random.default_rng(0),
        )
        parameters = found.parameters.model_validate(dict(recipe.parameters))
        try:
            merged = found.merge(self.contents.base, self.contents.task_vectors, context, parameters)
        except Cancelled:
            raise
        except ValueError as error:
            raise InvalidRequest("recipe.parameters", f"recipe.parameters: {error}") from error
        for array in (merged.coefficients, merged.weights):
            if array is not None and not np.isfinite(array).all():
                raise InvalidRequest("recipe", f"recipe: {recipe.method} made weights that are not finite")
        return merged, network.evaluation_count

    def _blend(self, merged: Merged) -> Blend:
        return blend_of(self.stored.digest, merged.coefficients, merged.weights)

    def _method(self, name: str) -> Method:
        found = method(name)
        if found is None:
            raise NotFound("method", name, known=methods())
        return found


def _known(name: str) -> Method:
    found = method(name)
    assert found is not None, f"{name} is listed and not there"
    return found


def check_needs(recipe: Recipe, images: ImageSet) -> None:
    """Raises InvalidRequest where a known method lacks the images or the labels that it learns from."""
    needs = _known(recipe.method).needs
    if needs is not Needs.NOTHING and not images.images:
        raise InvalidRequest("images", f"images must hold some: method {recipe.method} learns from images, got none")
    if needs is Needs.LABELS and not images.labels:
        raise InvalidRequest("images", f"images must have labels: method {recipe.method} learns from labels, got none")


def wire_number(value: float) -> float:
    """A number as people wrote it: the wire's Struct knows floats only, and 3.0 is meant as 3."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def plain(values: Mapping[str, object]) -> dict[str, object]:
    """Parameters off the wire, whole numbers as such, at any depth."""

    def one(value: object) -> object:
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return value
        if isinstance(value, float | int):
            return wire_number(value)
        if isinstance(value, Mapping):
            return {str(key): one(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [one(each) for each in value]
        return value

    return {key: one(value) for key, value in values.items()}
