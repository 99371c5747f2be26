"""Protobuf of the navigator service to the SDK's values and back: pure functions, no channel."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from worldtree.actions import action_from_pb
from worldtree.convert import duration_from_pb, frames_from_pb, integer
from worldtree.errors import InvalidRequest
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator_types import (
    ActionChunk,
    Cell,
    Ending,
    Future,
    Imagination,
    ImagineSpent,
    MapPath,
    NavigationInfo,
    PathMethod,
    Plan,
    PlannerInfo,
    TimeSplit,
)
from worldtree.reward_convert import judgement_from_pb

MapLike = npt.ArrayLike

_ENDINGS: Mapping[int, Ending] = {
    pb.ImagineResponse.ENDING_COMPLETE: "complete",
    pb.ImagineResponse.ENDING_CONFIDENT: "confident",
    pb.ImagineResponse.ENDING_OUT_OF_CHUNKS: "out of chunks",
    pb.ImagineResponse.ENDING_OUT_OF_TIME: "out of time",
    pb.ImagineResponse.ENDING_REWARD_UNAVAILABLE: "reward unavailable",
    pb.ImagineResponse.ENDING_VIDEO_UNAVAILABLE: "video unavailable",
}
_METHODS: Mapping[int, PathMethod] = {
    pb.PlanOnMapResponse.METHOD_MLM_U: "mlm_u",
    pb.PlanOnMapResponse.METHOD_A_STAR: "a_star",
    pb.PlanOnMapResponse.METHOD_A_STAR_FALLBACK: "a_star_fallback",
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
        judgement=judgement_from_pb(message.judgement) if message.HasField("judgement") else None,
        confidence=message.confidence,
        iteration_count=message.iteration_count,
        spent=_spent_from_pb(message.spent),
        notes=tuple(message.notes),
    )


def started_from_pb(message: pb.Started) -> NavigationInfo:
    return NavigationInfo(
        planner=message.planner,
        model=message.model.name,
        chunk_length=message.chunk_length,
        episode=message.episode,
        step=message.step,
        actions=tuple(message.actions),
        notes=tuple(message.notes),
    )


def action_chunk_from_pb(message: pb.ActionChunk, names: Sequence[str]) -> ActionChunk:
    timing = message.timing
    return ActionChunk(
        observation=message.observation,
        first_step=message.first_step,
        starts_at_s=duration_from_pb(message.starts_at),
        actions=tuple(action_from_pb(each, names) for each in message.actions),
        confidence=message.confidence,
        frames=frames_from_pb(message.frames) if message.HasField("frames") else None,
        timing=TimeSplit(
            queue_s=duration_from_pb(timing.queue_duration),
            world_model_s=duration_from_pb(timing.world_model_duration),
            planner_s=duration_from_pb(timing.planner_duration),
            encode_s=duration_from_pb(timing.encode_duration),
            total_s=duration_from_pb(timing.total_duration),
        ),
        dropped_count=message.dropped_count,
        effort=message.effort,
        notes=tuple(message.notes),
        imagined_chunk_count=message.imagined_chunk_count,
    )


def map_to_pb(blocked: MapLike | None, open_sides: MapLike | None) -> pb.GridMap:
    """Exactly one of them, [rows, columns]. Raises InvalidRequest for what is no map."""
    if (blocked is None) == (open_sides is None):
        got = "neither" if blocked is None else "both"
        raise InvalidRequest(f"exactly one of blocked and open_sides must be given, got {got}", field="map")
    field, given = ("open_sides", open_sides) if blocked is None else ("blocked", blocked)
    cells = np.asarray(given)
    if cells.ndim != 2 or cells.dtype.kind not in "biu":
        found = f"shape {cells.shape} of {cells.dtype}"
        raise InvalidRequest(f"{field} must be [rows, columns] of bool or integers, got {found}", field=field)
    if cells.size and not (cells.min() >= 0 and cells.max() <= 255):
        span = f"{cells.min()} to {cells.max()}"
        raise InvalidRequest(f"{field} must hold bytes, got {span}", field=field)
    rows, columns = cells.shape
    return pb.GridMap(rows=rows, columns=columns, **{field: cells.astype(np.uint8).tobytes()})


def cell_to_pb(cell: Cell, *, field: str) -> pb.Cell:
    """Raises InvalidRequest."""
    if len(cell) != 2:
        raise InvalidRequest(f"{field} must be (row, column), got {len(cell)} numbers", field=field)
    row, column = (
        integer(each, field=f"{field}.{axis}", bits=32) for each, axis in zip(cell, ("row", "column"), strict=True)
    )
    return pb.Cell(row=row, column=column)


def map_path_from_pb(message: pb.PlanOnMapResponse, rows: int, columns: int) -> MapPath:
    """`rows` and `columns` of the map."""
    reachable = np.frombuffer(message.reachable, np.uint8).astype(bool)
    return MapPath(
        cells=tuple((cell.row, cell.column) for cell in message.path),
        method=_METHODS.get(message.method, "none"),
        shortest=message.shortest,
        confidence=message.confidence,
        reachable=reachable.reshape(rows, columns) if reachable.size else None,
        rejected=tuple((cell.row, cell.column) for cell in message.rejected),
        notes=tuple(message.notes),
        total_s=duration_from_pb(message.timing.total_duration),
    )


def planners_from_pb(message: pb.ListPlannersResponse) -> list[PlannerInfo]:
    return [
        PlannerInfo(each.name, each.description, tuple(each.words), tuple(each.actions), each.max_chunk_length)
        for each in message.planners
    ]


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
