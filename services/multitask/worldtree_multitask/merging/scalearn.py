"""Experts scaled for one task, learned on labelled images (Frohmann et al., "ScaLearn: Simple and Highly
Parameter-Efficient Task Transfer by Learning to Scale").

The paper scales what each source expert adds to the output of a layer; its uniform variant (ScaLearnUniform) has one
scale an expert and layer. Here an expert is a difference of weights, so scaling what it adds to a layer's output is
scaling its task vector in that layer: the scales are coefficients. For a layer that is linear in its weights the two
are the same.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldtree_multitask.merging.directions import Directions, Mixer, Theta
from worldtree_multitask.merging.exam import Exam
from worldtree_multitask.merging.layout import Flat
from worldtree_multitask.merging.losses import Divergence
from worldtree_multitask.merging.method import Context, Images, Labels, Merged, Needs, Parameters, check_experts
from worldtree_multitask.merging.optimizers import gauss_newton
from worldtree_multitask.merging.progress import Progress

_HELD_OUT = 3  # every third image of a class, of those in random order


class ScaLearnParameters(Parameters):
    """Of `scalearn`."""

    target: Annotated[str, Field(min_length=1, description="the task to learn; it needs labelled images, no expert")]
    experts: Annotated[tuple[str, ...], Field(description="experts to scale, the others stay out; empty: all")] = ()
    start: Annotated[
        float | None, Field(ge=-2.0, le=2.0, description="every scale at first; null: 1 / experts, their average")
    ] = None
    steps: Annotated[int, Field(ge=1, le=200, description="at most so many")] = 15
    patience: Annotated[
        int, Field(ge=1, le=200, description="steps without gain on the held-out third before it stops")
    ] = 3


class ScaLearn:
    """Minimises the cross-entropy on two thirds of the target's images; the merge is the step that was best on the
    third that is held out, so it is never worse there than its start, nor than the base: where no expert helps,
    that is the merge.
    """

    name: ClassVar[str] = "scalearn"
    description: ClassVar[str] = "scales of all experts for one task, learned on labelled images (ScaLearn, uniform)"
    needs: ClassVar[Needs] = Needs.LABELS
    immediate: ClassVar[bool] = False
    parameters: ClassVar[type[Parameters]] = ScaLearnParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: ScaLearnParameters
    ) -> Merged:
        columns = check_experts(parameters.experts, context.experts)
        images, labels = _labelled(context, parameters.target)
        progress = Progress(context.tell, "scales", parameters.steps)
        directions = Directions(context.layout, len(columns), "layer")
        mixer = Mixer(base, task_vectors[columns], directions)
        share = 1.0 / len(columns) if parameters.start is None else parameters.start
        theta = np.full(directions.count, share)
        class_count = context.network.logits(mixer.weights(theta), images[:1], parameters.target).shape[1]
        if labels.min() < 0 or labels.max() >= class_count:
            raise ValueError(
                f"labels of {parameters.target} must be 0 to {class_count - 1}, got {labels.min()} to {labels.max()}"
            )
        held = _held_out(labels, context.rng)
        learnt, tested = (
            Exam(
                mixer,
                context.network,
                {parameters.target: images[rows]},
                {parameters.target: Divergence(np.eye(class_count)[labels[rows]])},
                progress,
            )
            for rows in (~held, held)
        )
        best, first, last = _learn(learnt, tested, theta, parameters)
        coefficients = np.zeros((len(context.layout.layers), len(context.experts)), np.float32)
        coefficients[:, columns] = directions.coefficients(best)
        note = (
            f"cross-entropy on the {int(held.sum())} held-out images of {parameters.target}: {first:.3f} at the start, "
            f"{last:.3f} of this merge"
        )
        return Merged(coefficients=coefficients, notes=(note,))


def _learn(learnt: Exam, tested: Exam, theta: Theta, parameters: ScaLearnParameters) -> tuple[Theta, float, float]:
    """The best theta on what is held out, its loss at the start and at the best."""
    first = tested.value(theta)
    best, best_value, best_step = theta, first, 0
    nothing = np.zeros_like(theta)
    if (without := tested.value(nothing)) < first:
        best, best_value = nothing, without

    def watch(step: int, here: Theta, value: float) -> bool:
        nonlocal best, best_value, best_step
        learnt.progress.step(step, value)
        held_value = tested.value(here)
        if held_value < best_value:
            best, best_value, best_step = here, held_value, step
        return step - best_step >= parameters.patience

    gauss_newton(learnt, theta, steps=parameters.steps, watch=watch)
    return best, first, best_value


def _labelled(context: Context, target: str) -> tuple[Images, Labels]:
    known: Mapping[str, Labels] = context.labels
    if target not in context.images or target not in known:
        both = sorted(set(context.images) & set(known))
        raise ValueError(f"target must be a task with labelled images, one of {both}, got {target!r}")
    images, labels = context.images[target], known[target]
    if len(images) != len(labels):
        raise ValueError(f"labels of {target} must be {len(images)}, one an image, got {len(labels)}")
    if len(images) < _HELD_OUT:
        raise ValueError(f"images of {target} must be {_HELD_OUT} or more, a third is held out, got {len(images)}")
    return images, labels


def _held_out(labels: Labels, rng: np.random.Generator) -> NDArray[np.bool_]:
    """[images]: every third of those in random order, sorted by class so that each class gives its share."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    held = np.zeros(len(labels), np.bool_)
    held[order[_HELD_OUT - 1 :: _HELD_OUT]] = True
    return held
