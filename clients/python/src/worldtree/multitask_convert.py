"""Protobuf of the multi-task service to the SDK's values and back: pure functions, no channel."""

import json
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from worldtree.common.v1 import common_pb2
from worldtree.convert import DTYPES, duration_from_pb, frames_to_pb, integer, time_from_pb
from worldtree.errors import InvalidRequest
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask_types import (
    Answer,
    Floats,
    FrontPoint,
    ImageSet,
    Merge,
    MergeLike,
    MergeProgress,
    MethodInfo,
    Needs,
    ParetoFront,
    PredictTiming,
    Recipe,
    TaskAnswer,
    TaskInfo,
    TaskModel,
    TaskScore,
)

# By task, in its model's order: the names of its classes.
Classes = Mapping[str, tuple[str, ...]]

_NEEDS: Mapping[int, Needs] = {
    pb.Method.NEEDS_NOTHING: "nothing",
    pb.Method.NEEDS_IMAGES: "images",
    pb.Method.NEEDS_LABELS: "labels",
}
_NUMPY: Mapping[int, Any] = {wire: dtype for dtype, wire in DTYPES.items()}


def images_to_pb(images: Any, *, field: str) -> common_pb2.Frames:
    """Images of one size: pixels [height, width, 3] or [images, height, width, 3], PNG files as bytes, PIL images, or a
    list of any one of these; chunks of frames in a list follow one another.

    The server judges sizes and values; only what the wire can't carry is refused here.
    """
    if isinstance(images, Sequence) and not isinstance(images, (bytes, str)):
        if not images:
            raise InvalidRequest(f"{field} must hold at least one image, got none", field=field)
        if not all(isinstance(image, bytes) for image in images):
            return frames_to_pb(_stack([_pixels(image, field) for image in images], field), field=field)
    elif not isinstance(images, bytes):
        images = _pixels(images, field)
    return frames_to_pb(images, field=field)


def _pixels(image: Any, field: str) -> np.ndarray[Any, Any]:
    # Known by what it can do: Pillow is an extra, and who has such an image has it.
    if hasattr(image, "convert") and hasattr(image, "getbands"):
        image = image.convert("RGB")
    if isinstance(image, (bytes, str)):
        raise InvalidRequest(f"{field} must be all PNG files or all pixels, got {type(image).__name__}", field=field)
    return np.asarray(image)


def _stack(images: list[np.ndarray[Any, Any]], field: str) -> np.ndarray[Any, Any]:
    try:
        return np.concatenate([image if image.ndim == 4 else image[np.newaxis] for image in images])
    except ValueError as error:
        raise InvalidRequest(f"{field} must be of one size: {error}", field=field) from None


def recipe_to_pb(recipe: Recipe, *, field: str) -> pb.Recipe:
    parameters = Struct()
    for name, value in recipe.parameters.items():
        try:
            # By way of JSON: a Struct of its own would take neither NumPy's numbers nor tuples.
            parameters.update({name: json.loads(json.dumps(value, default=_plain, allow_nan=False))})
        except (TypeError, ValueError) as error:
            raise InvalidRequest(
                f"{field}.parameters.{name} must be a number, a text, a list or a mapping, got {value!r} ({error})",
                field=f"{field}.parameters.{name}",
            ) from None
    return pb.Recipe(method=recipe.method, parameters=parameters)


def recipe_from_pb(message: pb.Recipe) -> Recipe:
    return Recipe(message.method, **{name: _whole(value) for name, value in MessageToDict(message.parameters).items()})


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _whole(value: Any) -> Any:
    """A Struct knows floats only: those that are whole read as the integers that they were."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_whole(each) for each in value] if isinstance(value, list) else value


def set_merge(request: pb.PredictRequest, merge: MergeLike | None) -> None:
    """Says which merge answers. Raises InvalidRequest for what names none."""
    match merge:
        case None:
            return
        case str():
            if not merge:
                raise InvalidRequest("merge must be a merge's name, got an empty text", field="merge")
            request.name = merge
        case Merge():
            request.name = merge.name
        case FrontPoint():
            request.name = merge.merge
        case Recipe():
            request.recipe.CopyFrom(recipe_to_pb(merge, field="recipe"))
        case Mapping():
            weights = [_weight(value, f"preference.{task}") for task, value in merge.items()]
            request.preference.CopyFrom(pb.Preference(tasks=list(merge), weights=weights))
        case _:
            row = np.asarray(merge)
            if row.ndim != 1:
                raise InvalidRequest(
                    "merge must be a merge, its name, a Recipe, weights by task, or one weight a task, "
                    f"got {type(merge).__name__}",
                    field="merge",
                )
            weights = [_weight(value, f"preference[{index}]") for index, value in enumerate(row.tolist())]
            request.preference.CopyFrom(pb.Preference(weights=weights))
    if request.WhichOneof("merge") == "preference" and not request.preference.weights:
        raise InvalidRequest("merge must hold at least one weight, got none", field="merge")


def _weight(value: Any, field: str) -> float:
    """Which weights make sense is the server's to say."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{field} must be a number, got {value!r}", field=field) from None


