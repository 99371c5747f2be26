"""The calls of the multi-task service, knowing neither a channel nor sync from async."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from worldtree import multitask_convert as convert
from worldtree._calls import Call, Metadata, StreamCall, was_cached
from worldtree.common.v1 import common_pb2
from worldtree.convert import model_ref
from worldtree.errors import DataLoss, InvalidRequest
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask_types import (
    Answer,
    FrontPoint,
    Merge,
    MergeLike,
    OnMergeProgress,
    ParetoFront,
    Recipe,
    TaskModel,
)

MERGES_PER_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Predicted:
    """An answer whose class ids have no names yet."""

    message: pb.PredictResponse
    cached: bool = False

    @property
    def model(self) -> common_pb2.ModelRef:
        return self.message.model

    def named(self, classes: convert.Classes) -> Answer:
        return convert.answer_from_pb(self.message, classes=classes, cached=self.cached)


@dataclass(frozen=True, slots=True)
class MergePage:
    """Merges, and the token of the next page (empty: none)."""

    merges: list[Merge]
    next_page_token: str


def list_tasks(model: str | TaskModel | None) -> Call[TaskModel]:
    request = pb.ListTasksRequest(model=model_ref(model))
    return Call("ListTasks", request, convert.task_model_from_pb, retry=True, service="multitask")


def task_classes(model: common_pb2.ModelRef) -> Call[convert.Classes]:
    """The names of the classes of exactly this model's tasks."""
    request = pb.ListTasksRequest(model=model)
    return Call("ListTasks", request, convert.classes_from_pb, retry=True, service="multitask")


def predict(
    images: Any, *, tasks: Sequence[str] | str | None, merge: MergeLike | None, model: str | TaskModel | None
) -> Call[Predicted]:
    request = pb.PredictRequest(
        model=model_ref(model),
        images=convert.images_to_pb(images, field="images"),
        tasks=[tasks] if isinstance(tasks, str) else list(tasks or ()),
    )
    convert.set_merge(request, merge)
    return Call("Predict", request, Predicted, retry=True, heed=_cached, service="multitask")


def create_merge(
    method: str | Recipe,
    parameters: Mapping[str, Any],
    *,
    name: str | None,
    images: Any,
    labels: Any,
    image_set: str | None,
    progress: OnMergeProgress | None,
    model: str | TaskModel | None,
) -> StreamCall[Merge]:
    recipe = method if isinstance(method, Recipe) else Recipe(method)
    recipe = Recipe(recipe.method, **{**recipe.parameters, **parameters})
    request = pb.CreateMergeRequest(
        model=model_ref(model),
        name=name or "",
        recipe=convert.recipe_to_pb(recipe, field="recipe"),
        image_set=image_set or "",
        images=convert.task_images_to_pb(images, labels),
    )
    # A merge is what its content is: the repeat finds the first one, being made or made.
    return StreamCall("CreateMerge", request, lambda: MergeFold(progress), service="multitask")


def get_merge(merge: str | Merge | FrontPoint) -> Call[Merge]:
    request = pb.GetMergeRequest(name=name_of(merge))
    return Call(
        "GetMerge", request, lambda answer: convert.merge_from_pb(answer.merge), retry=True, service="multitask"
    )


def list_merges(page_token: str) -> Call[MergePage]:
    return Call(
        "ListMerges",
        pb.ListMergesRequest(page_size=MERGES_PER_PAGE, page_token=page_token),
        lambda answer: MergePage([convert.merge_from_pb(each) for each in answer.merges], answer.next_page_token),
        retry=True,
        service="multitask",
    )


def delete_merge(merge: str | Merge) -> Call[None]:
    # Not retried: after a lost answer the repeat would not find it although all went well.
    request = pb.DeleteMergeRequest(name=name_of(merge))
    return Call("DeleteMerge", request, lambda _: None, retry=False, service="multitask")


def pareto_front(front: str | Merge) -> Call[ParetoFront]:
    request = pb.ParetoFrontRequest(name=name_of(front))
    return Call("ParetoFront", request, convert.front_from_pb, retry=True, service="multitask")


def name_of(merge: str | Merge | FrontPoint) -> str:
    match merge:
        case Merge():
            name = merge.name
        case FrontPoint():
            name = merge.merge
        case _:
            name = merge
    if not name:
        raise InvalidRequest("name must be a merge's name, got an empty text", field="name")
    return name


class MergeFold:
    """Tells the progress of a merge in the making, and keeps the merge."""

    def __init__(self, progress: OnMergeProgress | None) -> None:
        self._progress = progress
        self._merge: Merge | None = None

    def add(self, message: pb.CreateMergeResponse) -> None:
        match message.WhichOneof("event"):
            case "merge":
                self._merge = convert.merge_from_pb(message.merge)
            case "progress" if self._progress is not None:
                self._progress(convert.progress_from_pb(message.progress))

    def result(self) -> Merge:
        if self._merge is None:
            raise DataLoss("the stream ended without a merge", reason="STREAM_CUT_SHORT")
        return self._merge


def _cached(predicted: Predicted, metadata: Metadata) -> Predicted:
    return replace(predicted, cached=was_cached(metadata))
