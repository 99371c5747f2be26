"""Which futures are still in the running, and how they stand: bookkeeping only, no frame and no transport."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worldtree_runtime.opinion import Opinion, ranks

from worldtree_navigator.domain import Edges


@dataclass(slots=True)
class Candidate:
    """One future. `depth`: the chunks of it that were judged; `opinion`: how good it is after these.

    `round`: the last round whose end it came to, 0: none.
    """

    index: int
    actions: Edges
    depth: int = 0
    round: int = 0
    opinion: Opinion | None = None

    def prefix(self, depth: int) -> Edges:
        return self.actions[:depth]


class Contest:
    """Successive halving: all futures go a part of the way, the better ones go on (Karnin, Koren and Somekh, "Almost
    Optimal Exploration in Multi-Armed Bandits", section 4, with a horizon in the place of repeated pulls).

    Each round leads `1 / rounds` of the horizon further. Futures that begin alike share their chunks.
    """

    def __init__(self, sequences: Sequence[Edges], *, rounds: int, halving: float, keep: int, chunk_limit: int) -> None:
        """`keep`: so many are led to their ends. `chunk_limit`: distinct chunks that may be asked for in all."""
        self.candidates = [Candidate(index, actions) for index, actions in enumerate(sequences)]
        self.alive = list(self.candidates)
        self.round = 0  # the one that is under way, or was the last
        self.rounds_done = 0
        self.round_count = rounds
        self.cut_short = False  # chunks were missing to lead all on that should go on
        self._halving, self._keep, self._chunks_left = halving, keep, chunk_limit
        self._horizon = max(len(each.actions) for each in self.candidates)
        self._granted: set[Edges] = set()

    @property
    def depth(self) -> int:
        """Chunks from the session to the end of the present round."""
        return self._depth(self.round)

    def next_round(self) -> list[Candidate]:
        """Drops those that fell behind, and says who is to be led to `depth`; empty: it is over.

        Where chunks are missing, the better ones go first.
        """
        if self.round:
            kept = max(self._keep, math.ceil(len(self.alive) / self._halving))
            self.alive = self._best(self.alive)[:kept]
        if self.round == self.round_count:
            return []
        affordable = self._granting(self._depth(self.round + 1))
        if affordable:
            self.round += 1
            self.alive = affordable
        return affordable

    def judged(self, opinions: Mapping[int, tuple[int, Opinion]]) -> None:
        """What is said of those in the running, by index, and after how many chunks.

        Who did not come to the end of the round is out, whatever is said.
        """
        reached = []
        for each in self.alive:
            if each.index not in opinions:
                continue
            each.depth, each.opinion = opinions[each.index]
            if each.depth == min(self.depth, len(each.actions)):
                each.round = self.round
                reached.append(each)
        self.alive = reached
        if reached:
            self.rounds_done = self.round

    def ranking(self, tie_below: float) -> list[tuple[Candidate, int]]:
        """All, best first, with their ranks: by the last round that each came to the end of, then by how good it is."""
        found: list[tuple[Candidate, int]] = []
        for round_ in range(self.round_count, -1, -1):
            those = [each for each in self.candidates if each.round == round_ and each.opinion is not None]
            order = ranks([each.opinion for each in those if each.opinion is not None], tie_below)
            before = len(found)
            found += [(those[place], before + rank) for place, rank in order]
        rest = len(found) + 1
        return [*found, *((each, rest) for each in self.candidates if each.opinion is None)]

    def lead(self) -> float:
        """The chance that the best in the running is better than any one of all the others, also of those that were
        dropped, by what was last said of them; 1 where there are no others.
        """
        first, *_ = self._best(self.alive)
        assert first.opinion is not None, "a candidate in the running was not judged"
        others = (each.opinion for each in self.candidates if each is not first and each.opinion is not None)
        return min((first.opinion.chance_over(other) for other in others), default=1.0)

    def _depth(self, round_: int) -> int:
        return math.ceil(self._horizon * round_ / self.round_count)

    def _granting(self, depth: int) -> list[Candidate]:
        """Those in the running whose chunks to `depth` can be paid, which they are then."""
        affordable = []
        for each in self.alive:
            fresh = {each.prefix(end) for end in range(each.depth + 1, min(depth, len(each.actions)) + 1)}
            fresh -= self._granted
            if len(fresh) > self._chunks_left:
                self.cut_short = True
                continue
            self._granted |= fresh
            self._chunks_left -= len(fresh)
            affordable.append(each)
        return affordable

    @staticmethod
    def _best(candidates: Sequence[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda each: (-(each.opinion.mean if each.opinion else -math.inf), each.index))


def node_count(sequences: Sequence[Edges]) -> int:
    """Distinct beginnings of sequences: chunks that it takes to make all."""
    return len({each[:depth] for each in sequences for depth in range(1, len(each) + 1)})
