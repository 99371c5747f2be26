"""Coefficients learned on images without labels (Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task
Learning", section 3): one an expert, or one an expert and layer."""

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from worldtree_multitask.merging.directions import Directions, Granularity, Mixer, Theta
from worldtree_multitask.merging.label_free import Lesson, Objective, lesson
from worldtree_multitask.merging.layout import Flat
from worldtree_multitask.merging.method import Context, Merged, Needs, Parameters
from worldtree_multitask.merging.optimizers import Watch, adam, evolution, gauss_newton
from worldtree_multitask.merging.progress import Progress

Optimizer = Literal["gauss_newton", "gradient", "evolution"]

_STEPS: dict[Optimizer, int] = {"gauss_newton": 3, "gradient": 60, "evolution": 100}


# Asked with the fields before, less those that were refused.
def _usual_optimizer(known: dict[str, Any]) -> Optimizer:
    return "gauss_newton" if known.get("objective", "distill") == "distill" else "gradient"


def _usual_steps(known: dict[str, Any]) -> int:
    return _STEPS[known.get("optimizer", "gradient")]


class AdaMergingParameters(Parameters):
    """Of `adamerging`."""

    granularity: Annotated[
        Granularity, Field(description="task: one coefficient an expert; layer: one an expert and layer")
    ] = "layer"
    objective: Annotated[
        Objective,
        Field(
            description="entropy: of the answers, as published; infomax: less the entropy of the mean answer; "
            "distill: divergence from each expert's answers on its own task's images"
        ),
    ] = "distill"
    optimizer: Annotated[
        Optimizer,
        Field(
            default_factory=_usual_optimizer,
            description="gauss_newton: few steps, for distill only, where it is the default; gradient: Adam, the "
            "default elsewhere; evolution: without gradients",
        ),
    ]
    start: Annotated[float, Field(ge=-2.0, le=2.0, description="every coefficient at first")] = 0.3
    steps: Annotated[
        int,
        Field(
            ge=1,
            le=2000,
            default_factory=_usual_steps,
            description="at most so many; unless told, 3 of gauss_newton, 60 of gradient, 100 of evolution",
        ),
    ]
    learning_rate: Annotated[
        float, Field(gt=0.0, le=1.0, description="of gradient: Adam's rate; of evolution: the first spread")
    ] = 0.02
    images_per_task: Annotated[
        int, Field(ge=1, le=4096, description="images of each task in one step; gauss_newton keeps the first ones")
    ] = 64

    @model_validator(mode="after")
    def _suited(self) -> Self:
        if self.optimizer == "gauss_newton" and self.objective != "distill":
            raise ValueError(
                f"optimizer must be gradient or evolution for objective {self.objective}, got gauss_newton: "
                "it needs objective distill"
            )
        return self


class AdaMerging:
    """Adaptive merging. Learns on every task that has images and an expert of its name.

    Entropy is guarded: where the answers collapse to a constant, the merge is the best point before (`Guard`).
    """

    name: ClassVar[str] = "adamerging"
    description: ClassVar[str] = "coefficients learned on images without labels (AdaMerging)"
    needs: ClassVar[Needs] = Needs.IMAGES
    immediate: ClassVar[bool] = False
    parameters: ClassVar[type[Parameters]] = AdaMergingParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: AdaMergingParameters
    ) -> Merged:
        progress = Progress(context.tell, "coefficients", parameters.steps)
        directions = Directions(context.layout, len(context.experts), parameters.granularity)
        known = lesson(context, Mixer(base, task_vectors, directions), progress)
        start = np.full(directions.count, parameters.start)
        if parameters.objective == "distill":
            found = _search(known, start, parameters)
            return Merged(coefficients=directions.coefficients(found))
        return _guarded_search(known, start, parameters)


def _optimize(known: Lesson, theta: Theta, parameters: AdaMergingParameters, watch: Watch) -> Theta:
    draw = known.draws(parameters.objective, parameters.images_per_task)
    if parameters.optimizer == "gauss_newton":
        first = slice(parameters.images_per_task)
        return gauss_newton(
            known.exam(parameters.objective, dict.fromkeys(known.images, first)),
            theta,
            steps=parameters.steps,
            watch=watch,
        )
    if parameters.optimizer == "gradient":
        return adam(draw, theta, steps=parameters.steps, learning_rate=parameters.learning_rate, watch=watch)
    rng, spread = known.context.rng, parameters.learning_rate
    return evolution(draw, theta, steps=parameters.steps, spread=spread, rng=rng, watch=watch)


def _search(known: Lesson, theta: Theta, parameters: AdaMergingParameters) -> Theta:
    """Each step told as it is done."""

    def watch(step: int, _: Theta, value: float) -> bool:
        known.progress.step(step, value)
        return False

    return _optimize(known, theta, parameters, watch)


def _guarded_search(known: Lesson, theta: Theta, parameters: AdaMergingParameters) -> Merged:
    guard = known.guard()
    collapsed = known.look(guard, theta)  # the start is a point before, too

    def watch(step: int, here: Theta, value: float) -> bool:
        nonlocal collapsed
        known.progress.step(step, value)
        collapsed = known.look(guard, here)
        return collapsed

    found = _optimize(known, theta, parameters, watch)
    if collapsed and guard.best is not None:
        coefficients = known.mixer.directions.coefficients(guard.best)
        return Merged(coefficients=coefficients, notes=(guard.warning,), guarded=True)
    return Merged(coefficients=known.mixer.directions.coefficients(found))