def task_images_to_pb(images: Any, labels: Any) -> list[pb.TaskImages]:
    """Images to learn from, by task or for every task, with the classes of those that have them."""
    if images is None:
        if labels is not None:
            raise InvalidRequest("labels need images that they are of", field="labels")
        return []
    if not isinstance(images, Mapping):
        if labels is not None:
            raise InvalidRequest(
                "labels are of a task: give images={task: images} and labels={task: labels}", field="labels"
            )
        return [pb.TaskImages(images=images_to_pb(images, field="images"))]
    if labels is not None and not isinstance(labels, Mapping):
        if len(images) != 1:
            raise InvalidRequest(
                f"labels must be {{task: labels}} where images are of {len(images)} tasks", field="labels"
            )
        labels = dict.fromkeys(images, labels)
    known: Mapping[str, Any] = labels or {}
    strangers = sorted(set(known) - set(images))
    if strangers:
        raise InvalidRequest(f"labels of {', '.join(strangers)} have no images", field="labels")
    return [
        pb.TaskImages(
            task=task,
            images=images_to_pb(shown, field=f"images.{task}"),
            labels=[integer(label, field=f"labels.{task}", bits=32) for label in known.get(task, ())],
        )
        for task, shown in images.items()
    ]


def array_from_pb(message: common_pb2.Tensor) -> np.ndarray[Any, Any]:
    """The caller's own copy."""
    array: np.ndarray[Any, Any] = np.frombuffer(message.data, _NUMPY[message.dtype]).reshape(tuple(message.shape))
    return array.copy()


def task_model_from_pb(message: pb.ListTasksResponse) -> TaskModel:
    return TaskModel(
        name=message.model.name,
        version=message.model.version,
        digest=message.model.digest,
        description=message.description,
        height_px=message.height_px,
        width_px=message.width_px,
        tasks=tuple(
            TaskInfo(each.name, each.description, tuple(each.classes), each.expert_score, each.base_score)
            for each in message.tasks
        ),
        layers=tuple(message.layers),
        parameter_count=message.parameter_count,
        methods=tuple(_method_from_pb(each) for each in message.methods),
        image_sets=tuple(
            ImageSet(each.name, each.description, each.image_count, each.labeled) for each in message.image_sets
        ),
        models=tuple(message.models),
    )


def _method_from_pb(message: pb.Method) -> MethodInfo:
    return MethodInfo(
        name=message.name,
        description=message.description,
        immediate=message.immediate,
        needs=_NEEDS.get(message.needs, "unknown"),
        parameters=json.loads(message.parameters_schema) if message.parameters_schema else {},
    )


def classes_from_pb(message: pb.ListTasksResponse) -> Classes:
    return {task.name: tuple(task.classes) for task in message.tasks}


def answer_from_pb(message: pb.PredictResponse, *, classes: Classes, cached: bool) -> Answer:
    return Answer(
        answers={
            each.task: TaskAnswer(
                task=each.task,
                classes=classes.get(each.task, ()),
                class_ids=np.array(each.class_ids, np.int32),
                probabilities=array_from_pb(each.probabilities),
            )
            for each in message.predictions
        },
        model=message.model.name,
        version=message.model.version,
        digest=message.model.digest,
        merge_digest=message.merge_digest,
        timing=PredictTiming(
            queue_s=duration_from_pb(message.timing.queue_duration),
            merge_s=duration_from_pb(message.timing.merge_duration),
            run_s=duration_from_pb(message.timing.run_duration),
            batch_size=message.timing.batch_size,
        ),
        cached=cached,
    )


def progress_from_pb(message: pb.MergeProgress) -> MergeProgress:
    return MergeProgress(
        phase=message.phase,
        done=message.done,
        total=message.total,
        objective=None if isnan(message.objective) else message.objective,
        elapsed_s=duration_from_pb(message.elapsed_duration),
    )


def merge_from_pb(message: pb.Merge) -> Merge:
    coefficients: Floats | None = None
    if message.HasField("coefficients"):
        coefficients = array_from_pb(message.coefficients.values)
    return Merge(
        name=message.name,
        digest=message.digest,
        model=message.model.name,
        version=message.model.version,
        model_digest=message.model.digest,
        recipe=recipe_from_pb(message.recipe),
        create_time=time_from_pb(message.create_time),
        make_s=duration_from_pb(message.make_duration),
        scores=_scores_from_pb(message.scores),
        mean_score=message.mean_score,
        kept_share=message.kept_share,
        worse_than_base=message.worse_than_base,
        guarded=message.guarded,
        notes=tuple(message.notes),
        layers=tuple(message.coefficients.layers),
        experts=tuple(message.coefficients.experts),
        coefficients=coefficients,
        image_count=message.image_count,
        evaluation_count=message.evaluation_count,
        front_point_count=message.front_point_count,
        front=message.front or None,
    )


def front_from_pb(message: pb.ParetoFrontResponse) -> ParetoFront:
    return ParetoFront(
        name=message.name,
        points=tuple(
            FrontPoint(
                merge=point.merge,
                preference=tuple(point.preference),
                scores=_scores_from_pb(point.scores),
                objectives=tuple(point.objectives),
                sparsity=point.sparsity,
            )
            for point in message.points
        ),
        hypervolume=message.hypervolume,
        evaluation_count=message.evaluation_count,
    )


def _scores_from_pb(scores: Sequence[pb.TaskScore]) -> tuple[TaskScore, ...]:
    return tuple(TaskScore(each.task, each.score, each.expert_score, each.base_score) for each in scores)
