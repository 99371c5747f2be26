"""The words of the service, as values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple


class Edge(NamedTuple):
    """What leads to one more chunk. Futures share their beginnings only under one seed; None: the session's."""

    action: int
    seed: int | None = None


Edges = tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class Draw:
    """Sequences to be drawn at random. `actions`: names to draw from; empty: all."""

    count: int
    horizon: int
    seed: int
    repeat: float
    actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """How futures are imagined. `rounds`: 0 leaves it to the horizon. `stop_at`: None goes on to the end."""

    rounds: int
    halving: float
    keep: int
    stop_at: float | None
    chunk_limit: int
    time_s: float | None


@dataclass(frozen=True, slots=True)
class Search:
    """How far a planner looks: `candidates` in each of `iterations`. `least`: actions of a plan at least, after which
    it ends where it is best; None: as many as `horizon`.
    """

    horizon: int
    candidates: int
    iterations: int
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """Where futures begin: a fork of the session, its world's actions, the last frame that was seen.

    `frame_shape`: height, width and channels. `last_frame`: its pixels, uint8 in C order. `chunk_frames`: frames of one
    chunk.
    """

    session: str
    actions: tuple[str, ...]
    frame_shape: tuple[int, int, int]
    last_frame: bytes
    chunk_frames: int


@dataclass(frozen=True, slots=True)
class Past:
    """What was seen of a world that no session holds: messages, as they are passed on. `actions`: between `frames`."""

    world: Any
    frames: Any
    actions: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one edge made. `frames`: pixels uint8 [frames, height, width, 3] in C order."""

    frames: bytes
    state_hash: str


class Ending(Enum):
    """Why an imagining went no further."""

    COMPLETE = auto()
    CONFIDENT = auto()
    OUT_OF_CHUNKS = auto()
    OUT_OF_TIME = auto()
    REWARD_UNAVAILABLE = auto()
    VIDEO_UNAVAILABLE = auto()


@dataclass(slots=True)
class Spent:
    """What an imagining has cost so far. `made` and `known`: chunks, by whether they had to be made."""

    made: int = 0
    known: int = 0
    imagine_s: float = 0.0
    score_s: float = 0.0


@dataclass(slots=True)
class Findings:
    """What an imagining has found so far. `judgements`: by a future's index, as the reward service said them."""

    chunks: dict[Edges, Chunk] = field(default_factory=dict)
    judgements: dict[int, Any] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    notes: list[str] = field(default_factory=list)
