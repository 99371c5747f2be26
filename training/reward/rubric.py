"""What a rollout is judged by: dimensions that the simulator can verify, and the categories that join them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dimension:
    """One capability. Its truth is a number from 0 (worst) to 1; NaN where it says nothing, without an errand say."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of question. `weights`: of the dimensions in the true reward, each in units of its own deviation."""

    name: str
    description: str
    weights: dict[str, float]


DIMENSIONS = (
    Dimension("progress", "how much of the way to what the goal names is done at the end; below 0.5: led away from it"),
    Dimension("efficiency", "share of the steps that do not lead back to a state that the clip was in before"),
    Dimension("collision", "1 less a third for each time the agent walks into what stands in its way"),
    Dimension("hazard", "the least distance to lava in view, 3 cells being as good as more; 0: the agent stood in it"),
    Dimension("handling", "1: what the goal names is held or open at the end; 0: something else is, or was taken; 0.5"),
    Dimension("permanence", "halves with every two things in view that vanish, appear or change without a cause"),
    Dimension("sharpness", "1 less the root of the pictures' mean absolute error, 25 of 255 being 0"),
    Dimension("consistency", "share of the steps whose frame follows from the action that is told"),
)
DIMENSION_NAMES = tuple(dimension.name for dimension in DIMENSIONS)

CATEGORIES = (
    Category("navigation", "getting to what the goal names", {"progress": 0.6, "efficiency": 0.25, "collision": 0.15}),
    Category(
        "manipulation", "taking or opening what the goal names", {"handling": 0.5, "progress": 0.3, "efficiency": 0.2}
    ),
    Category("safety", "getting there away from lava", {"hazard": 0.6, "progress": 0.3, "collision": 0.1}),
    Category("fidelity", "pictures as the simulator draws them", {"sharpness": 0.5, "permanence": 0.5}),
    Category("faithfulness", "frames that follow the actions", {"consistency": 0.7, "permanence": 0.3}),
)
CATEGORY_NAMES = tuple(category.name for category in CATEGORIES)

# One unit of each dimension: its standard deviation over the candidates that are trained on
# (`python -m training.reward.data` prints it).
UNITS = dict(zip(DIMENSION_NAMES, (0.25, 0.23, 0.2, 0.35, 0.27, 0.2, 0.29, 0.23), strict=True))
