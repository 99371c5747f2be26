"""Plans: who makes them, and how."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace

from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.opinion import Opinion

from worldtree_navigator.domain import Chunk, Edge, Edges, Ending, Spent, Terms
from worldtree_navigator.imagining import DOWN, Imagining, path_of
from worldtree_navigator.sampling import Proposal

ELITE_SHARE = 8  # one of so many candidates is learnt from

# A contest between sequences, under terms, its judge asked for as long as the block lasts.
Imagine = Callable[[Sequence[Edges], Terms], AbstractAsyncContextManager[Imagining]]


@dataclass(frozen=True, slots=True)
class Planner:
    """One way to plan."""

    name: str
    description: str


PLANNERS = (
    Planner("mpc", "imagines futures, drawn nearer and nearer to the best (cross-entropy method), and takes the best"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """The best future that was found."""

    edges: Edges
    chunks: Sequence[Chunk]
    judgement: reward_pb.Judgement

    @property
    def opinion(self) -> Opinion:
        return Opinion(self.judgement.reward, self.judgement.uncertainty)


class CrossEntropy:
    """Model-predictive control: draws futures, has them imagined and judged, draws again nearer to the best."""

    def __init__(self, proposal: Proposal, terms: Terms, *, candidates: int, iterations: int) -> None:
        """`terms`: of all iterations together."""
        self.best: Plan | None = None
        self.iteration_count = 0
        self.spent = Spent()
        self.clip_count = self.full_node_count = self.full_chunk_count = 0
        self.notes: list[str] = []
        self._proposal, self._candidates, self._iterations = proposal, candidates, iterations
        self._elites = max(2, candidates // ELITE_SHARE)
        self._terms = replace(terms, keep=min(self._elites, candidates))
        self._others: dict[Edges, Opinion] = {}

    async def search(self, imagine: Imagine) -> None:
        """Until all is tried that should be, or the budget is spent.

        An error of the video or the reward service is the end where there is a plan; it is raised where there is none.
        """
        for _ in range(self._iterations):
            left = self._terms.chunk_limit - self.spent.made - self.spent.known
            if left <= 0:
                return
            self.iteration_count += 1
            try:
                ending = await self._iterate(imagine, replace(self._terms, chunk_limit=left))
            except WorldtreeError as error:
                if error.kind not in DOWN or self.best is None:
                    raise
                self.notes.append(error.message)
                return
            if ending is not Ending.COMPLETE:
                return

    @property
    def confidence(self) -> float:
        """The chance that the best is better than any one of the others."""
        best = self.best
        assert best is not None, "nothing was found"
        others = (other for edges, other in self._others.items() if edges != best.edges)
        return min((best.opinion.chance_over(other) for other in others), default=1.0)

    async def _iterate(self, imagine: Imagine, terms: Terms) -> Ending | None:
        drawn = [tuple(Edge(action) for action in each) for each in self._proposal.draw(self._candidates)]
        async with imagine(drawn, terms) as imagining:
            try:
                async with aclosing(imagining.run()) as endings:
                    *_, ending = [each async for each in endings]
            finally:
                self._count(imagining)
            ranked = [each for each, _ in imagining.contest.ranking(imagining.judge.tie_below) if each.opinion]
            for each in ranked[: self._terms.keep]:
                judgement = imagining.findings.judgements[each.index]
                edges = each.prefix(each.depth)
                self._others[edges] = Opinion(judgement.reward, judgement.uncertainty)
                if self._is_better(edges, judgement.reward):
                    self.best = Plan(edges, path_of(edges, imagining.findings.chunks), judgement)
            self.notes += [note for note in imagining.findings.notes if note not in self.notes]
            whole = [each.actions for each in ranked[: self._elites] if each.depth == len(each.actions)]
        if whole:
            self._proposal.learn([[edge.action for edge in each] for each in whole])
        return ending

    def _is_better(self, edges: Edges, reward: float) -> bool:
        """Whole plans before those that the budget cut off, then by the reward."""
        best = self.best
        return best is None or (len(edges), reward) > (len(best.edges), best.judgement.reward)

    def _count(self, imagining: Imagining) -> None:
        spent, own = self.spent, imagining.findings.spent
        spent.made += own.made
        spent.known += own.known
        spent.imagine_s += own.imagine_s
        spent.score_s += own.score_s
        self.clip_count += imagining.judge.clip_count
        self.full_node_count += imagining.full_node_count
        self.full_chunk_count += imagining.full_chunk_count
