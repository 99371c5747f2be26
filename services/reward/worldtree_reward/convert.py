"""Messages to the words of domain.py: pure functions, each refusal naming field, value and limit."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree_runtime.errors import InvalidRequest
from worldtree_runtime.frames import read_frames
from worldtree_runtime.reward_package import RewardPackage

from worldtree_reward.config import RewardSettings
from worldtree_reward.domain import Actions, Frames, Question

Part = tuple[Frames, Actions]


def to_question(message: pb.Question, settings: RewardSettings) -> Question:
    """Names are looked up later, by the judge."""
    if len(message.goal) > settings.max_goal_chars:
        limit, count = settings.max_goal_chars, len(message.goal)
        raise InvalidRequest(
            "question.goal",
            f"question.goal must have {limit} characters at most, got {count}",
            limit=limit,
            count=count,
        )
    return Question(message.goal, message.category or None, _weights(message.weights) if message.weights else None)


def _weights(weights: Mapping[str, float]) -> dict[str, float]:
    for name, weight in weights.items():
        if not math.isfinite(weight):
            field = f"question.weights[{name}]"
            raise InvalidRequest(field, f"{field} must be finite, got {weight}")
    if not any(weights.values()):
        raise InvalidRequest("question.weights", "question.weights must not all be 0")
    return dict(weights)


def to_clip(message: pb.Clip, package: RewardPackage, settings: RewardSettings, field: str) -> Part:
    """A whole clip: its first frame was led to by no action. At least one step."""
    frames, actions = to_part(message, package, settings, field, first=True, step_count=0)
    if not len(frames) - 1:
        raise InvalidRequest(f"{field}.frames", f"{field}.frames must hold 2 frames or more, for a step, got 1")
    return frames, actions


def to_part(
    message: pb.Clip, package: RewardPackage, settings: RewardSettings, field: str, *, first: bool, step_count: int
) -> Part:
    """Frames [n, height, width, 3], and the action that led to each [n]. `first`: whether a clip begins here, with a
    frame that no action led to. `step_count`: steps of the clip so far.
    """
    if message.actions and message.action_names:
        raise InvalidRequest(f"{field}.actions", f"{field}.actions and {field}.action_names must not both be set")
    actions = [*message.actions] or _ids(message, package, field)
    for place, action in enumerate(actions):
        if not 0 <= action < len(package.actions):
            last, where = len(package.actions) - 1, f"{field}.actions[{place}]"
            raise InvalidRequest(where, f"{where} must be an action 0 to {last}, got {action}")
    limit = settings.max_steps
    if step_count + len(actions) > limit:
        raise InvalidRequest(
            f"{field}.actions",
            f"{field}.actions must make a clip of {limit} steps at most, got {step_count + len(actions)}",
            limit=limit,
        )

    def check_count(count: int) -> None:
        if count != len(actions) + first:
            rule = "one more than actions" if first else "as many as actions"
            raise InvalidRequest(
                f"{field}.frames", f"{field}.frames must be {rule}, {len(actions) + first}, got {count}", count=count
            )
        if not count:
            raise InvalidRequest(f"{field}.frames", f"{field}.frames must hold some, got none")

    frames = _pixels(message.frames, f"{field}.frames", package, settings, check_count)
    none = [len(package.actions)] if first else []
    return frames, np.array([*none, *actions], np.int64)


def to_nodes(
    message: pb.ScoreTreeRequest, package: RewardPackage, settings: RewardSettings, *, first: bool
) -> tuple[Frames, Actions]:
    """A frame for each node, and the action that led to it. `first`: whether the root is among them."""
    if not message.nodes:
        raise InvalidRequest("nodes", "nodes must hold some, got none")
    actions = [node.action for node in message.nodes]
    if first:
        actions[0] = len(package.actions)
    for place, action in enumerate(actions):
        if not 0 <= action < len(package.actions) + (first and not place):
            last, where = len(package.actions) - 1, f"nodes[{place}].action"
            raise InvalidRequest(where, f"{where} must be an action 0 to {last}, got {action}")

    def check_count(count: int) -> None:
        if count != len(actions):
            raise InvalidRequest("frames", f"frames must be as many as nodes, {len(actions)}, got {count}", count=count)

    return _pixels(message.frames, "frames", package, settings, check_count), np.array(actions, np.int64)


def _pixels(
    message: common.Frames,
    field: str,
    package: RewardPackage,
    settings: RewardSettings,
    check_count: Callable[[int], None],
) -> Frames:
    size = package.image
    pixels = read_frames(
        message,
        field,
        height_px=size.height_px,
        width_px=size.width_px,
        max_pixels=settings.max_image_pixels,
        check_count=check_count,
    )
    return np.frombuffer(pixels, np.uint8).reshape(-1, size.height_px, size.width_px, size.channels)


def _ids(message: pb.Clip, package: RewardPackage, field: str) -> list[int]:
    found = []
    for place, name in enumerate(message.action_names):
        if name not in package.actions:
            where = f"{field}.action_names[{place}]"
            raise InvalidRequest(where, f"{where} must be one of {', '.join(package.actions)}, got {name[:80]!r}")
        found.append(package.actions.index(name))
    return found
