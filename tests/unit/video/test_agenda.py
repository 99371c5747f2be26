"""Who goes into a tick and how many, with a fake clock and work that only counts."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest
from worldtree_video.admission import Paced
from worldtree_video.agenda import Agenda
from worldtree_video.cost import CostModel
from worldtree_video.domain import Priority

MEMBER_S = 0.003
CPU = {size: MEMBER_S * size for size in (1, 2, 4, 8)}
GPU = dict.fromkeys((1, 2, 4, 8), 0.01)
LOAD_MAX = 0.85
_arrivals = count()


@dataclass(eq=False)
class Work:
    """A run that always has another chunk to make; with `fps`, one each period."""

    name: str = ""
    priority: Priority = Priority.STEP
    tenant: str = "anonymous"
    nfe: int = 4
    fps: float = 0.0
    start_s: float = 0.0  # of the chunk that is next or in the making
    left: int = 0
    begun: bool = False
    arrival: int = field(default_factory=lambda: next(_arrivals))
    made: int = 0
    late: int = 0

    @property
    def paced(self) -> Paced | None:
        return self if self.fps else None

    @property
    def period_s(self) -> float:
        return 1 / self.fps

    @property
    def full_nfe(self) -> int:
        return self.nfe

    @property
    def deadline_s(self) -> float:
        return self.start_s + self.period_s

    @property
    def evaluations_left(self) -> int:
        return self.left if self.begun else self.nfe

    @property
    def next_start_s(self) -> float:
        return self.start_s

    def pace(self, left_s: float, chunk_s: Callable[[int], float]) -> None:
        raise AssertionError("the scheduler's business")


def play(name: str, start_s: float = 0.0, *, fps: float = 5.0, nfe: int = 4) -> Work:
    return Work(name, Priority.PLAY, fps=fps, start_s=start_s, nfe=nfe)


def bulk(tenant: str, size: int = 8, *, nfe: int = 4) -> list[Work]:
    return [Work(tenant, Priority.BULK, tenant, nfe=nfe) for _ in range(size)]


class Floor:
    """An agenda, a clock, and ticks that take what the costs say (`slower`: so many times that)."""

    def __init__(self, costs: dict[int, float] = CPU, *, max_batch: int = 8, slower: float = 1.0) -> None:
        self.cost = CostModel(costs)
        self.agenda: Agenda[Work] = Agenda(self.cost, max_batch=max_batch, play_load_max=LOAD_MAX)
        self.now = 0.0
        self.slower = slower
        self.works: list[Work] = []
        self.served_s: Counter[str] = Counter()

    def add(self, *works: Work) -> None:
        self.works.extend(works)

    def choose(self) -> list[Work]:
        ready = [work for work in self.works if not work.fps or work.start_s <= self.now + 1e-9]
        starts = [work.start_s for work in self.works if work.fps and work.start_s > self.now + 1e-9]
        return self.agenda.choose(ready, self.now, min(starts, default=None))

    def tick(self) -> list[Work]:
        members = self.choose()
        if not members:
            self.now = min(work.start_s for work in self.works)
            return []
        committing = 0
        for member in members:
            member.left = member.evaluations_left - 1
            member.begun = member.left > 0
            committing += not member.begun
        seconds = self.slower * (
            self.cost.denoise_s(len(members)) + (self.cost.commit_s(committing) if committing else 0.0)
        )
        self.now += seconds
        self.agenda.charge(members, seconds)
        for member in members:
            self.served_s[member.name] += seconds / len(members)
            if not member.begun:
                self._end(member)
        return members

    def run_until(self, end_s: float) -> None:
        while self.now < end_s:
            self.tick()

    def _end(self, member: Work) -> None:
        member.made += 1
        member.arrival = next(_arrivals)
        if member.fps:
            behind_s = max(0.0, self.now - member.deadline_s)
            member.late += behind_s > 0
            member.start_s += member.period_s + behind_s


def names(members: list[Work]) -> list[str]:
    return [member.name for member in members]


def test_plays_go_by_their_deadlines_and_one_that_was_begun_is_finished_first() -> None:
    floor = Floor()
    slow, fast = play("slow", fps=2.0), play("fast", fps=20.0)
    floor.add(slow, fast)
    assert names(floor.tick()) == ["fast"]
    third = play("third", -0.01, fps=20.0)  # due before the one that was begun, and both make it
    floor.add(third)
    assert [names(floor.tick())[0] for _ in range(5)] == ["fast", "fast", "fast", "third", "third"]


def test_one_that_was_begun_gives_way_when_another_would_be_late() -> None:
    floor = Floor()
    slow = play("slow", fps=2.0, nfe=8)
    floor.add(slow)
    floor.tick()
    floor.add(play("urgent", floor.now - 0.03, fps=20.0))  # 20 ms left, needs 15; slow has 24 to go
    assert names(floor.tick()) == ["urgent"]


def test_steps_go_before_bulk_and_the_old_before_the_new() -> None:
    floor = Floor(max_batch=3)
    old, new = Work("old"), Work("new")
    floor.add(*bulk("bulk", 2), new, old)
    old.arrival, new.arrival = 1, 2
    assert names(floor.choose()) == ["old", "new", "bulk"]
    begun = bulk("begun", 1)[0]
    begun.begun, begun.left, begun.tenant = True, 2, "bulk"
    floor.add(begun)
    assert names(floor.choose()) == ["old", "new", "begun"]


def test_without_a_play_in_sight_ticks_are_full() -> None:
    floor = Floor()
    floor.add(*bulk("bulk", 20))
    assert len(floor.tick()) == 8


def test_a_tick_of_others_ends_before_the_next_play_starts_and_has_one_member_at_least() -> None:
    floor = Floor()
    floor.add(*bulk("bulk", 20), play("play", 0.0125))
    assert len(floor.choose()) == 4
    floor.now = 0.0124
    assert len(floor.choose()) == 1


def test_a_tick_of_others_counts_the_commits_that_it_leads_to() -> None:
    floor = Floor()
    floor.add(*bulk("anyone"), play("later", 6.0 * MEMBER_S))
    assert len(floor.choose()) == 6
    for work in floor.works[:8]:
        work.begun, work.left = True, 1
    assert len(floor.choose()) == 3  # each is committed in the same tick


def test_where_a_batch_is_free_a_tick_of_others_takes_everybody_however_soon_a_play_starts() -> None:
    floor = Floor(GPU)
    floor.add(*bulk("anyone"), play("soon", 0.001))
    assert len(floor.choose()) == 8


def test_where_members_cost_their_own_time_a_play_has_the_tick_to_itself() -> None:
    floor = Floor(CPU)
    floor.add(play("one"), play("two"), *bulk("bulk", 20))
    assert names(floor.tick()) == ["one"]


def test_where_a_batch_is_free_a_play_takes_everybody_along() -> None:
    floor = Floor(GPU)
    floor.add(play("one"), play("two"), Work("step"), *bulk("bulk", 20))
    assert names(floor.tick()) == ["one", "two", "step", *["bulk"] * 5]


def test_company_is_left_behind_when_the_slack_does_not_allow_it() -> None:
    costs = {1: 0.010, 2: 0.0105, 4: 0.0115, 8: 0.0124}  # all within the stretch
    floor = Floor(costs)
    floor.add(play("tight", fps=20.0), *bulk("bulk", 20))  # 50 ms for 4 evaluations and a commit: 10 ms each
    assert names(floor.choose()) == ["tight"]
    floor = Floor(costs)
    floor.add(play("ample", fps=5.0), *bulk("bulk", 20))
    assert len(floor.choose()) == 8


def test_plays_up_to_the_load_keep_their_deadlines_beside_a_flood_of_bulk_work_which_gets_the_rest() -> None:
    floor = Floor()
    plays = [play(f"play{index}", index * 0.0137 % 0.2) for index in range(11)]  # 11 x 15 ms in 200: 0.825
    floor.add(*plays, *bulk("a"), *bulk("b"))
    floor.run_until(20.0)
    assert sum(work.late for work in plays) == 0
    assert min(work.made for work in plays) >= 99
    rest_s = floor.served_s["a"] + floor.served_s["b"]
    assert rest_s / 20.0 == pytest.approx(1 - 0.825, abs=0.01)
    assert floor.served_s["a"] == pytest.approx(floor.served_s["b"], rel=0.03)


def test_steps_and_bulk_work_go_on_even_where_plays_would_fill_everything() -> None:
    """The estimates were wrong: all takes twice as long as it did when the plays were admitted."""
    floor = Floor(slower=2.0)
    plays = [play(f"play{index}", index * 0.0137 % 0.2) for index in range(11)]
    step = Work("step")
    floor.add(*plays, step, *bulk("a"))
    floor.run_until(40.0)
    others_s = floor.served_s["step"] + floor.served_s["a"]
    assert others_s / 40.0 == pytest.approx((1 - LOAD_MAX) / 4, abs=0.01)
    assert step.made > 10
    assert floor.served_s["a"] / others_s > 0.03


def test_bulk_work_goes_on_beside_a_flood_of_steps() -> None:
    floor = Floor(max_batch=4)
    floor.add(*[Work("step") for _ in range(40)], *bulk("a"))
    floor.run_until(10.0)
    assert 0.08 < floor.served_s["a"] / 10.0 < 0.16


def test_bulk_work_goes_on_where_ticks_are_short_for_a_play_that_may_start() -> None:
    agenda: Agenda[Work] = Agenda(CostModel(CPU, commit_s=MEMBER_S), max_batch=8, play_load_max=LOAD_MAX)
    waiting = [*(Work("step") for _ in range(6)), *bulk("a")]
    served: Counter[Priority] = Counter()
    for _ in range(1000):
        members = agenda.choose(waiting, 0.0, 2.5 * MEMBER_S)
        assert 1 <= len(members) <= 2
        agenda.charge(members, MEMBER_S * len(members))
        served.update(member.priority for member in members)
    assert 0.08 < served[Priority.BULK] / served.total() < 0.16


def test_nothing_is_owed_for_time_in_which_nobody_waited() -> None:
    floor = Floor(slower=2.0)
    floor.add(*[play(f"play{index}") for index in range(11)])
    floor.run_until(20.0)
    floor.add(*bulk("late"))
    assert "late" not in names(floor.tick())
