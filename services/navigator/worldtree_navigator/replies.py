"""The words of domain.py to messages: pure functions."""

from collections.abc import Sequence

from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.messages import from_seconds
from worldtree_runtime.policy_package import PlannerSpec

from worldtree_navigator.bills import charged
from worldtree_navigator.contest import Candidate
from worldtree_navigator.domain import Ending, Scene, Spent
from worldtree_navigator.imagining import Imagining, path_of
from worldtree_navigator.judge import frames_of, pixels_of
from worldtree_navigator.pilots import Decision, PolicyPilot
from worldtree_navigator.planning import CrossEntropy
from worldtree_navigator.policies import ServedPolicy

_ENDINGS = {
    Ending.COMPLETE: pb.ImagineResponse.ENDING_COMPLETE,
    Ending.CONFIDENT: pb.ImagineResponse.ENDING_CONFIDENT,
    Ending.OUT_OF_CHUNKS: pb.ImagineResponse.ENDING_OUT_OF_CHUNKS,
    Ending.OUT_OF_TIME: pb.ImagineResponse.ENDING_OUT_OF_TIME,
    Ending.REWARD_UNAVAILABLE: pb.ImagineResponse.ENDING_REWARD_UNAVAILABLE,
    Ending.VIDEO_UNAVAILABLE: pb.ImagineResponse.ENDING_VIDEO_UNAVAILABLE,
}


def from_imagining(
    imagining: Imagining, ending: Ending | None, *, keep: int, frames: bool, notes: Sequence[str], total_s: float
) -> pb.ImagineResponse:
    """How it stands. `frames`: whether the last answer brings them."""
    contest = imagining.contest
    ranking = contest.ranking(imagining.judge.tie_below)[:keep]
    return pb.ImagineResponse(
        round=contest.rounds_done,
        round_count=contest.round_count,
        candidate_count=len(contest.candidates),
        alive_count=len(contest.alive),
        futures=[_future(imagining, *each, frames=frames and ending is not None) for each in ranking],
        spent=_spent(
            imagining.findings.spent,
            node_count=imagining.full_node_count,
            chunk_count=imagining.full_chunk_count,
            clip_count=imagining.judge.clip_count,
            total_s=total_s,
        ),
        ending=_ENDINGS[ending] if ending else pb.ImagineResponse.ENDING_UNSPECIFIED,
        notes=[*notes, *imagining.findings.notes],
    )


def _future(imagining: Imagining, candidate: Candidate, rank: int, *, frames: bool) -> pb.Future:
    found = pb.Future(
        index=candidate.index,
        rank=rank,
        actions=[video_pb.Action(id=edge.action) for edge in candidate.actions],
        chunk_count=candidate.depth,
        judgement=imagining.findings.judgements.get(candidate.index),
    )
    if candidate.depth:
        path = path_of(candidate.prefix(candidate.depth), imagining.findings.chunks)
        found.state_hash = path[-1].state_hash
        if frames:
            found.frames.CopyFrom(pixels_of([chunk.frames for chunk in path], imagining.scene))
    return found


def _spent(spent: Spent, *, node_count: int, chunk_count: int, clip_count: int, total_s: float) -> pb.Spent:
    """`node_count`, `chunk_count`: of all candidates to their ends, with and without what they share."""
    return pb.Spent(
        chunk_count=spent.made,
        known_chunk_count=spent.known,
        full_node_count=node_count,
        full_chunk_count=chunk_count,
        clip_count=clip_count,
        cost=charged(),
        imagine_duration=from_seconds(spent.imagine_s),
        score_duration=from_seconds(spent.score_s),
        total_duration=from_seconds(total_s),
    )


def from_policy(spec: PlannerSpec, served: ServedPolicy) -> pb.Planner:
    package = served.package
    return pb.Planner(
        name=spec.name,
        description=spec.description,
        words=package.goal.words,
        actions=package.actions,
        max_chunk_length=package.horizon,
        height_px=package.image.height_px,
        width_px=package.image.width_px,
    )


def from_decision(decision: Decision, pilot: PolicyPilot, *, notes: Sequence[str], total_s: float) -> pb.PlanResponse:
    found = pb.PlanResponse(
        planner=pilot.planner,
        actions=[video_pb.Action(id=action) for action in decision.actions],
        confidence=decision.confidence,
        spent=pb.Spent(cost=charged(), total_duration=from_seconds(total_s)),
        notes=[*notes, *decision.notes],
    )
    if decision.frames is not None:
        found.frames.CopyFrom(frames_of(decision.frames, (*pilot.frame_shape, 3)))
    return found


def from_plan(search: CrossEntropy, scene: Scene, *, planner: str, frames: bool, total_s: float) -> pb.PlanResponse:
    """The best of a search. `frames`: whether it brings what is expected to be seen."""
    best = search.best
    assert best is not None, "nothing was found"
    found = pb.PlanResponse(
        planner=planner,
        actions=[video_pb.Action(id=edge.action) for edge in best.edges],
        judgement=best.judgement,
        confidence=search.confidence,
        spent=_spent(
            search.spent,
            node_count=search.full_node_count,
            chunk_count=search.full_chunk_count,
            clip_count=search.clip_count,
            total_s=total_s,
        ),
        iteration_count=search.iteration_count,
        notes=search.notes,
    )
    if frames:
        found.frames.CopyFrom(pixels_of([chunk.frames for chunk in best.chunks], scene))
    return found
