"""What the navigator service answers: frozen values, nothing that talks to a server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from worldtree.actions import Action, ActionValue
from worldtree.reward_types import Judgement
from worldtree.types import Frames

Ending = Literal[
    "complete", "confident", "out of chunks", "out of time", "reward unavailable", "video unavailable", "goes on"
]


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
    """Who can plan, and how."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `frames` [frames, height, width, 3]: what is expected to be seen, None where it was not asked for.

    `confidence`: the chance that it is better than any one other of the futures that were imagined.
    """

    planner: str
    actions: tuple[ActionValue | Action, ...]
    frames: Frames | None = field(repr=False)
    judgement: Judgement = field(repr=False)
    confidence: float
    iteration_count: int
    spent: ImagineSpent = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The reward."""
        return self.judgement.reward


OnRound = Callable[[Imagination], None]
