"""The calls of the navigator service, knowing neither a channel nor sync from async."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from worldtree import convert
from worldtree._calls import Call, StreamCall
from worldtree.actions import ActionsLike, actions_to_pb
from worldtree.convert import model_ref
from worldtree.errors import DataLoss, InvalidRequest
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator_convert import (
    MapLike,
    cell_to_pb,
    imagination_from_pb,
    map_path_from_pb,
    map_to_pb,
    plan_from_pb,
    planners_from_pb,
)
from worldtree.navigator_types import Cell, Imagination, MapPath, OnRound, Plan, PlannerInfo
from worldtree.reward_convert import question_to_pb
from worldtree.reward_types import Rubrics
from worldtree.types import Seconds
from worldtree.video.v1 import video_generator_pb2 as video_pb

Candidates = int | Sequence[ActionsLike]


class ImagineFold:
    """The last of the rankings, which is the answer. Those on the way go to `on_round`."""

    def __init__(self, names: Sequence[str], on_round: OnRound | None) -> None:
        self._names, self._on_round = names, on_round
        self._last: Imagination | None = None

    def add(self, message: pb.ImagineResponse) -> None:
        self._last = imagination_from_pb(message, self._names)
        if self._on_round is not None:
            self._on_round(self._last)

    def result(self) -> Imagination:
        if self._last is None or self._last.ending == "goes on":
            raise DataLoss("the stream ended before the futures were ranked", reason="STREAM_CUT_SHORT")
        return self._last


def imagine(
    session: str,
    names: Sequence[str],
    *,
    candidates: Candidates,
    horizon: int,
    keep: int,
    goal: str,
    category: str | None,
    weights: Mapping[str, float] | None,
    judge: str | Rubrics | None,
    actions: Sequence[str] | None,
    seed: int,
    repeat: float | None,
    chunks: int,
    budget: Seconds | None,
    rounds: int,
    halving: float,
    stop_at: float,
    frames: bool,
    on_round: OnRound | None,
) -> StreamCall[Imagination]:
    request = pb.ImagineRequest(
        session=session,
        question=question_to_pb(goal, category=category, weights=weights),
        judge=model_ref(judge),
        budget=_budget(chunks, budget),
        rounds=_whole(rounds, field="rounds"),
        halving=halving,
        keep=_whole(keep, field="keep"),
        stop_at=stop_at,
        frames=frames,
    )
    if isinstance(candidates, Sequence) and not isinstance(candidates, str):
        request.given.sequences.extend(_sequences(candidates))
    else:
        request.sampling.CopyFrom(
            pb.Sampling(
                count=_one_or_more(candidates, field="candidates"),
                horizon=_one_or_more(horizon, field="horizon"),
                seed=convert.integer(seed, field="seed"),
                actions=actions or (),
                repeat=repeat,
            )
        )
    return StreamCall("Imagine", request, lambda: ImagineFold(names, on_round), service="navigator")


def planners() -> Call[list[PlannerInfo]]:
    return Call("ListPlanners", pb.ListPlannersRequest(), planners_from_pb, retry=True, service="navigator")


def navigate(
    goal: str,
    *,
    planner: str | None,
    chunk_length: int,
    rate_hz: float,
    frames: bool,
    seed: int,
    episode: str | None,
    chunks: int,
    budget: Seconds | None,
    model: str | None,
    world: str | None,
    judge: str | Rubrics | None,
    actions: Sequence[str] | None,
    weights: Mapping[str, float] | None,
) -> pb.NavigateRequest:
    """The first message of a navigation."""
    start = pb.Start(
        goal=goal,
        planner=planner or "",
        chunk_length=convert.integer(chunk_length, field="chunk_length", bits=32),
        control_rate_hz=rate_hz,
        frames=frames,
        seed=convert.integer(seed, field="seed"),
        episode=episode or "",
        budget=_budget(chunks, budget),
        model=model_ref(model),
        world=model_ref(world),
        judge=model_ref(judge),
        actions=actions or (),
        weights=question_to_pb(goal, category=None, weights=weights).weights,
    )
    return pb.NavigateRequest(start=start)


def observation(frame: Any, executed: ActionsLike, taken_at_s: float) -> pb.NavigateRequest:
    """`frame`: one image [height, width, 3] uint8."""
    image = np.asarray(frame)
    if image.ndim != 3:
        raise InvalidRequest(
            f"frame must have shape [height, width, 3], got {list(image.shape)}", field="frame", reason="INVALID_FIELD"
        )
    done = actions_to_pb(executed, field="executed") if _some(executed) else []
    return pb.NavigateRequest(
        observation=pb.Observation(
            frame=convert.frames_to_pb(image[None], field="frame"),
            taken_at=convert.duration_to_pb(taken_at_s, field="taken_at"),
            executed=done,
        )
    )


def past(frames: Any, between: ActionsLike) -> pb.Past:
    """What was seen of a world that no session holds."""
    done = actions_to_pb(between, field="between") if _some(between) else []
    return pb.Past(frames=convert.frames_to_pb(frames), actions=done)


def plan(
    session: str,
    names: Sequence[str],
    *,
    seen: pb.Past | None = None,
    planner: str,
    horizon: int | None,
    goal: str,
    category: str | None,
    weights: Mapping[str, float] | None,
    judge: str | Rubrics | None,
    actions: Sequence[str] | None,
    seed: int,
    candidates: int,
    iterations: int,
    chunks: int,
    budget: Seconds | None,
    frames: bool,
) -> Call[Plan]:
    request = pb.PlanRequest(
        session=session,
        question=question_to_pb(goal, category=category, weights=weights),
        past=seen,
        planner=planner,
        horizon=0 if horizon is None else _one_or_more(horizon, field="horizon"),
        judge=model_ref(judge),
        budget=_budget(chunks, budget),
        seed=convert.integer(seed, field="seed"),
        actions=actions or (),
        candidates=_one_or_more(candidates, field="candidates"),
        iterations=_one_or_more(iterations, field="iterations"),
        frames=frames,
    )
    # A repeat finds the same, and changes nothing.
    return Call("Plan", request, lambda answer: plan_from_pb(answer, names), retry=True, service="navigator")


def plan_on_map(
    blocked: MapLike | None,
    *,
    start: Cell,
    goal: Cell,
    open_sides: MapLike | None,
    planner: str,
    model: str | None,
) -> Call[MapPath]:
    given = map_to_pb(blocked, open_sides)
    request = pb.PlanOnMapRequest(
        map=given,
        start=cell_to_pb(start, field="start"),
        goal=cell_to_pb(goal, field="goal"),
        planner=planner,
        model=model_ref(model),
    )
    parse = partial(map_path_from_pb, rows=given.rows, columns=given.columns)
    return Call("PlanOnMap", request, parse, retry=True, service="navigator")


def _sequences(candidates: Sequence[ActionsLike]) -> list[video_pb.ActionSequence]:
    return [
        video_pb.ActionSequence(actions=actions_to_pb(each, field=f"candidates[{index}]"))
        for index, each in enumerate(candidates)
    ]


_whole = partial(convert.integer, bits=32)


def _budget(chunks: int, budget: Seconds | None) -> pb.Budget:
    return pb.Budget(
        chunk_count=_whole(chunks, field="chunks"), duration=convert.duration_to_pb(budget, field="budget")
    )


def _some(actions: ActionsLike) -> bool:
    return not isinstance(actions, (list, tuple)) or bool(actions)


def _one_or_more(value: Any, *, field: str) -> int:
    """0 would be the service's default on the wire."""
    number = _whole(value, field=field)
    if not number:
        raise InvalidRequest(f"{field} must be 1 or more, got 0", field=field)
    return number
