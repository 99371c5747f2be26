"""What the navigator service answers: frozen values, nothing that talks to a server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from worldtree.actions import Action, ActionValue
from worldtree.reward_types import Judgement
from worldtree.types import Frames

Ending = Literal[
    "complete", "confident", "out of chunks", "out of time", "reward unavailable", "video unavailable", "goes on"
]

PathMethod = Literal["mlm_u", "a_star", "a_star_fallback", "none"]
Cell = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Future:
    """One imagined future. `rank`: 1 for the best; those that cannot be told apart share one.

    `chunk_count`: the chunks of it that were imagined and judged, fewer than it has actions where it fell behind.
    `judgement` is None where it was not judged, `frames` [frames, height, width, 3] where they were not asked for.
    """

    index: int
    rank: int
    actions: tuple[ActionValue | Action, ...]
    chunk_count: int
    judgement: Judgement | None
    frames: Frames | None = field(repr=False)
    state_hash: str = field(repr=False)

    @property
    def score(self) -> float | None:
        """The reward; None where it was not judged."""
        return None if self.judgement is None else self.judgement.reward

    @property
    def dimensions(self) -> Mapping[str, float]:
        """The scores by dimension."""
        return {} if self.judgement is None else {name: each.score for name, each in self.judgement.dimensions.items()}


@dataclass(frozen=True, slots=True)
class ImagineSpent:
    """What an imagining cost. `chunk_count`: chunks that were made; `known_chunk_count`: that were known already.

    `full_node_count`: what it takes to drop no future; `full_chunk_count`: to share no beginning either.
    """

    chunk_count: int
    known_chunk_count: int
    full_node_count: int
    full_chunk_count: int
    clip_count: int
    imagine_s: float
    score_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Imagination(Sequence[Future]):
    """Futures, best first. `ending`: why it went no further; "goes on" where it is a ranking on the way."""

    futures: tuple[Future, ...]
    ending: Ending
    round: int
    round_count: int
    candidate_count: int
    alive_count: int
    spent: ImagineSpent
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Future:
        return self.futures[0]

    def __getitem__(self, place: Any) -> Any:
        return self.futures[place]

    def __len__(self) -> int:
        return len(self.futures)

    def __iter__(self) -> Iterator[Future]:
        return iter(self.futures)


@dataclass(frozen=True, slots=True)
class PlannerInfo:
    """Who can plan, and how. `words`: that its goals are made of, empty: any that the judge knows. `actions`: by id,
    empty: the world's. `max_chunk_length`: actions of a chunk at most, 0: the service's limit.
    """

    name: str
    description: str
    words: tuple[str, ...] = field(default=(), repr=False)
    actions: tuple[str, ...] = ()
    max_chunk_length: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `frames` [frames, height, width, 3]: what is expected to be seen, None where it was not asked for.

    `judgement` is None where the planner asks no judge. `confidence`: of "mpc", the chance that it is better than any
    one other of the futures that were imagined; of others, the probability of the actions.
    """

    planner: str
    actions: tuple[ActionValue | Action, ...]
    frames: Frames | None = field(repr=False)
    judgement: Judgement | None = field(repr=False)
    confidence: float
    iteration_count: int
    spent: ImagineSpent = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float | None:
        """The reward; None where the planner asks no judge."""
        return None if self.judgement is None else self.judgement.reward


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Where the time of a chunk went, in seconds, from the arrival of its observation on.

    `queue_s`: waiting for a place in a batch. `world_model_s`: in a world model. `planner_s`: proposing, judging and
    choosing. `encode_s`: reading the image and drawing frames.
    """

    queue_s: float
    world_model_s: float
    planner_s: float
    encode_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """What a robot is to do next.

    `observation`: which of the stream's it follows from, from 0. `first_step`: the place of its first action among all
    of the episode; it replaces what was planned from there on. `starts_at_s`: when that is to be executed, by the clock
    of `taken_at`. `frames` [actions, height, width, 3]: what is expected to be seen after each; None where it was not
    asked for, or the planner imagines nothing. `dropped_count`: observations since the chunk before that newer ones
    took the place of. `effort`: the share of the planner's work that could be afforded in time.
    `imagined_chunk_count`: chunks of futures that were imagined for it.
    """

    observation: int
    first_step: int
    starts_at_s: float
    actions: tuple[ActionValue | Action, ...]
    confidence: float
    frames: Frames | None = field(repr=False)
    timing: TimeSplit = field(repr=False)
    dropped_count: int = 0
    effort: float = 1.0
    notes: tuple[str, ...] = ()
    imagined_chunk_count: int = 0


@dataclass(frozen=True, slots=True)
class NavigationInfo:
    """A navigation that has begun. `step`: actions that were executed in its episode before. `model` may be empty."""

    planner: str
    model: str
    chunk_length: int
    episode: str
    step: int
    actions: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MapPath:
    """A path over a map. `cells` (row, column) from start to goal, both included; empty: there is no way, and
    `reachable` [rows, columns] says which cells the start leads to.

    `method`: what found it; "a_star_fallback" where the maze model's path is not valid (`rejected`) or it takes no such
    map, which `notes` tell. `confidence`: the maze model's probability of its path, 0 where it was not asked.
    """

    cells: tuple[Cell, ...]
    method: PathMethod
    shortest: bool
    confidence: float
    reachable: npt.NDArray[np.bool_] | None = field(repr=False)
    rejected: tuple[Cell, ...] = field(repr=False)
    notes: tuple[str, ...]
    total_s: float


OnRound = Callable[[Imagination], None]
