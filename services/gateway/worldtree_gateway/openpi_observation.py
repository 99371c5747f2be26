"""What a robot says over openpi: which keys an observation has, and what each may hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.openpi_codec import shown

MAX_PROMPT_CHARS = 1024
MAX_NAME_CHARS = 128
MAX_EXECUTED = 256
MAX_CHUNK_LENGTH = 1024
MAX_SEED = (1 << 53) - 1

# By name, what each is: robots are shown this when they connect.
KEYS = {
    "image": "uint8 [height, width, 3]: what the robot sees; observation/image is the same",
    "prompt": "text: the goal",
    "executed": "optional, ids or names: what was executed since the last observation; left out: all of the last chunk",
    "episode": "optional, text: the episode that this belongs to; one of before is gone on with",
    "reset": "optional, bool: true begins anew, with nothing seen and nothing executed",
    "planner": "optional, text: who plans",
    "chunk_length": "optional, integer: actions of a chunk",
    "seed": "optional, integer: seed of what the planner draws",
    "frames": "optional, bool: whether chunks bring the frames that are expected",
}
_IMAGE_KEYS = ("image", "observation/image")


@dataclass(frozen=True, slots=True)
class Course:
    """What a navigation is begun for. Empty or 0: the navigator's default."""

    prompt: str
    planner: str
    chunk_length: int
    seed: int
    frames: bool


@dataclass(frozen=True, slots=True)
class Observation:
    """`image`: [height, width, 3]. `executed`: None where it was not said. `episode`: empty where it has no name."""

    image: npt.NDArray[np.uint8]
    course: Course
    executed: tuple[int | str, ...] | None
    episode: str
    reset: bool


def to_observation(message: object) -> Observation:
    """Raises InvalidRequest, which names the key, its value and what it may be."""
    if not isinstance(message, Mapping):
        raise InvalidRequest("observation", f"observation must be a map, got {shown(message)}")
    known = {*KEYS, *_IMAGE_KEYS}
    unknown = [key for key in message if key not in known]
    if unknown:
        names = ", ".join(map(shown, unknown[:5]))
        raise InvalidRequest(
            "observation", f"observation must have no keys but {', '.join(sorted(known))}, got {names}"
        )
    course = Course(
        prompt=_text(message, "prompt", MAX_PROMPT_CHARS, needed=True),
        planner=_text(message, "planner", MAX_NAME_CHARS),
        chunk_length=_integer(message, "chunk_length", 1, MAX_CHUNK_LENGTH),
        seed=_integer(message, "seed", 0, MAX_SEED),
        frames=_flag(message, "frames"),
    )
    return Observation(
        image=_image(message),
        course=course,
        executed=_executed(message),
        episode=_text(message, "episode", MAX_NAME_CHARS),
        reset=_flag(message, "reset"),
    )


def _image(message: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    given = [key for key in _IMAGE_KEYS if message.get(key) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "neither"
        raise InvalidRequest("image", f"image or observation/image must be set, exactly one of them, got {got}")
    key, image = given[0], message[given[0]]
    if not isinstance(image, np.ndarray):
        raise InvalidRequest(key, f"{key} must be a uint8 array [height, width, 3], got {shown(image)}")
    if image.dtype != np.uint8:
        wild = image.size - int(np.isfinite(image).sum())
        also = f" with {wild} values that are not finite" if wild else ""
        raise InvalidRequest(key, f"{key} must be uint8 [height, width, 3], got {image.dtype.name}{also}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidRequest(key, f"{key} must be uint8 [height, width, 3], got {list(image.shape)}")
    return image


def _executed(message: Mapping[str, Any]) -> tuple[int | str, ...] | None:
    given = message.get("executed")
    if given is None:
        return None
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        given = given.ravel().tolist()  # [n] or, as chunks come, [n, 1]
    if not isinstance(given, list) or not all(_is_action(each) for each in given):
        raise InvalidRequest("executed", f"executed must be integers, or a list of ids and names, got {shown(given)}")
    if len(given) > MAX_EXECUTED:
        message_ = f"executed must have {MAX_EXECUTED} actions at most, got {len(given)}"
        raise InvalidRequest("executed", message_, limit=MAX_EXECUTED)
    return tuple(each if isinstance(each, str) else int(each) for each in given)


def _is_action(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= MAX_NAME_CHARS
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) < 1 << 31


def _text(message: Mapping[str, Any], key: str, limit: int, *, needed: bool = False) -> str:
    text = message.get(key)
    if text is None and not needed:
        return ""
    if not isinstance(text, str) or (needed and not text.strip()):
        raise InvalidRequest(key, f"{key} must be a text, got {'nothing' if text is None else shown(text)}")
    if len(text) > limit:
        raise InvalidRequest(key, f"{key} must have {limit} characters at most, got {len(text)}", limit=limit)
    return text


def _integer(message: Mapping[str, Any], key: str, least: int, most: int) -> int:
    """0 where it was left out."""
    number = message.get(key)
    if number is None:
        return 0
    if not isinstance(number, int | np.integer) or isinstance(number, bool) or not least <= int(number) <= most:
        raise InvalidRequest(key, f"{key} must be an integer from {least} to {most}, got {shown(number)}", limit=most)
    return int(number)


def _flag(message: Mapping[str, Any], key: str) -> bool:
    flag = message.get(key)
    if flag is not None and not isinstance(flag, bool | np.bool_):
        raise InvalidRequest(key, f"{key} must be true or false, got {shown(flag)}")
    return bool(flag)
