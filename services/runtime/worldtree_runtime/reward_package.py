"""The `model.yaml` of a judge: a trunk that is stepped, a router over categories, a joint; its experts, a file each.

Every `experts/NAME.onnx` is a dimension. What there is to say of it stands in the file (`ExpertCard`, as JSON under the
metadata key `worldtree`), so that one more file is one more dimension.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from worldtree_runtime.model_package import Package, Part
from worldtree_runtime.model_repository import StoredPackage
from worldtree_runtime.multitask_package import Count, Identifier, ImageSpec

EXPERTS = "experts"  # the folder
CARD_KEY = "worldtree"
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Word = Annotated[str, Field(pattern=r"^[^\W_]+$")]


class ExpertCard(Part):
    """What an expert's file says of its dimension.

    `unit`: one standard deviation of the truth, in which weights of requests count. `knots`: pairs (the network's
    answer, the score), both rising: between them scores are read off straight lines, beyond them they stay.
    """

    description: str
    unit: Annotated[float, Field(gt=0.0)]
    knots: Annotated[tuple[tuple[float, float], ...], Field(min_length=2)]
    pairwise_accuracy: Share = 0.0

    @field_validator("knots")
    @classmethod
    def _rising(cls, knots: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for (x0, y0), (x1, y1) in pairwise(knots):
            if not (x0 < x1 and y0 <= y1):
                raise ValueError(f"knots must rise, got {[x0, y0]} before {[x1, y1]}")
        return knots


class RewardFiles(Part):
    """The graphs that all dimensions share."""

    trunk: str
    router: str
    joint: str


class TrunkSpec(Part):
    """Sizes of what passes between the graphs. `tiles`: of the frame before, [tiles, width]; `memory`: of the past;
    `features` and `dense`: what experts are given; `pooled`: of what each keeps of a clip, twice.
    """

    tiles: tuple[Count, Count]
    memory: Count
    features: Count
    dense: Count
    pooled: Count


class GoalSpec(Part):
    """How goals are read. `words`: a word's id is its place here plus 2; 1 is every other word, 0 fills up.

    `unseen_from`: the router's probability of no category at which a goal counts as of none.
    """

    words: Annotated[tuple[Word, ...], Field(min_length=1)]
    max_words: Annotated[int, Field(ge=1, le=256)]
    unseen_from: Share = 0.5


class CategorySpec(Part):
    """A kind of goal. `weights`: how much each dimension counts in the true reward, in units of each."""

    name: Identifier
    description: str = ""
    weights: dict[Identifier, float]
    example: str = ""
    best_of_four: Share = 0.0

    @field_validator("weights")
    @classmethod
    def _some(cls, weights: Mapping[str, float]) -> Mapping[str, float]:
        if not any(weights.values()):
            raise ValueError("weights must not all be 0")
        return weights


class RewardPackage(Package):
    """`dimensions`: those that the joint reads, in its order; experts beside them count only where a request weighs
    them. `tie_below`: how much more likely than even a chance must be for one clip to be called better. `backend` runs
    the trunk, which takes most of the time.
    """

    stays = None

    kind: Literal["reward"]
    image: ImageSpec
    actions: Annotated[tuple[str, ...], Field(min_length=1)]
    goal: GoalSpec
    trunk: TrunkSpec
    files: RewardFiles
    dimensions: Annotated[tuple[Identifier, ...], Field(min_length=1)]
    categories: Annotated[tuple[CategorySpec, ...], Field(min_length=1)]
    trained_steps: Count
    calibration_error: Share = 0.0
    tie_below: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.05

    def paths(self) -> dict[str, str]:
        paths = {f"files.{part}": getattr(self.files, part) for part in RewardFiles.model_fields}
        return paths | {f"dimensions.{name}": f"{EXPERTS}/{name}.onnx" for name in self.dimensions}

    def category(self, name: str) -> CategorySpec | None:
        return next((category for category in self.categories if category.name == name), None)

    @property
    def category_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, names in (
            ("dimensions", self.dimensions),
            ("categories", self.category_names),
            ("actions", self.actions),
            ("goal.words", self.goal.words),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{field} must be distinct, got {twice[0]!r} twice")
        for category in self.categories:
            if unknown := sorted(set(category.weights) - set(self.dimensions)):
                raise ValueError(f"weights of category {category.name} must name dimensions, got {unknown[0]!r}")
        return self


StoredReward: TypeAlias = StoredPackage[RewardPackage]
