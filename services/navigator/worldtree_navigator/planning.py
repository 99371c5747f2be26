"""Plans: who makes them, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.opinion import Opinion

from worldtree_navigator.domain import Chunk, Edge, Edges, Search, Spent
from worldtree_navigator.imagining import DOWN, Futures, path_of
from worldtree_navigator.sampling import Proposal

ELITE_SHARE = 8  # one of so many candidates is learnt from
_STALE = 2.0  # what it costs a future that each of its pictures was seen once before, in units of the reward
_REMEMBERED = 2048  # chunks, from one iteration to the next


@dataclass(frozen=True, slots=True)
class Planner:
    """One way to plan."""

    name: str
    description: str


MPC = Planner("mpc", "imagines futures, drawn nearer and nearer to the best (cross-entropy method), and takes the best")


@dataclass(frozen=True, slots=True)
class Plan:
    """The best future that was found. `value`: its reward, less what it loses by leading where the robot has been."""

    edges: Edges
    chunks: Sequence[Chunk]
    judgement: reward_pb.Judgement
    value: float

    @property
    def opinion(self) -> Opinion:
        return Opinion(self.value, self.judgement.uncertainty)


class CrossEntropy:
    """Model-predictive control: draws futures, has them imagined and judged, draws again nearer to the best.

    Futures are drawn action by action. Of those that come to what looks alike, the first and best goes on: the others
    would see it all again, and each draw is of something new.
    """

    def __init__(
        self,
        proposal: Proposal,
        asked: Search,
        *,
        chunk_limit: int,
        before: Edges = (),
        seen: Mapping[int, int] | None = None,
    ) -> None:
        """`chunk_limit`: of all iterations together. `before`: a future that is imagined in any case: what is left of
        an earlier plan (a warm start, as receding horizons have it). `seen`: how often each picture was, by its hash:
        who has nothing in view that leads on looks where it has not been.
        """
        self.best: Plan | None = None
        self.iteration_count = 0
        self.effort = 0.0  # the share of the work that was done
        self.spent = Spent()
        self.clip_count = self.full_node_count = self.full_chunk_count = 0
        self.notes: list[str] = []
        self._proposal, self._asked, self._chunk_limit, self._before = proposal, asked, chunk_limit, before
        self._seen = seen or {}
        self._least = proposal.horizon if asked.least is None else min(asked.least, proposal.horizon)
        self._whole = 0  # actions that all of some iteration were judged after
        self._elite_count = max(2, asked.candidates // ELITE_SHARE)
        self._others: dict[Edges, Opinion] = {}

    async def search(self, futures: Futures) -> None:
        """Until all is tried that should be, or the budget is spent.

        An error of the video or the reward service is the end where there is a plan; it is raised where there is none.
        """
        self.spent = futures.findings.spent
        for _ in range(self._asked.iterations):
            if not self._left:
                break
            self.iteration_count += 1
            try:
                complete = await self._iterate(futures)
            except WorldtreeError as error:
                if error.kind not in DOWN or self.best is None:
                    raise
                self.notes.append(error.message)
                break
            finally:
                self.clip_count = futures.judge.clip_count
            if not complete:
                break
        if self.best is not None:
            self.notes += self.best.judgement.notes

    @property
    def confidence(self) -> float:
        """The chance that the best is better than any one of the others that do not begin or go on like it."""
        best = self.best
        assert best is not None, "nothing was found"
        others = (other for edges, other in self._others.items() if not _alike(edges, best.edges))
        return min((best.opinion.chance_over(other) for other in others), default=1.0)

    @property
    def _left(self) -> int:
        """Chunks that may still be asked for."""
        return max(0, self._chunk_limit - self.spent.made - self.spent.known)

    async def _iterate(self, futures: Futures) -> bool:
        """Draws anew, action by action. False: the budget was spent on the way."""
        judged: dict[Edges, Opinion] = {}
        front: list[Edges] = [()]
        pictures = {futures.scene.last_frame}
        complete = True
        for depth in range(1, self._proposal.horizon + 1):
            if self._asked.least is None:
                pictures = set()  # what comes next counts the actions that are left: to be here later is no detour
            drawn = self._drawn(front, depth, futures)
            if not drawn or not await self._judge(drawn, judged, futures):
                complete = False
                break
            front = self._going_on(drawn, judged, pictures, futures)
            if not front:
                break
        if complete:
            self.effort = self.iteration_count / self._asked.iterations
        self._learn(judged, futures)
        return complete

    def _drawn(self, front: Sequence[Edges], depth: int, futures: Futures) -> list[Edges]:
        """What is imagined next, each an action further than one of `front`. Empty: the chunks that are left would not
        do for one of each, or leave no choice.
        """
        steady = [self._before, self.best.edges if self.best else ()]
        ids = [tuple(edge.action for edge in each) for each in front]
        extended = self._proposal.extend(ids, self._asked.candidates)
        drawn = list(
            dict.fromkeys(
                [
                    *(each[:depth] for each in steady if len(each) >= depth),
                    *(tuple(Edge(action) for action in each) for each in extended),
                ]
            )
        )
        missing = [each for each in drawn if each not in futures.known]
        unpaid = set(missing[self._left :])
        paid = [each for each in drawn if each not in unpaid]
        return paid if len(paid) >= min(len(drawn), max(2, len(front))) else []

    async def _judge(self, drawn: Sequence[Edges], judged: dict[Edges, Opinion], futures: Futures) -> bool:
        """Imagines and judges all. False: time ran out on the way."""
        depth = len(drawn[0])
        self.full_node_count += len(drawn)
        self.full_chunk_count += depth * len(drawn)
        in_time = await futures.lead(drawn)
        said = await futures.judgements(drawn)
        self._whole = max(self._whole, depth) if in_time else self._whole
        self.effort += 1 / self._proposal.horizon / self._asked.iterations
        for each in drawn:
            if each in said:
                value = said[each].reward - _STALE * self._staleness(each, futures)
                judged[each] = Opinion(value, said[each].uncertainty)
                if self._is_better(each, value):
                    self.best = Plan(each, path_of(each, futures.findings.chunks), said[each], value)
        return in_time

    def _staleness(self, edges: Edges, futures: Futures) -> float:
        """How often its pictures were seen before, on the average."""
        if not self._seen:
            return 0.0
        pictures = [futures.picture(edges[:depth]) for depth in range(1, len(edges) + 1)]
        return sum(self._seen.get(hash(each), 0) for each in pictures) / len(pictures)

    def _going_on(
        self, drawn: Sequence[Edges], judged: dict[Edges, Opinion], pictures: set[bytes], futures: Futures
    ) -> list[Edges]:
        """Of these, the best first: those that came to what no other had come to. As long as plans are too short,
        where there is none, all.
        """
        order = sorted(drawn, key=lambda each: (-judged[each].mean, each))
        found = []
        for each in order:
            if (picture := futures.picture(each)) not in pictures:
                pictures.add(picture)
                found.append(each)
        return found or (order if len(drawn[0]) < self._least else [])

    def _learn(self, judged: dict[Edges, Opinion], futures: Futures) -> None:
        whole = [each for each in judged if self._counted(each) == self._counted_most]
        elites = sorted(whole, key=lambda each: (-judged[each].mean, each))[: self._elite_count]
        self._others.update((each, judged[each]) for each in elites)
        if elites:
            self._proposal.learn([[edge.action for edge in each] for each in elites])
        if len(futures.known) > _REMEMBERED:
            futures.keep([*elites, *([self.best.edges] if self.best else [])])

    @property
    def _counted_most(self) -> int:
        return min(self._least, self._whole)

    def _counted(self, edges: Edges) -> int:
        """The actions by which a longer plan goes before a shorter one: up to the least that is wanted, and that all of
        some iteration were led to.
        """
        return min(len(edges), self._counted_most)

    def _is_better(self, edges: Edges, value: float) -> bool:
        best = self.best
        return best is None or (self._counted(edges), value) > (self._counted(best.edges), best.value)


def _alike(one: Edges, other: Edges) -> bool:
    """Whether one begins with the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]
