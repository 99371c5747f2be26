"""What steers a chunk, in the forms a program may write it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldtree.errors import InvalidRequest
from worldtree.video.v1 import video_generator_pb2 as pb

# The value of one action: its name, its id, or the vector of a continuous one.
ActionValue = str | int | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Action:
    """One action with an instruction in words, for models that take one. Elsewhere the bare value is enough."""

    value: ActionValue
    instruction: str = ""


# One action: a name, an id, a vector (floats in a list, tuple or array), or an Action.
ActionLike = Any
# One action or many: what Step, Rollout and Generate take.
ActionsLike = Any


def action_to_pb(action: ActionLike, *, field: str = "actions") -> pb.Action:
    """One action as the wire has it. Raises InvalidRequest for what is no action at all."""
    if isinstance(action, Action):
        message = action_to_pb(action.value, field=field)
        message.instruction = action.instruction
        return message
    if isinstance(action, str):
        return pb.Action(name=action)
    if isinstance(action, (int, np.integer)) and not isinstance(action, bool):
        if not -(2**31) <= action < 2**31:
            raise InvalidRequest(f"{field}: an action id must be a 32-bit integer, got {action}", field=field)
        return pb.Action(id=int(action))
    if _is_vector(action):
        return pb.Action(vector=pb.Action.Vector(values=[float(value) for value in action]))
    raise InvalidRequest(
        f"{field}: an action is a name, an id, a vector of floats or an Action, got {_describe(action)}", field=field
    )


def actions_to_pb(actions: ActionsLike, *, field: str = "actions") -> list[pb.Action]:
    """One action or many, as a list. A list of floats is one vector, a list of ints is many ids."""
    many = one_or_many(actions, field=field)
    if many is not actions:
        return [action_to_pb(action, field=field) for action in many]
    return [action_to_pb(action, field=f"{field}[{index}]") for index, action in enumerate(many)]


def one_or_many(actions: ActionsLike, *, field: str = "actions") -> Iterable[ActionLike]:
    """The iterable itself, or a list of the one action. Raises InvalidRequest for what is neither."""
    if isinstance(actions, np.ndarray) and actions.ndim == 0:
        actions = actions.item()
    if isinstance(actions, (str, bytes, Action, int, np.integer)) or _is_vector(actions):
        return [actions]
    if not isinstance(actions, Iterable):
        raise InvalidRequest(f"{field}: expected an action or a list of them, got {_describe(actions)}", field=field)
    return actions


def action_from_pb(message: pb.Action, names: Sequence[str] = ()) -> ActionValue | Action:
    """The action by name where `names` (by id) has one: bare, or an Action where it carries an instruction."""
    value: ActionValue
    match message.WhichOneof("kind"):
        case "name":
            value = message.name
        case "vector":
            value = tuple(message.vector.values)
        case _:
            value = names[message.id] if 0 <= message.id < len(names) else message.id
    return Action(value, message.instruction) if message.instruction else value


def _is_vector(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.floating)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and len(value) > 0
        and all(isinstance(item, (float, np.floating)) for item in value)
    )


def _describe(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
