"""Which futures are still in the running, and how they stand: bookkeeping only, no frame and no transport."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worldtree_runtime.opinion import Opinion, ranks

from worldtree_navigator.domain import Edges


@dataclass(slots=True)
class Candidate:
    """One future. `depth`: the chunks of it that were judged; `opinion`: how good it is after these.

    `round`: the last round that it was judged in, 0: none.
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
        self.round = 0
        self.round_count = rounds
        self.cut_short = False  # chunks were missing to lead all on that should go on
        self._halving, self._keep, self._chunks_left = halving, keep, chunk_limit
        self._horizon = max(len(each.actions) for each in self.candidates)

    @property
    def depth(self) -> int:
        """Chunks from the session to the end of the present round."""
        return math.ceil(self._horizon * self.round / self.round_count)

    def next_round(self) -> list[Candidate]:
        """Drops those that fell behind, and says who is to be led to `depth`; empty: it is over.

        Where chunks are missing, the better ones go first.
        """
        if self.round:
            kept = max(self._keep, math.ceil(len(self.alive) / self._halving))
            self.alive = self._best(self.alive)[:kept]
        if self.round == self.round_count:
            return []
        known = {each.prefix(depth) for each in self.candidates for depth in range(1, each.depth + 1)}
        self.round += 1
        affordable = []
        for each in self.alive:
            fresh = {each.prefix(depth) for depth in range(each.depth + 1, min(self.depth, len(each.actions)) + 1)}
            fresh -= known
            if len(fresh) > self._chunks_left:
                self.cut_short = True
                continue
            known |= fresh
            self._chunks_left -= len(fresh)
            affordable.append(each)
        self.alive = affordable
        return affordable

    def judged(self, opinions: Mapping[int, Opinion]) -> None:
        """What is said of those of this round, by index. Who is not among them was not reached, and is out."""
        for each in self.alive:
            if each.index in opinions:
                each.depth, each.round = min(self.depth, len(each.actions)), self.round
                each.opinion = opinions[each.index]
        self.alive = [each for each in self.alive if each.index in opinions]

    def ranking(self, tie_below: float) -> list[tuple[Candidate, int]]:
        """All, best first, with their ranks: by the last round that each was judged in, then by how good it is."""
        found: list[tuple[Candidate, int]] = []
        for round_ in range(self.round_count, 0, -1):
            those = [each for each in self.candidates if each.round == round_]
            order = ranks([each.opinion for each in those if each.opinion is not None], tie_below)
            before = len(found)
            found += [(those[place], before + rank) for place, rank in order]
        rest = len(found) + 1
        return [*found, *((each, rest) for each in self.candidates if not each.round)]

    def lead(self) -> float:
        """The chance that the first is better than any one of the others in the running; 1 without others."""
        first, *others = self._best(self.alive)
        assert first.opinion is not None, "a candidate in the running was not judged"
        chances = (first.opinion.chance_over(each.opinion) for each in others if each.opinion is not None)
        return min(chances, default=1.0)

    @staticmethod
    def _best(candidates: Sequence[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda each: (-(each.opinion.mean if each.opinion else -math.inf), each.index))


def node_count(sequences: Sequence[Edges]) -> int:
    """Distinct beginnings of sequences: chunks that it takes to make all."""
    return len({each[:depth] for each in sequences for depth in range(1, len(each) + 1)})
