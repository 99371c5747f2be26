"""Protobuf of the reward service to the SDK's values and back: pure functions, no channel."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worldtree.actions import Action
from worldtree.convert import duration_from_pb, frames_to_pb, integer
from worldtree.errors import InvalidRequest
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree.reward_types import (
    CategoryInfo,
    Comparison,
    DimensionInfo,
    DimensionScore,
    Judgement,
    Ranked,
    Ranking,
    Rubrics,
    ScoreTiming,
    Verdict,
)
from worldtree.types import Clip, Rollout

_VERDICTS: Mapping[int, Verdict] = {
    pb.CompareResponse.VERDICT_FIRST: "first",
    pb.CompareResponse.VERDICT_SECOND: "second",
    pb.CompareResponse.VERDICT_TIE: "tie",
}


def question_to_pb(goal: str, *, category: str | None, weights: Mapping[str, float] | None) -> pb.Question:
    if not isinstance(goal, str):
        raise InvalidRequest(f"goal must be text, got {type(goal).__name__}", field="goal")
    try:
        counted = {name: float(weight) for name, weight in (weights or {}).items()}
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"weights must be numbers by dimension: {error}", field="weights") from None
    return pb.Question(goal=goal, category=category or "", weights=counted)


def clip_to_pb(clip: Any, *, before: Any, field: str) -> pb.Clip:
    """A `Clip`, a `Rollout`, or (frames, actions) with one frame more than actions.

    A rollout does not hold the frame that it began from. `before` is that frame; without it the first step of the
    rollout is not looked at.
    """
    match clip:
        case Clip():
            return part_to_pb(np.concatenate([clip.start_frames[-1:], clip.frames]), clip.actions, field=field)
        case Rollout():
            if clip.frames is None:
                raise InvalidRequest(f"{field} must hold frames: ask for a rollout with detail 'frames'", field=field)
            if before is None:
                return part_to_pb(clip.frames, clip.actions[1:], field=field)
            first = np.asarray(before)
            first = first if first.ndim == 4 else first[np.newaxis]
            return part_to_pb(np.concatenate([first[-1:], clip.frames]), clip.actions, field=field)
        case (frames, actions):
            return part_to_pb(frames, actions, field=field)
    raise InvalidRequest(
        f"{field} must be a Clip, a Rollout or (frames, actions), got {type(clip).__name__}", field=field
    )


def part_to_pb(frames: Any, actions: Sequence[Any], *, field: str) -> pb.Clip:
    """Frames and the actions that led to them, all by name or all by id; names may be one text, apart by spaces."""
    values = actions.split() if isinstance(actions, str) else list(actions)
    values = [each.value if isinstance(each, Action) else each for each in values]
    message = pb.Clip(frames=frames_to_pb(frames, field=f"{field}.frames"))
    if values and all(isinstance(each, str) for each in values):
        message.action_names.extend(values)
        return message
    for place, each in enumerate(values):
        where = f"{field}.actions[{place}]"
        if isinstance(each, str):
            raise InvalidRequest(f"{where} must be an id as the others are, got {each!r}", field=where)
        message.actions.append(integer(each, field=where, bits=32))
    return message


def rubrics_from_pb(message: pb.ListRubricsResponse) -> Rubrics:
    return Rubrics(
        name=message.model.name,
        version=message.model.version,
        digest=message.model.digest,
        description=message.description,
        height_px=message.height_px,
        width_px=message.width_px,
        actions=tuple(message.actions),
        categories=tuple(
            CategoryInfo(each.name, each.description, dict(each.weights), each.best_of_four or None, each.example)
            for each in message.categories
        ),
        dimensions=tuple(
            DimensionInfo(each.name, each.description, each.pairwise_accuracy or None) for each in message.dimensions
        ),
        calibration_error=message.calibration_error,
        trained_steps=message.trained_steps,
        max_steps=message.max_steps,
        max_words=message.max_words,
        models=tuple(message.models),
        tie_below=message.tie_below,
    )


def judgement_from_pb(
    message: pb.Judgement, *, timing: pb.ScoreTiming | None = None, cached: bool = False
) -> Judgement:
    return Judgement(
        reward=message.reward,
        uncertainty=message.uncertainty,
        category=None if message.unseen_category else message.category,
        category_probability=message.category_probability,
        dimensions={
            each.name: DimensionScore(each.name, each.score, each.uncertainty, each.counts)
            for each in message.dimensions
        },
        notes=tuple(message.notes),
        timing=None if timing is None else timing_from_pb(timing),
        cached=cached,
    )


def comparison_from_pb(message: pb.CompareResponse) -> Comparison:
    return Comparison(
        verdict=_VERDICTS.get(message.verdict, "tie"),
        first_better=message.first_better,
        first=judgement_from_pb(message.first, timing=message.timing),
        second=judgement_from_pb(message.second, timing=message.timing),
    )


def ranking_from_pb(message: pb.RankResponse, *, cached: bool = False) -> Ranking:
    ranked = tuple(Ranked(each.index, each.rank, judgement_from_pb(each.judgement)) for each in message.ranked)
    return Ranking(ranked, timing_from_pb(message.timing), cached)


def timing_from_pb(message: pb.ScoreTiming) -> ScoreTiming:
    return ScoreTiming(
        queue_s=duration_from_pb(message.queue_duration),
        run_s=duration_from_pb(message.run_duration),
        mean_batch_size=message.mean_batch_size,
    )
