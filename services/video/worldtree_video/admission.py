"""Whether one more play can be held at its fps, by what its chunks cost as measured."""

from collections.abc import Callable, Iterable
from typing import Protocol

from worldtree_video.cost import CostModel
from worldtree_video.errors import FpsUnavailable

# A tick with a chunk of a play takes others along while that costs the play no more than so much of its time. Where a
# batch is nearly free (a GPU) they share ticks; where each member adds its own time (a CPU) chunks are made one after
# another, so that each takes its control as late as it can, and its frames come as soon after it as they can.
PLAY_STRETCH = 1.25
_MARGIN = 0.98  # what is said to be possible should still be so a moment later, when it is asked for


class Share(Protocol):
    """What a play takes of the engine's time."""

    @property
    def period_s(self) -> float:
        """Between its chunks, above 0."""

    @property
    def full_nfe(self) -> int:
        """Evaluations of a chunk that is not degraded."""


class Paced(Share, Protocol):
    """A run against a clock, as admission and deadlines see it."""

    @property
    def session(self) -> str:
        """The session that it plays."""

    @property
    def fps(self) -> float:
        """Its target, above 0."""

    @property
    def admitted(self) -> bool:
        """Whether it was promised its fps before, where it broke off: it is not refused then."""

    @property
    def deadline_s(self) -> float:
        """When its next chunk, or the one in the making, is due, on the engine's clock."""

    @property
    def next_start_s(self) -> float:
        """When that chunk is, or was, free to start."""

    def pace(self, left_s: float, chunk_s: Callable[[int], float]) -> None:
        """Its next chunk is started with so long until it is due; `chunk_s`: what it will take, by evaluations."""


def play_load(plays: Iterable[Share], cost: CostModel, *, max_batch: int) -> float:
    """Share of the engine's time that some plays take together at their targets: 1.0 is all of it."""
    plays = list(plays)
    return sum(_share(play, cost, _company(len(plays), cost, max_batch)) for play in plays)


def admit(play: Paced, others: Iterable[Share], cost: CostModel, *, max_batch: int, load_max: float) -> None:
    """Raises FpsUnavailable, with the fps that could be, when a play cannot be held beside the others."""
    others = list(others)
    company = _company(len(others) + 1, cost, max_batch)
    load = sum(_share(other, cost, company) for other in others)
    own = _share(play, cost, company)
    alone_s = cost.chunk_s(play.full_nfe)
    if load + own <= load_max and alone_s <= play.period_s:
        return
    possible = play.fps * min((load_max - load) / own, play.period_s / alone_s) * _MARGIN
    raise FpsUnavailable(play.fps, max(0, int(possible * 100)) / 100, own=own, load=load, load_max=load_max)


def _company(play_count: int, cost: CostModel, max_batch: int) -> int:
    return cost.together(max(1, min(max_batch, play_count)), PLAY_STRETCH)


def _share(play: Share, cost: CostModel, company: int) -> float:
    return cost.chunk_s(play.full_nfe, company) / company / play.period_s
