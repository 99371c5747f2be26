"""The calls of the reward service, knowing neither a channel nor sync from async."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from worldtree import reward_convert as convert
from worldtree._calls import Call, Metadata, was_cached
from worldtree.convert import model_ref
from worldtree.errors import InvalidRequest
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree.reward_types import Comparison, Judgement, Ranking, Rubrics


@dataclass(frozen=True, slots=True)
class Question:
    """What clips are asked, as callers say it."""

    goal: str
    category: str | None = None
    weights: Mapping[str, float] | None = None
    judge: str | Rubrics | None = None

    def fields(self) -> dict[str, Any]:
        """Of a request."""
        question = convert.question_to_pb(self.goal, category=self.category, weights=self.weights)
        return {"model": model_ref(self.judge), "question": question}


def rubrics(judge: str | Rubrics | None) -> Call[Rubrics]:
    request = pb.ListRubricsRequest(model=model_ref(judge))
    return Call("ListRubrics", request, convert.rubrics_from_pb, retry=True, service="reward")


def score(clip: Any, question: Question, *, before: Any) -> Call[Judgement]:
    request = pb.ScoreRequest(clip=convert.clip_to_pb(clip, before=before, field="clip"), **question.fields())

    def read(answer: pb.ScoreResponse) -> Judgement:
        return convert.judgement_from_pb(answer.judgement, timing=answer.timing)

    return Call("Score", request, read, retry=True, heed=_judged, service="reward")


def compare(first: Any, second: Any, question: Question, *, before: Any) -> Call[Comparison]:
    request = pb.CompareRequest(
        first=convert.clip_to_pb(first, before=before, field="first"),
        second=convert.clip_to_pb(second, before=before, field="second"),
        **question.fields(),
    )
    return Call("Compare", request, convert.comparison_from_pb, retry=True, service="reward")


def rank(candidates: Sequence[Any], question: Question, *, before: Any) -> Call[Ranking]:
    if not isinstance(candidates, Sequence):
        raise InvalidRequest(f"candidates must be a list of clips, got {type(candidates).__name__}", field="candidates")
    clips = [
        convert.clip_to_pb(clip, before=before, field=f"candidates[{index}]") for index, clip in enumerate(candidates)
    ]
    request = pb.RankRequest(candidates=clips, **question.fields())
    return Call("Rank", request, convert.ranking_from_pb, retry=True, heed=_ranked, service="reward")


def part(frames: Any, actions: Sequence[Any], question: Question | None) -> pb.ScoreStreamRequest:
    """More of a clip; with the question where it begins."""
    message = convert.part_to_pb(frames, actions, field="clip")
    return pb.ScoreStreamRequest(clip=message, **(question.fields() if question is not None else {}))


def running(message: pb.ScoreStreamResponse) -> Judgement | None:
    """What is said so far; None before the first step."""
    if not message.HasField("judgement"):
        return None
    return convert.judgement_from_pb(message.judgement, timing=message.timing)


def _judged(judgement: Judgement, metadata: Metadata) -> Judgement:
    return replace(judgement, cached=was_cached(metadata))


def _ranked(ranking: Ranking, metadata: Metadata) -> Ranking:
    return replace(ranking, cached=was_cached(metadata))
