"""Protobuf of the navigator service to the SDK's values and back: pure functions, no channel."""

from collections.abc import Mapping, Sequence

from worldtree.actions import action_from_pb
from worldtree.convert import duration_from_pb, frames_from_pb
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator_types import Ending, Future, Imagination, ImagineSpent, Plan, PlannerInfo
from worldtree.reward_convert import judgement_from_pb

_ENDINGS: Mapping[int, Ending] = {
    pb.ImagineResponse.ENDING_COMPLETE: "complete",
    pb.ImagineResponse.ENDING_CONFIDENT: "confident",
    pb.ImagineResponse.ENDING_OUT_OF_CHUNKS: "out of chunks",
    pb.ImagineResponse.ENDING_OUT_OF_TIME: "out of time",
    pb.ImagineResponse.ENDING_REWARD_UNAVAILABLE: "reward unavailable",
    pb.ImagineResponse.ENDING_VIDEO_UNAVAILABLE: "video unavailable",
}


def imagination_from_pb(message: pb.ImagineResponse, names: Sequence[str]) -> Imagination:
    """`names`: of the world's actions, by id."""
    return Imagination(
        futures=tuple(future_from_pb(each, names) for each in message.futures),
        ending=_ENDINGS.get(message.ending, "goes on"),
        round=message.round,
        round_count=message.round_count,
        candidate_count=message.candidate_count,
        alive_count=message.alive_count,
        spent=_spent_from_pb(message.spent),
        notes=tuple(message.notes),
    )


def future_from_pb(message: pb.Future, names: Sequence[str]) -> Future:
    return Future(
        index=message.index,
        rank=message.rank,
        actions=tuple(action_from_pb(action, names) for action in message.actions),
        chunk_count=message.chunk_count,
        judgement=judgement_from_pb(message.judgement) if message.HasField("judgement") else None,
        frames=frames_from_pb(message.frames) if message.HasField("frames") else None,
        state_hash=message.state_hash,
    )


def plan_from_pb(message: pb.PlanResponse, names: Sequence[str]) -> Plan:
    return Plan(
        planner=message.planner,
        actions=tuple(action_from_pb(action, names) for action in message.actions),
        frames=frames_from_pb(message.frames) if message.HasField("frames") else None,
        judgement=judgement_from_pb(message.judgement),
        confidence=message.confidence,
        iteration_count=message.iteration_count,
        spent=_spent_from_pb(message.spent),
        notes=tuple(message.notes),
    )


def planners_from_pb(message: pb.ListPlannersResponse) -> list[PlannerInfo]:
    return [PlannerInfo(each.name, each.description) for each in message.planners]


def _spent_from_pb(message: pb.Spent) -> ImagineSpent:
    return ImagineSpent(
        chunk_count=message.chunk_count,
        known_chunk_count=message.known_chunk_count,
        full_node_count=message.full_node_count,
        full_chunk_count=message.full_chunk_count,
        clip_count=message.clip_count,
        imagine_s=duration_from_pb(message.imagine_duration),
        score_s=duration_from_pb(message.score_duration),
        total_s=duration_from_pb(message.total_duration),
    )
