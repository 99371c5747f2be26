"""The `model.yaml` of a multi-task model: a base, its experts, and the images to make and measure merges with."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from worldtree_runtime.model_package import Package, Part
from worldtree_runtime.model_repository import StoredPackage

Count = Annotated[int, Field(ge=1)]
Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]


class ImageSpec(Part):
    """Size of the images."""

    height_px: Count
    width_px: Count
    channels: Literal[3] = 3


class MultitaskFiles(Part):
    """`predict`: the graph, weights of its backbone as inputs; `base`: those weights, as safetensors."""

    predict: str
    base: str


class LayerSpec(Part):
    """Tensors that share one coefficient for each expert."""

    name: Identifier
    tensors: Annotated[tuple[str, ...], Field(min_length=1)]


class TaskSpec(Part):
    """What one head answers, and the expert for it. `expert`: its task vector, as safetensors."""

    name: Identifier
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    expert: str
    description: str = ""


class ImageSetSpec(Part):
    """Images by task, as an npz file; with the labels of each where it is for scoring."""

    name: Identifier
    file: str
    description: str = ""


class MultitaskPackage(Package):
    """`layers`: in order of depth. `tasks`: in the order of preference weights. `scoring`: the labelled set that cards
    are measured on. `preference`: a learned map from preferences to coefficients; None: the experts are its corners.
    """

    stays = "each merge's weights are inputs of its run, made in this process; they would be sent with every run"

    kind: Literal["multitask"]
    image: ImageSpec
    files: MultitaskFiles
    layers: Annotated[tuple[LayerSpec, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    image_sets: tuple[ImageSetSpec, ...] = ()
    scoring: Identifier = "scoring"
    preference: str | None = None

    def paths(self) -> dict[str, str]:
        paths = {"files.predict": self.files.predict, "files.base": self.files.base}
        paths |= {f"tasks.{task.name}.expert": task.expert for task in self.tasks}
        paths |= {f"image_sets.{each.name}.file": each.file for each in self.image_sets}
        return paths | ({"preference": self.preference} if self.preference is not None else {})

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    def task(self, name: str) -> TaskSpec | None:
        return next((task for task in self.tasks if task.name == name), None)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        tensors = [tensor for layer in self.layers for tensor in layer.tensors]
        for field, names in (
            ("tasks", list(self.task_names)),
            ("layers", list(self.layer_names)),
            ("tensors of layers", tensors),
            ("image_sets", [each.name for each in self.image_sets]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{field} must be distinct, got {twice[0]!r} twice")
        if self.scoring not in {each.name for each in self.image_sets}:
            raise ValueError(f"scoring must name one of image_sets, got {self.scoring!r}")
        return self


StoredMultitask: TypeAlias = StoredPackage[MultitaskPackage]
