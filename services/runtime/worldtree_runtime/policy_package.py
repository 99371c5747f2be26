"""The `model.yaml` of a policy: what is known is looked at once, then what will be seen and what is done about it is
denoised together, in rounds.
"""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from worldtree_runtime.model_package import Package, Part
from worldtree_runtime.model_repository import StoredPackage
from worldtree_runtime.multitask_package import Count, Identifier, ImageSpec
from worldtree_runtime.reward_package import Word

Tile = Annotated[int, Field(ge=0, le=252)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class WordSpec(Part):
    """How goals are read. `words`: a word's id is its place here plus 1; 0 fills up."""

    words: Annotated[tuple[Word, ...], Field(min_length=1)]
    max_words: Annotated[int, Field(ge=1, le=256)]
    example: str = ""


class GroundSpec(Part):
    """What tiles mean to one who walks over them. `side`: cells of a view, whose agent stands in the middle of the last
    row. `unseen`: the tile of a hidden cell; `floor`: of what is under the agent where it begins. `enterable`: tiles
    that can be walked onto. `left`, `right`, `forward`: the actions that move.
    """

    side: Annotated[int, Field(ge=1, le=64)]
    unseen: Tile
    floor: Tile
    enterable: Annotated[frozenset[Tile], Field(min_length=1)]
    left: str
    right: str
    forward: str


class PolicyFiles(Part):
    """`context`: the graph of what is known; `denoise`: that of a round, which is given what the first found. `tiles`:
    a .npy of every picture a cell can show, uint8 [tiles, height_px, width_px, 3].
    """

    context: str
    denoise: str
    tiles: str


class PlannerSpec(Part):
    """A way to ask the graphs. `order`: frames and actions together, or the frames first and the actions read off them.
    `rounds`: runs in which all that is masked is unmasked. `temperature`: of the actions that are drawn; 0: the
    likeliest is taken, and a robot that comes back to where it was does again what led it there.
    """

    name: Identifier
    description: str = ""
    order: Literal["together", "frames-first"] = "together"
    rounds: Annotated[int, Field(ge=1, le=64)]
    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0


class PolicyPackage(Package):
    """`remembered`: cells a side of the map around the walker that the graphs are told; 0: none. `patch`: cells a side
    of what is unmasked at once in a frame. `imagines`: whether frames are denoised too. `max_error`: how far a cell of
    an image may be from every tile, mean absolute difference of 0 to 255, before the image is none of this world.
    """

    stays = "a chunk takes many short rounds of two graphs, each waiting for the one before"

    kind: Literal["navigator"]
    image: ImageSpec
    actions: Annotated[tuple[str, ...], Field(min_length=1)]
    goal: WordSpec
    ground: GroundSpec
    tile_count: Annotated[int, Field(ge=1, le=253)]
    remembered: Annotated[int, Field(ge=0, le=101)]
    horizon: Annotated[int, Field(ge=1, le=64)]
    imagines: bool
    patch: Count = 1
    max_error: Annotated[float, Field(gt=0.0, le=255.0)] = 24.0
    planners: Annotated[tuple[PlannerSpec, ...], Field(min_length=1)]
    files: PolicyFiles

    def paths(self) -> dict[str, str]:
        return {f"files.{part}": getattr(self.files, part) for part in PolicyFiles.model_fields}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ground = self.ground
        for field in ("left", "right", "forward"):
            if getattr(ground, field) not in self.actions:
                raise ValueError(f"ground.{field} must be one of the actions, got {getattr(ground, field)!r}")
        beyond = [tile for tile in (ground.unseen, ground.floor, *ground.enterable) if tile >= self.tile_count]
        if beyond:
            raise ValueError(f"tiles of ground must be below tile_count, {self.tile_count}, got {beyond[0]}")
        for extent in (self.image.height_px, self.image.width_px):
            if extent % ground.side:
                raise ValueError(f"image must be cut into {ground.side} cells a side, got {extent} pixels")
        if self.remembered and (self.remembered % 2 == 0 or self.remembered < 2 * ground.side - 1):
            raise ValueError(f"remembered must be 0, or odd and {2 * ground.side - 1} or more, got {self.remembered}")
        for field, names in (
            ("actions", self.actions),
            ("goal.words", self.goal.words),
            ("planners", tuple(planner.name for planner in self.planners)),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{field} must be distinct, got {twice[0]!r} twice")
        if not self.imagines and any(planner.order == "frames-first" for planner in self.planners):
            raise ValueError("planners of a policy that does not imagine must have order 'together'")
        return self


StoredPolicy: TypeAlias = StoredPackage[PolicyPackage]
