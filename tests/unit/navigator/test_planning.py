"""What a search imagines, and what it makes of what the judge says: a walk along a line, seen as a number."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace

from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree_navigator.domain import Chunk, Edge, Edges, Findings, Search
from worldtree_navigator.planning import CrossEntropy
from worldtree_navigator.sampling import Proposal

BACK, ON, STAY = 0, 1, 2
UNLIMITED = 10**6
Value = Callable[[list[int]], float]  # of the places along a future


class Line:
    """Futures on a line that begins at 0. `times`: after so many calls, time is out."""

    def __init__(self, value: Value, *, times: int = UNLIMITED) -> None:
        self.scene = SimpleNamespace(last_frame=_picture(0))
        self.judge = SimpleNamespace(clip_count=0)
        self.findings = Findings()
        self._value, self._times = value, times

    @property
    def known(self) -> Mapping[Edges, Chunk]:
        return self.findings.chunks

    def picture(self, prefix: Edges) -> bytes:
        return self.known[prefix].frames

    async def lead(self, prefixes: Collection[Edges]) -> bool:
        for prefix in prefixes:
            if prefix not in self.known:
                self.findings.chunks[prefix] = Chunk(_picture(places(prefix)[-1]), "")
                self.findings.spent.made += 1
        self._times -= 1
        return self._times > 0

    async def judgements(self, prefixes: Collection[Edges]) -> Mapping[Edges, reward_pb.Judgement]:
        return {each: reward_pb.Judgement(reward=self._value(places(each)), uncertainty=0.1) for each in prefixes}

    def keep(self, prefixes: Collection[Edges]) -> None:
        raise AssertionError("nothing here is large")


def _picture(place: int) -> bytes:
    return str(place).encode()


def places(edges: Edges) -> list[int]:
    found = [0]
    for edge in edges:
        found.append(found[-1] + {BACK: -1, ON: 1, STAY: 0}[edge.action])
    return found[1:]


def search(
    line: Line, *, chunk_limit: int = UNLIMITED, seen: Mapping[int, int] | None = None, **asked: int
) -> CrossEntropy:
    known = Search(**{"horizon": 6, "candidates": 12, "iterations": 1, **asked})
    found = CrossEntropy(
        Proposal([BACK, ON, STAY], known.horizon, seed=1), known, chunk_limit=chunk_limit, seen=seen
    )  # fmt: skip
    asyncio.run(found.search(line))  # type: ignore[arg-type]
    return found


def actions(found: CrossEntropy) -> list[int]:
    assert found.best is not None
    return [edge.action for edge in found.best.edges]


def test_of_futures_that_look_alike_one_goes_on() -> None:
    line = Line(lambda walk: -abs(6 - walk[-1]))
    found = search(line, least=1)
    assert actions(found) == [ON] * 6
    # Two places are new at each depth, and three futures go on from each; without that there were 3 ** 6.
    assert line.findings.spent.made == 3 + 5 * 6


def test_a_plan_ends_where_it_is_best_but_is_as_long_as_was_asked_for() -> None:
    def value(walk: list[int]) -> float:
        return -abs(3 - walk[-1])

    assert actions(search(Line(value), least=1)) == [ON] * 3
    assert actions(search(Line(value), least=3)) == [ON] * 3
    whole = search(Line(value))
    assert (len(actions(whole)), places(whole.best.edges if whole.best else ())[-1]) == (6, 3)


def test_who_was_here_before_looks_elsewhere() -> None:
    def value(walk: list[int]) -> float:
        return 0.5 * (walk[-1] > 0) - 0.01 * len(walk)

    assert actions(search(Line(value), least=2))[0] == ON
    been = {hash(_picture(place)): 3 for place in range(7)}
    assert actions(search(Line(value), least=2, seen=been)) == [BACK, BACK]


def test_a_place_that_was_passed_counts_though_the_plan_ends_somewhere_new() -> None:
    been = {hash(_picture(place)): 4 for place in range(1, 6)}
    found = search(Line(lambda walk: float(walk[-1] == 6)), least=1, seen=been)
    assert actions(found)[0] == BACK


def test_one_future_alone_is_no_choice() -> None:
    assert search(Line(len), chunk_limit=1).best is None
    found = search(Line(len), chunk_limit=4)
    assert (len(actions(found)), found.spent.made) == (1, 3)
    assert 0 < found.effort < 1


def test_chunks_are_enough_for_all_iterations_together() -> None:
    line = Line(lambda walk: float(walk[-1]))
    found = search(line, chunk_limit=40, iterations=5, candidates=4)
    assert line.findings.spent.made <= 40
    assert len(actions(found)) == 6
    assert found.effort <= 1


def test_when_time_is_out_the_best_so_far_is_the_plan() -> None:
    found = search(Line(lambda walk: float(walk[-1]), times=2), iterations=3)
    assert (actions(found), found.iteration_count) == ([ON, ON], 1)
    assert 0 < found.effort < 1 / 3


def test_a_search_that_ends_early_for_want_of_anything_new_has_done_its_work() -> None:
    line = Line(lambda walk: float(walk[-1]))
    found = CrossEntropy(Proposal([STAY], 6, seed=1), Search(6, 8, 2, least=2), chunk_limit=UNLIMITED)
    asyncio.run(found.search(line))  # type: ignore[arg-type]
    assert (actions(found), found.effort, line.findings.spent.made) == ([STAY, STAY], 1.0, 2)


def test_what_is_left_of_an_earlier_plan_is_imagined_whatever_is_drawn() -> None:
    wanted = [ON, BACK, ON, BACK, STAY, STAY]
    before = tuple(Edge(each) for each in wanted)
    found = CrossEntropy(
        Proposal([BACK, ON, STAY], 6, seed=1), Search(6, 2, 1), chunk_limit=UNLIMITED, before=before
    )  # fmt: skip
    line = Line(lambda walk: float(walk == places(before)[: len(walk)]))
    asyncio.run(found.search(line))  # type: ignore[arg-type]
    assert actions(found) == wanted
