"""Messages of robots to the words of the service, and back: pure functions."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.errors import InvalidRequest
from worldtree_runtime.frames import read_frames
from worldtree_runtime.messages import from_seconds
from worldtree_runtime.policy_package import WordSpec

from worldtree_navigator.bills import newly_charged
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.convert import MAX_SEED, number, to_budget, to_edge
from worldtree_navigator.domain import Terms
from worldtree_navigator.judge import frames_of
from worldtree_navigator.pilots import Decision
from worldtree_navigator.robot import Slot

DEFAULT_CHUNK = 4
MAX_RATE_HZ = 1000.0
MAX_EPISODE_CHARS = 128
MAX_EXECUTED = 256
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Course:
    """What a Start asks for, as far as it can be told without its planner. `chunk_length` 0: the default."""

    chunk_length: int
    rate_hz: float | None
    episode: str
    seed: int
    terms: Terms


def to_course(start: pb.Start, settings: NavigatorSettings) -> Course:
    if not start.goal.strip():
        raise InvalidRequest("start.goal", "start.goal must say what to do, got nothing", reason="GOAL_EMPTY")
    if len(start.episode) > MAX_EPISODE_CHARS:
        raise InvalidRequest(
            "start.episode",
            f"start.episode must have {MAX_EPISODE_CHARS} characters at most, got {len(start.episode)}",
            limit=MAX_EPISODE_CHARS,
        )
    rate_hz = start.control_rate_hz
    chunk_limit, time_s = to_budget("start.budget", start.budget, settings)
    return Course(
        chunk_length=int(number("start.chunk_length", start.chunk_length, 0, settings.max_horizon)),
        rate_hz=number("start.control_rate_hz", rate_hz, 0, MAX_RATE_HZ) or None,
        episode=start.episode,
        seed=int(number("start.seed", start.seed, 0, MAX_SEED)),
        terms=Terms(rounds=0, halving=2.0, keep=1, stop_at=None, chunk_limit=chunk_limit, time_s=time_s),
    )


def to_chunk_length(asked: int, horizon: int) -> int:
    """Raises InvalidRequest for more than a planner looks ahead."""
    number("start.chunk_length", asked, 0, horizon)
    return asked or min(DEFAULT_CHUNK, horizon)


def to_words(field: str, goal: str, spec: WordSpec) -> list[str]:
    """The words of a goal, all of them known. Raises InvalidRequest."""
    words = _WORD.findall(goal.lower())
    unknown = [word for word in words if word not in spec.words]
    if unknown or not words:
        what = f"does not know {', '.join(map(repr, unknown[:5]))}" if unknown else "must say what to do"
        example = f', for example "{spec.example}"' if spec.example else ""
        raise InvalidRequest(
            field,
            f"{field} {what}: this planner's words are {', '.join(sorted(spec.words))}{example}",
            reason="GOAL_UNKNOWN",
            got=goal[:80],
        )
    if len(words) > spec.max_words:
        raise InvalidRequest(
            field, f"{field} must have {spec.max_words} words at most, got {len(words)}", limit=spec.max_words
        )
    return words


def unheeded(request: pb.Start | pb.PlanRequest, planner: str, names: Sequence[str]) -> list[str]:
    """A note of those of the fields `names` that were given to a planner that asks neither a world nor a judge."""
    given = {field.name for field, value in request.ListFields() if not isinstance(value, Message) or value.ByteSize()}
    found = [name for name in names if name in given]
    return [f"{planner} asks neither a world nor a judge: {', '.join(found)} had no effect"] if found else []


def to_taken_at(observation: pb.Observation) -> float:
    """Seconds. Raises InvalidRequest."""
    if not observation.HasField("taken_at"):
        raise InvalidRequest("observation.taken_at", "observation.taken_at must be set: when the image was taken")
    taken_at_s = seconds(observation.taken_at)
    if not 0 <= taken_at_s < math.inf:
        raise InvalidRequest("observation.taken_at", f"observation.taken_at must be 0 s or more, got {taken_at_s:g} s")
    return taken_at_s


def to_executed(observation: pb.Observation, actions: Sequence[str], *, first: bool) -> list[int]:
    """Ids of what was executed. Raises InvalidRequest. `first`: nothing can have been, in an episode's first one."""
    executed = observation.executed
    most = 0 if first else MAX_EXECUTED
    number("observation.executed", len(executed), 0, most)
    return to_ids(executed, actions, "observation.executed")


def to_ids(given: Sequence[video_pb.Action], actions: Sequence[str], field: str) -> list[int]:
    ids = {name: index for index, name in enumerate(actions)}
    return [to_edge(action, None, ids, f"{field}[{place}]").action for place, action in enumerate(given)]


def to_image(observation: pb.Observation, frame_shape: tuple[int, int], *, max_pixels: int) -> bytes:
    """Pixels [height, width, 3]. Raises InvalidRequest."""

    def one(count: int) -> None:
        if count != 1:
            raise InvalidRequest("observation.frame", f"observation.frame must be one frame, got {count}", limit=1)

    if not observation.HasField("frame"):
        raise InvalidRequest("observation.frame", "observation.frame must be set: what the robot sees")
    return _pixels(observation.frame, "observation.frame", frame_shape, max_pixels, one)


def to_images(frames: common.Frames, frame_shape: tuple[int, int], *, max_pixels: int) -> list[bytes]:
    """Pixels [height, width, 3] of each frame. Raises InvalidRequest."""
    height, width = frame_shape
    data = _pixels(frames, "past.frames", frame_shape, max_pixels, lambda _: None)
    size = height * width * 3
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


def to_plan_horizon(asked: int, horizon: int) -> int:
    """Raises InvalidRequest for more than a planner looks ahead."""
    return int(number("horizon", asked, 0, horizon)) or horizon


def _pixels(
    frames: common.Frames,
    field: str,
    frame_shape: tuple[int, int],
    max_pixels: int,
    check_count: Callable[[int], None],
) -> bytes:
    height, width = frame_shape
    return read_frames(frames, field, height_px=height, width_px=width, max_pixels=max_pixels, check_count=check_count)


def from_decision(
    decision: Decision,
    slot: Slot,
    frame_shape: tuple[int, int],
    *,
    observation: int,
    dropped_count: int,
    total_s: float,
) -> pb.ActionChunk:
    chunk = pb.ActionChunk(
        observation=observation,
        first_step=slot.first_step,
        starts_at=from_seconds(slot.starts_at_s),
        actions=[video_pb.Action(id=action) for action in decision.actions],
        confidence=decision.confidence,
        timing=from_split(decision, total_s),
        dropped_count=dropped_count,
        effort=decision.effort,
        notes=decision.notes,
        imagined_chunk_count=decision.imagined_count,
        cost=newly_charged(),
    )
    if decision.frames is not None:
        chunk.frames.CopyFrom(frames_of(decision.frames, (*frame_shape, 3)))
    return chunk


def from_split(decision: Decision, total_s: float) -> pb.TimeSplit:
    return pb.TimeSplit(
        queue_duration=from_seconds(decision.queue_s),
        world_model_duration=from_seconds(decision.world_model_s),
        planner_duration=from_seconds(decision.planner_s),
        encode_duration=from_seconds(decision.encode_s),
        total_duration=from_seconds(total_s),
    )


def seconds(duration: Duration) -> float:
    found: float = duration.seconds + duration.nanos / 1e9
    return found
