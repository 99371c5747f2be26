"""A preference among tasks answered without training: a convex combination of what is known for each task alone.

Lu et al., "IBCL: Zero-shot Model Generation for Task Trade-offs in Continual Learning": models for any preference are
convex combinations of the models of the tasks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldtree_multitask.merging.layout import Coefficients, Flat
from worldtree_multitask.merging.method import Context, Merged, Needs, Parameters


class PreferenceParameters(Parameters):
    """Of `preference`."""

    weights: Annotated[
        dict[str, float] | tuple[float, ...],
        Field(description="one weight a task, in the order of tasks or by name; only ratios count; empty: all equal"),
    ] = ()
    scale: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=1.0,
            description="without the package's own map: each expert's coefficient when all tasks matter alike; "
            "null: 0.3, or the map",
        ),
    ] = None


class Preference:
    """Coefficients einsum("k,klj->lj", p, corners): the package's learned corners, or those of `scaled_corners`."""

    name: ClassVar[str] = "preference"
    description: ClassVar[str] = "how much each task matters, answered at once by a convex combination (IBCL)"
    needs: ClassVar[Needs] = Needs.NOTHING
    immediate: ClassVar[bool] = True
    parameters: ClassVar[type[Parameters]] = PreferenceParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: PreferenceParameters
    ) -> Merged:
        tasks = context.tasks or context.experts
        given = parameters.weights
        by_name = isinstance(given, dict)
        names = list(given) if isinstance(given, dict) else []
        weights = list(given.values()) if isinstance(given, dict) else list(given)
        if not by_name and not weights:
            weights = [1.0] * len(tasks)
        shares = preference_shares(weights, names, tasks)
        corners = context.corners
        if corners is None or parameters.scale is not None:
            scale = 0.3 if parameters.scale is None else parameters.scale
            corners = scaled_corners(scale, tasks, context.experts, len(context.layout.layers))
        return Merged(coefficients=blend_corners(shares, corners))


def preference_shares(
    weights: Sequence[float], names: Sequence[str], tasks: Sequence[str], *, field: str = "weights"
) -> NDArray[np.float32]:
    """A preference as it was asked for, as shares that sum to 1, [tasks]; whoever takes one in calls this.

    `names`: the tasks of the weights, those left out have weight 0; empty: all tasks in their order. `field`: what the
    caller calls the weights, for the message. Raises ValueError that names the field, the value and what is accepted.
    """
    if names:
        if len(names) != len(weights):
            raise ValueError(f"{field} must be one a named task, {len(names)}, got {len(weights)}")
        for index, name in enumerate(names):
            if name not in tasks:
                raise ValueError(f"{field} must be of tasks among {list(tasks)}, got {name!r}")
            if name in names[:index]:
                raise ValueError(f"{field} must name each task once, got {name!r} twice")
    elif len(weights) != len(tasks):
        raise ValueError(f"{field} must be {len(tasks)}, one a task {list(tasks)}, got {len(weights)}")
    for index, weight in enumerate(weights):
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{field}[{index}] must be finite and 0 or more, got {weight}")
    largest = max(weights, default=0.0)
    if largest == 0:
        raise ValueError(f"{field} must not all be 0, got {list(weights)}")
    # Over the largest first: the sum of weights near the limit of floats would overflow.
    known: Mapping[str, float] = dict(zip(names or tasks, (weight / largest for weight in weights), strict=True))
    total = sum(known.values())
    return np.array([known.get(task, 0.0) / total for task in tasks], np.float32)


def scaled_corners(scale: float, tasks: Sequence[str], experts: Sequence[str], layer_count: int) -> NDArray[np.float32]:
    """A map for packages without a learned one, [tasks, layers, experts].

    A task that alone matters has its own expert whole, and as much of the others as makes an equal preference task
    arithmetic at `scale`; at scale 1 / tasks that is none, so that the map is the weighted mean of experts. A task's
    expert has its name; other experts have no part. With one task: its expert, whatever the scale.
    """
    count = len(tasks)
    rest = (count * scale - 1.0) / (count - 1) if count > 1 else 0.0
    own = np.array([[expert == task for expert in experts] for task in tasks])
    known = np.array([expert in tasks for expert in experts])
    corners = np.where(own, 1.0, np.where(known, rest, 0.0)).astype(np.float32)
    return np.repeat(corners[:, None, :], layer_count, axis=1)


def blend_corners(shares: NDArray[np.float32], corners: NDArray[np.float32]) -> Coefficients:
    """einsum("k,klj->lj", shares, corners). Raises ValueError where the map is of another number of tasks."""
    if len(corners) != len(shares):
        raise ValueError(f"the model's map must have {len(shares)} corners, one a task, got {len(corners)}")
    blended: Coefficients = np.einsum("k,klj->lj", shares, corners).astype(np.float32)
    return blended
