"""Frank-Wolfe over a pool of experts (Chen et al., "FW-Merging: Scaling Model Merging with Frank-Wolfe Optimization").

The merge stays in the hull of the base and `radius` times each task vector, layer by layer. Each step asks which corner
of the hull lies most downhill and moves towards it; a corner that never does has no part, so that a pool may hold
experts that do not help.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldtree_multitask.merging.directions import Directions, Granularity, Mixer, Theta
from worldtree_multitask.merging.exam import Exam, Tangent, mean_loss
from worldtree_multitask.merging.guard import Guard
from worldtree_multitask.merging.label_free import Lesson, Objective, lesson
from worldtree_multitask.merging.layout import Flat
from worldtree_multitask.merging.losses import Matrix
from worldtree_multitask.merging.method import Context, Merged, Needs, Parameters
from worldtree_multitask.merging.progress import Progress

_FRESH = 2  # first steps with a Jacobian each: they go from corner to corner
_REUSED = 10  # later ones are short: so many by one Jacobian end as well
_LENGTHS = np.geomspace(1.0, 1 / 64, 25)  # of a step, 1: all the way to the corner
_HALVINGS = 4  # of a step that does not go down
_SETTLED = 1e-2  # of the loss: a step that promises less gain is not made


class FwMergingParameters(Parameters):
    """Of `fw_merging`."""

    radius: Annotated[
        float, Field(gt=0.0, le=10.0, description="times each task vector: how large a layer's coefficients may sum to")
    ] = 3.0
    objective: Annotated[Objective, Field(description="as of adamerging: entropy, infomax or distill")] = "distill"
    granularity: Annotated[
        Granularity, Field(description="layer: a corner for each layer; task: one for the whole network")
    ] = "layer"
    step: Annotated[
        Literal["line_search", "classic"],
        Field(description="line_search: as long as the loss falls; classic: 2 / (t + 2), whatever the loss does"),
    ] = "line_search"
    start: Annotated[
        Literal["base", "average"], Field(description="the base alone, or the mean of all experts in the pool")
    ] = "base"
    steps: Annotated[int, Field(ge=1, le=1000, description="at most so many")] = 30
    images_per_task: Annotated[int, Field(ge=1, le=4096, description="the first so many images of each task")] = 64


class FwMerging:
    """Frank-Wolfe merging with hard selection: the linear minimisation oracle, min over experts of the inner product of
    gradient and task vector, needs nothing but the gradient by coefficients, which is measured (`Exam.slope`).

    Learns on every task that has images and an expert of its name; the pool may hold more experts. Guarded as
    `adamerging` is, but at the end: then the merge is the best point on the way.
    """

    name: ClassVar[str] = "fw_merging"
    description: ClassVar[str] = "Frank-Wolfe over a pool of experts: only those that help are picked (FW-Merging)"
    needs: ClassVar[Needs] = Needs.IMAGES
    immediate: ClassVar[bool] = False
    parameters: ClassVar[type[Parameters]] = FwMergingParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: FwMergingParameters
    ) -> Merged:
        progress = Progress(context.tell, "corners", parameters.steps)
        count = len(context.experts)
        directions = Directions(context.layout, count, parameters.granularity)
        known = lesson(context, Mixer(base, task_vectors, directions), progress)
        exam = known.exam(parameters.objective, dict.fromkeys(known.images, slice(parameters.images_per_task)))
        # The mean of experts is within the hull for a radius of 1 or more.
        share = min(1.0, parameters.radius) / count if parameters.start == "average" else 0.0
        theta = np.full(directions.count, share)
        guard = None if parameters.objective == "distill" else known.guard()
        if guard is not None:
            known.look(guard, theta)
        return _descend(known, exam, guard, theta, parameters)


def _descend(known: Lesson, exam: Exam, guard: Guard | None, theta: Theta, parameters: FwMergingParameters) -> Merged:
    directions = known.mixer.directions
    collapsed = False
    for step in range(parameters.steps):
        if step < _FRESH or step % _REUSED == 0:
            tangent = exam.tangent(theta)
            logits = tangent.logits
        else:
            logits = exam.logits(theta)
        slope = tangent.slope(logits)
        towards = corner(slope.gradient, directions.expert_count, parameters.radius) - theta
        # The Frank-Wolfe gap: were the loss convex, no point of the hull would be better by more.
        promised = -float(slope.gradient @ towards)
        if promised < _SETTLED * abs(slope.value):
            break
        if parameters.step == "classic":
            theta, value = theta + 2.0 / (step + 2.0) * towards, slope.value
        else:
            length, value = _line_search(exam, tangent, logits, theta, towards, slope.value)
            if length == 0.0:
                break
            theta = theta + length * towards
        known.progress.step(step + 1, value)
        if guard is not None:
            # Kept for the end: the first steps lie at single corners, where the other tasks suffer for a while.
            collapsed = known.look(guard, theta)
    if collapsed and guard is not None and guard.best is not None:
        coefficients = directions.coefficients(guard.best)
        return Merged(coefficients=coefficients, notes=(guard.warning,), guarded=True)
    return Merged(coefficients=directions.coefficients(theta))


def corner(gradient: NDArray[np.float64], expert_count: int, radius: float) -> Theta:
    """The point of the hull that is lowest by `gradient` [rows x experts]: in each row one expert, or none where
    every expert would go up (the base's corner).
    """
    rows = gradient.reshape(-1, expert_count)
    lowest = rows.argmin(axis=1)
    picked = np.zeros_like(rows)
    each = np.arange(len(rows))
    picked[each, lowest] = np.where(rows[each, lowest] < 0, radius, 0.0)
    return picked.reshape(-1)


def _line_search(
    exam: Exam, tangent: Tangent, logits: Mapping[str, Matrix], theta: Theta, towards: Theta, value: float
) -> tuple[float, float]:
    """The best length by the Jacobian, which costs no pass, shortened until the loss is truly lower than `value`; and
    that loss. 0 where it never is.
    """
    moves = tangent.along(towards)
    promised = [
        mean_loss(exam.losses, {task: logits[task] + length * move for task, move in moves.items()})
        for length in _LENGTHS
    ]
    length = _LENGTHS[int(np.argmin(promised))]
    for _ in range(_HALVINGS):
        tried = exam.value(theta + length * towards)
        if tried < value:
            return length, tried
        length /= 2
    return 0.0, value
