"""A search for merges that trade tasks against each other (Li et al., "It's Morphing Time: Unleashing the Potential of
Multiple LLMs via Multi-objective Optimization", MM-MO), over coefficients layer by layer.

As in the paper: a Bayesian search with one objective a task; points that were good guide what is tried next (weak to
strong); Fisher information screens it; sparsity is one objective more, of the search alone. Other than there: the
Fisher information is that of the answers by coefficients, measured once, and is also the metric of the surrogate.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldtree_multitask.merging.directions import Directions, Granularity, Mixer, Theta
from worldtree_multitask.merging.exam import Exam
from worldtree_multitask.merging.front import best_rows, hypervolume, suited_preferences, thinned
from worldtree_multitask.merging.label_free import Lesson, lesson
from worldtree_multitask.merging.layout import Flat
from worldtree_multitask.merging.method import Context, Merged, Needs, Parameters, Point
from worldtree_multitask.merging.mm_mo_batch import propose
from worldtree_multitask.merging.optimizers import gauss_newton
from worldtree_multitask.merging.progress import Progress
from worldtree_multitask.merging.surrogate import Points

_SCALES = (0.2, 0.3, 0.5, 0.8)  # of task arithmetic, times the sum of all task vectors
_DISTILL_STEPS = 3


class MmMoParameters(Parameters):
    """Of `mm_mo`."""

    evaluations: Annotated[
        int, Field(ge=8, le=5000, description="merges tried; the Fisher information takes one a coefficient more")
    ] = 200
    population: Annotated[int, Field(ge=4, le=200, description="merges tried before the surrogate learns again")] = 16
    seed_from: Annotated[
        tuple[Literal["corners", "arithmetic", "adamerging", "chance"], ...],
        Field(
            min_length=1,
            description="first points: corners: each expert alone, and the package's own corners; arithmetic: the base "
            "and some scales; adamerging: its default merge; chance: one population between 0 and the bound",
        ),
    ] = ("corners", "arithmetic", "adamerging", "chance")
    granularity: Annotated[Granularity, Field(description="as of adamerging")] = "layer"
    bound: Annotated[float, Field(gt=0.0, le=4.0, description="coefficients are searched from 0 to this")] = 1.5
    images_per_task: Annotated[int, Field(ge=1, le=4096, description="the first so many images of each task")] = 64
    front_size: Annotated[int, Field(ge=1, le=256, description="points of the front returned, at most")] = 32


class MmMo:
    """Objectives: on each task's images the share answered right where labels are known, else as its expert does.

    The front is what no tried merge beats, the best mean first, which is also the merge itself. It is the best of many
    on a few images, so on others it keeps less than it shows here: for one merge alone, take `adamerging`.
    """

    name: ClassVar[str] = "mm_mo"
    description: ClassVar[str] = "a front of merges that trade tasks against each other (MM-MO)"
    needs: ClassVar[Needs] = Needs.IMAGES
    immediate: ClassVar[bool] = False
    parameters: ClassVar[type[Parameters]] = MmMoParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: MmMoParameters
    ) -> Merged:
        progress = Progress(context.tell, "search", parameters.evaluations)
        directions = Directions(context.layout, len(context.experts), parameters.granularity)
        known = lesson(context, Mixer(base, task_vectors, directions), progress)
        exam = known.exam("distill", dict.fromkeys(known.images, slice(parameters.images_per_task)))
        tried = _Tried(exam, _answers(known, parameters.images_per_task))
        for theta in _seeds(known, exam, parameters)[: parameters.evaluations]:
            tried.add(np.clip(theta, 0.0, parameters.bound))
        metric = _metric(exam, tried.best)
        while len(tried.points) < parameters.evaluations:
            count = min(parameters.population, parameters.evaluations - len(tried.points))
            points, values = np.array(tried.points), np.array(tried.objectives)
            for theta in propose(points, values, metric, count=count, bound=parameters.bound, rng=context.rng):
                tried.add(theta)
        return _front(directions, np.array(tried.points), np.array(tried.objectives), parameters.front_size)


class _Tried:
    """Every merge tried so far, with its objectives."""

    def __init__(self, exam: Exam, answers: dict[str, NDArray[np.int64]]) -> None:
        self._exam, self._answers = exam, answers
        self.points: list[Theta] = []
        self.objectives: list[NDArray[np.float64]] = []

    def add(self, theta: Theta) -> None:
        """Told as a step; the objective told is what the best merge so far misses on the mean of tasks."""
        logits = self._exam.logits(theta)
        shares = [float(np.mean(logits[task].argmax(axis=1) == right)) for task, right in self._answers.items()]
        self.points.append(theta)
        self.objectives.append(np.array(shares))
        self._exam.progress.step(len(self.points), 1.0 - max(float(each.mean()) for each in self.objectives))

    @property
    def best(self) -> Theta:
        return self.points[int(np.argmax([each.mean() for each in self.objectives]))]


def _answers(known: Lesson, images_per_task: int) -> dict[str, NDArray[np.int64]]:
    """By task what counts as right. Raises ValueError for labels that are not one an image."""
    right = {}
    for task, logits in known.expert_logits.items():
        labels = known.context.labels.get(task)
        if labels is not None and len(labels) != len(logits):
            raise ValueError(f"labels of {task} must be {len(logits)}, one an image, got {len(labels)}")
        right[task] = (logits.argmax(axis=1) if labels is None else labels)[:images_per_task]
    return right


def _seeds(known: Lesson, exam: Exam, parameters: MmMoParameters) -> list[Theta]:
    directions, context = known.mixer.directions, known.context
    seeds: list[Theta] = []
    layers, experts = len(context.layout.layers), len(context.experts)
    for source in dict.fromkeys(parameters.seed_from):
        if source == "adamerging":
            start = np.full(directions.count, 0.3)
            seeds.append(gauss_newton(exam, start, steps=_DISTILL_STEPS, watch=lambda *_: False))
        elif source == "chance":
            seeds += list(context.rng.uniform(0.0, parameters.bound, size=(parameters.population, directions.count)))
        elif source == "arithmetic":
            seeds += [np.full(directions.count, scale) for scale in (0.0, *_SCALES)]
        else:
            corners = [np.tile(row, (layers, 1)) for row in np.eye(experts, dtype=np.float32)]
            seeds += [
                directions.theta(corner)
                for corner in (*corners, *(context.corners if context.corners is not None else ()))
            ]
    return seeds


def _metric(exam: Exam, theta: Theta) -> NDArray[np.float64]:
    """J^T F J at theta, and a little of every direction, so that no two points are at no distance."""
    curvature = exam.slope(theta, curved=True).curvature
    assert curvature is not None
    metric: NDArray[np.float64] = curvature + 1e-2 * max(np.trace(curvature) / len(theta), 1e-9) * np.eye(len(theta))
    return metric


def _front(directions: Directions, points: Points, objectives: NDArray[np.float64], limit: int) -> Merged:
    rows = best_rows(objectives)
    covered = hypervolume(objectives[rows])
    rows = rows[thinned(objectives[rows], limit)]
    preferences = suited_preferences(objectives[rows])
    front = tuple(
        Point(directions.coefficients(points[row]), tuple(objectives[row].tolist()), tuple(preference.tolist()))
        for row, preference in zip(rows, preferences, strict=True)
    )
    return Merged(coefficients=front[0].coefficients, front=front, hypervolume=covered)
