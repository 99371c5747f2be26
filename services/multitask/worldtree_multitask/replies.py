"""The words of domain.py to messages: pure functions."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree_runtime.messages import from_seconds, from_stored

from worldtree_multitask.domain import Answer, Blend, Card, Point, TaskScore
from worldtree_multitask.merging import Method, Needs, Step
from worldtree_multitask.served import Served

_NEEDS = {
    Needs.NOTHING: pb.Method.NEEDS_NOTHING,
    Needs.IMAGES: pb.Method.NEEDS_IMAGES,
    Needs.LABELS: pb.Method.NEEDS_LABELS,
}


def from_model(served: Served, methods: Sequence[Method], models: Sequence[str]) -> pb.ListTasksResponse:
    package, contents = served.package, served.contents
    scores = served.reference_scores
    return pb.ListTasksResponse(
        model=from_stored(served.stored),
        description=package.description,
        height_px=package.image.height_px,
        width_px=package.image.width_px,
        tasks=[
            pb.Task(
                name=task.name,
                description=task.description,
                classes=task.classes,
                expert_score=scores[task.name][0],
                base_score=scores[task.name][1],
            )
            for task in package.tasks
        ],
        layers=package.layer_names,
        parameter_count=contents.layout.size,
        methods=[
            pb.Method(
                name=each.name,
                description=each.description,
                immediate=each.immediate,
                needs=_NEEDS[each.needs],
                parameters_schema=json.dumps(each.parameters.model_json_schema()),
            )
            for each in methods
        ],
        image_sets=[
            pb.ImageSet(
                name=spec.name,
                description=spec.description,
                image_count=contents.image_sets[spec.name].image_count,
                labeled=bool(contents.image_sets[spec.name].labels),
            )
            for spec in package.image_sets
        ],
        models=models,
    )


def from_answer(answer: Answer, served: Served, blend: Blend, tasks: Sequence[str]) -> pb.PredictResponse:
    return pb.PredictResponse(
        model=from_stored(served.stored),
        merge_digest=blend.digest,
        predictions=[
            pb.Prediction(
                task=task,
                class_ids=answer.probabilities[task].argmax(axis=1).tolist(),
                probabilities=from_array(answer.probabilities[task]),
            )
            for task in tasks
        ],
        timing=pb.PredictTiming(
            queue_duration=from_seconds(answer.queue_s),
            merge_duration=from_seconds(answer.merge_s),
            run_duration=from_seconds(answer.run_s),
            batch_size=answer.batch_size,
        ),
    )


def from_step(step: Step, elapsed_s: float) -> pb.CreateMergeResponse:
    progress = pb.MergeProgress(
        phase=step.phase,
        done=step.done,
        total=step.total,
        objective=step.objective,
        elapsed_duration=from_seconds(elapsed_s),
    )
    return pb.CreateMergeResponse(progress=progress)


def from_card(card: Card, blend: Blend | None, layers: Sequence[str], experts: Sequence[str]) -> pb.Merge:
    """`blend`: None where its coefficients are not to be told."""
    message = pb.Merge(
        name=card.name,
        digest=card.digest,
        model=common.ModelRef(name=card.model, version=card.version, digest=card.model_digest),
        recipe=pb.Recipe(method=card.recipe.method),
        make_duration=from_seconds(card.make_s),
        scores=from_scores(card.scores),
        mean_score=card.mean_score,
        kept_share=card.kept_share,
        worse_than_base=card.worse_than_base,
        notes=card.notes,
        image_count=card.image_count,
        evaluation_count=card.evaluation_count,
        front_point_count=len(card.points),
        front=card.front,
        guarded=card.guarded,
    )
    message.recipe.parameters.update(dict(card.recipe.parameters))
    message.create_time.FromDatetime(datetime.fromtimestamp(card.create_s, UTC))
    if blend is not None and blend.coefficients is not None:
        values = from_array(blend.coefficients)
        message.coefficients.CopyFrom(pb.Coefficients(layers=layers, experts=experts, values=values))
    return message


def from_front(card: Card, points: Sequence[tuple[Point, Card]]) -> pb.ParetoFrontResponse:
    """`points`: those that are still there, each with its own card."""
    return pb.ParetoFrontResponse(
        name=card.name,
        points=[
            pb.FrontPoint(
                merge=point.merge,
                preference=point.preference,
                scores=from_scores(own.scores),
                objectives=point.objectives,
                sparsity=point.sparsity,
            )
            for point, own in points
        ],
        hypervolume=card.hypervolume,
        evaluation_count=card.tried_count,
    )


def from_scores(scores: Sequence[TaskScore]) -> list[pb.TaskScore]:
    return [
        pb.TaskScore(task=each.task, score=each.score, expert_score=each.expert_score, base_score=each.base_score)
        for each in scores
    ]


def from_array(array: NDArray[np.float32]) -> common.Tensor:
    data = np.ascontiguousarray(array, "<f4")
    return common.Tensor(dtype=common.Tensor.D_TYPE_FLOAT32, shape=data.shape, data=data.tobytes())
