"""Missions: where they are given, the words they are said in, what in the simulator they ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.minigrid import tiles
from training.minigrid.worlds import World

REACH, FACE, OPEN = "reach", "face", "open"
MAX_WORDS = 10

# id -> how often it is drawn in training. No lava anywhere: it is what `mpc` is measured on, without training.
ENVIRONMENTS: dict[str, float] = {
    "BabyAI-GoToLocal-v0": 3.0,
    "BabyAI-GoToObj-v0": 0.5,
    "BabyAI-GoToDoor-v0": 0.5,
    "BabyAI-OpenDoor-v0": 0.7,
    "BabyAI-OpenRedDoor-v0": 0.3,
    "BabyAI-GoToObjMazeS4-v0": 2.0,
    "MiniGrid-Empty-Random-6x6-v0": 0.5,
    "MiniGrid-FourRooms-v0": 1.5,
    "MiniGrid-MultiRoom-N2-S4-v0": 0.5,
    "MiniGrid-MultiRoom-N4-S5-v1": 1.5,
}
ONE_ROOM = ("BabyAI-GoToLocal-v0", "BabyAI-GoToObj-v0")
MULTI_ROOM = ("BabyAI-GoToObjMazeS4-v0", "MiniGrid-FourRooms-v0", "MiniGrid-MultiRoom-N4-S5-v1")

_COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
_KINDS = ("door", "key", "ball", "box")
_THING = re.compile(rf"\b({'|'.join(_COLORS)}) ({'|'.join(_KINDS)})\b")


@dataclass(frozen=True, slots=True)
class Mission:
    """What is to be done with any thing of these object codes."""

    kind: str
    codes: frozenset[int]

    def is_done(self, world: World) -> bool:
        """Also where the thing was opened by now."""
        x, y, _ = world.pose
        if self.kind == REACH:
            return world.code(x, y) in self.codes
        if self.kind == FACE:
            return world.ahead in self.codes
        return tiles.is_open_door(world.ahead) and world.ahead in {door_codes(code)[0] for code in self.codes}


def door_codes(code: int) -> tuple[int, int, int]:
    """The open, closed and locked door of a door's colour."""
    first = code - (code - 4) % 3
    return first, first + 1, first + 2


def mission_of(text: str) -> Mission | None:
    """What a mission asks for; None where it names no thing that we know ("the door on your left", say)."""
    named = _THING.search(text)
    if named is None:
        return Mission(REACH, frozenset({tiles.GOAL})) if "goal" in text else None
    color, kind = named.groups()
    names = tiles.object_names()
    codes = frozenset(code for code, name in enumerate(names) if name.endswith(f"{color} {kind}"))
    return Mission(OPEN if text.startswith("open") else FACE, codes)


def world_of(env_id: str, seed: int) -> tuple[World, str] | None:
    """A world and its mission; None where that is none of ours, or done before it began."""
    world = World(env_id, seed)
    text = str(world.env.mission)
    mission = mission_of(text)
    return None if mission is None or mission.is_done(world) else (world, text)


# The sentences of the simulators, and some that people would say in their place.
_SAID = {
    FACE: ("go to the {}", "go to a {}", "walk to the {}", "find the {}", "please go to the {}", "get to the {}"),
    OPEN: ("open the {}", "open a {}", "please open the {}", "unlock the {}"),
    REACH: (
        "reach the goal",
        "get to the green goal square",
        "traverse the rooms to get to the goal",
        "go to the goal",
        "go to the green goal square",
        "find the goal",
    ),
}
_OTHER_SHARE = 0.25


def said(text: str, rng: np.random.Generator) -> str:
    """A mission as somebody says it: mostly as it is."""
    mission = mission_of(text)
    assert mission is not None, text
    if rng.random() > _OTHER_SHARE:
        return text
    ways = _SAID[mission.kind]
    named = _THING.search(text)
    return ways[int(rng.integers(len(ways)))].format(named.group() if named else "")


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


WORDS = tuple(
    dict.fromkeys(
        [word for ways in _SAID.values() for way in ways for word in words_of(way.format(""))] + [*_COLORS, *_KINDS]
    )
)
_IDS = {word: index + 1 for index, word in enumerate(WORDS)}  # 0 fills up


def tokenize(text: str) -> npt.NDArray[np.int64]:
    """Word ids [MAX_WORDS], padded with 0. Raises KeyError for a word that is not ours."""
    ids = [_IDS[word] for word in words_of(text)][:MAX_WORDS]
    return np.array(ids + [0] * (MAX_WORDS - len(ids)), np.int64)
