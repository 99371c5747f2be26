"""What the reward service is asked with and answers: frozen values, nothing that talks to a server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["first", "second", "tie"]


@dataclass(frozen=True, slots=True)
class DimensionInfo:
    """One capability that clips are scored by. `pairwise_accuracy`: the share of clearly different held-out pairs that
    it puts in order; None where it was not measured."""

    name: str
    description: str
    pairwise_accuracy: float | None


@dataclass(frozen=True, slots=True)
class CategoryInfo:
    """A kind of goal. `weights`: how much each dimension counts in its reward. `best_of_four`: the share of held-out
    groups whose best is put first; None where it was not measured."""

    name: str
    description: str
    weights: Mapping[str, float]
    best_of_four: float | None
    example: str


@dataclass(frozen=True, slots=True)
class Rubrics:
    """What a judge looks at, and how well. `models`: the names of all judges that are served. `tie_below`: two clips
    cannot be told apart where the chance that one is better is nearer to 0.5."""

    name: str
    version: str
    digest: str
    description: str
    height_px: int
    width_px: int
    actions: tuple[str, ...]
    categories: tuple[CategoryInfo, ...]
    dimensions: tuple[DimensionInfo, ...]
    calibration_error: float
    trained_steps: int
    max_steps: int
    max_words: int
    models: tuple[str, ...]
    tie_below: float


@dataclass(frozen=True, slots=True)
class DimensionScore:
    """How good a clip is by one dimension, about 0 to 1. `uncertainty`: a standard deviation, in the score's unit.
    `counts`: whether it counts in the reward."""

    name: str
    score: float
    uncertainty: float
    counts: bool


@dataclass(frozen=True, slots=True)
class ScoreTiming:
    """Where the time of an answer went; of a cached answer, when it was made."""

    queue_s: float
    run_s: float
    mean_batch_size: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of a clip. Only differences of `reward` between clips of one question mean something.

    `category` is None where the goal is of none that the judge knows: `reward` is then 0 and `uncertainty` infinite.
    """

    reward: float
    uncertainty: float
    category: str | None
    category_probability: float
    dimensions: Mapping[str, DimensionScore] = field(repr=False)
    notes: tuple[str, ...] = ()
    timing: ScoreTiming | None = field(default=None, repr=False, compare=False)
    cached: bool = field(default=False, repr=False, compare=False)

    def __getitem__(self, dimension: str) -> float:
        """The score by a dimension."""
        return self.dimensions[dimension].score


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which of two clips is better. `first_better`: the chance of it, calibrated."""

    verdict: Verdict
    first_better: float
    first: Judgement
    second: Judgement


@dataclass(frozen=True, slots=True)
class Ranked:
    """One candidate in its place. `rank`: 1 for the best; those that cannot be told apart share one."""

    index: int
    rank: int
    judgement: Judgement

    @property
    def reward(self) -> float:
        return self.judgement.reward


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Ranked]):
    """Candidates, best first."""

    ranked: tuple[Ranked, ...]
    timing: ScoreTiming | None = field(default=None, repr=False, compare=False)
    cached: bool = field(default=False, repr=False, compare=False)

    @property
    def best(self) -> Ranked:
        return self.ranked[0]

    def __getitem__(self, place: Any) -> Any:
        return self.ranked[place]

    def __len__(self) -> int:
        return len(self.ranked)

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self.ranked)
