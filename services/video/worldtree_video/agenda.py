"""Who goes into the next tick: deadlines first, steps next, bulk work in fair shares; a floor under each.

The order within a tick
1. chunks of plays with a target fps, earliest deadline first; one that was begun is finished first where all the
   others still make it, because its control is taken and somebody waits for what it does;
2. steps, starts, replays, and plays without a target, oldest first;
3. rollouts and clips, tenants in fair shares, what was begun first.

How many. A tick with a play takes others along while that costs the play next to nothing and every play in sight still
makes its deadline. A tick without one is as large as pays, but ends before the next play starts a chunk, commits
included (one member is always let in, or the gaps between plays would go to waste, and whoever adds little to it). A
play that waits for an action may start at any moment: so while there are plays, no tick without one is meant to be
longer than a tenth of a period, and an action that comes into one waits half of that on average.

Nobody starves. Plays are admitted up to `play_load_max` of the engine's time. While others wait, a quarter of the rest
is owed to them for the time that plays take, and a part of the steps' time to bulk work. What is owed is paid by a
place in the tick once it is more than a few ticks' worth. So the floors hold even where the plays' load was
underestimated, and the other three quarters keep the plays in time meanwhile.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from worldtree_video.admission import PLAY_STRETCH, Paced
from worldtree_video.cost import CostModel
from worldtree_video.domain import Priority
from worldtree_video.fair_share import FairShare

_FLOOR = 0.25  # of the time that plays may not be promised: the rest covers what their load was underestimated
_BULK_FLOOR = 0.125  # of the time of steps, while bulk work waits
_OWED_S = 0.1
LONGEST_OTHER = 0.1  # of the shortest period of a play: a tick without one, while there are plays


class Candidate(Protocol):
    """A run whose next chunk may be made now."""

    @property
    def priority(self) -> Priority:
        """Its class."""

    @property
    def tenant(self) -> str:
        """Who asked for it."""

    @property
    def paced(self) -> Paced | None:
        """Its clock; None: it has no deadline."""

    @property
    def arrival(self) -> int:
        """Its place among all that became ready: lower came earlier."""

    @property
    def begun(self) -> bool:
        """Whether its chunk has been started."""

    @property
    def evaluations_left(self) -> int:
        """Of its chunk, begun or not."""


Member = TypeVar("Member", bound=Candidate)


class Agenda(Generic[Member]):
    """Chooses the members of each tick and is told afterwards what they cost."""

    def __init__(self, cost: CostModel, *, max_batch: int, play_load_max: float) -> None:
        self.cost = cost
        self.max_batch = max_batch
        self.play_load_max = play_load_max
        self.shares = FairShare()
        self._owed_s = {Priority.STEP: 0.0, Priority.BULK: 0.0}  # to all but plays; of that, to bulk work
        self._waiting: set[Priority] = set()

    def choose(self, ready: Iterable[Member], now: float, next_start_s: float | None) -> list[Member]:
        """The members of a tick that begins now. `next_start_s`: when one without a play should end, if ever."""
        plays: list[tuple[Paced, Member]] = []
        steps: list[Member] = []
        bulk: dict[str, list[Member]] = {}
        for member in ready:
            if member.paced:
                plays.append((member.paced, member))
            elif member.priority is Priority.BULK:
                bulk.setdefault(member.tenant, []).append(member)
            else:
                steps.append(member)
        steps.sort(key=_begun_then_oldest)
        for waiting in bulk.values():
            waiting.sort(key=_begun_then_oldest)
        self._note_waiting(steps=bool(steps), bulk=bool(bulk))
        if not plays:
            return self._without_play(steps, bulk, math.inf if next_start_s is None else next_start_s - now)
        ordered = self._by_deadline(plays, now)
        size = self._size(ordered, now)
        chosen = [member for _, member in ordered[:size]]
        room = size - len(chosen)
        if not room and self._owed_s[Priority.STEP] > _OWED_S:
            if len(chosen) == self.max_batch:
                chosen.pop()
            room = 1
        return [*chosen, *self._others(steps, bulk, room)]

    def step_share(self, play_load: float, *, bulk: bool) -> float:
        """Of the engine's time, what steps have beside such a load of plays, and beside bulk work or without."""
        return max(_FLOOR, 1.0 - play_load) * (1.0 - _BULK_FLOOR if bulk else 1.0)

    def charge(self, members: Sequence[Member], seconds: float) -> None:
        """A tick of these members took so long. Each is charged an equal part."""
        if not members:
            return
        part_s = seconds / len(members)
        for member in members:
            if member.paced:
                if self._waiting:
                    self._owed_s[Priority.STEP] += _FLOOR * (1.0 - self.play_load_max) * part_s
                continue
            self._owed_s[Priority.STEP] -= part_s
            if member.priority is Priority.BULK:
                self.shares.charge(member.tenant, part_s)
                self._owed_s[Priority.BULK] -= part_s
            elif Priority.BULK in self._waiting:
                self._owed_s[Priority.BULK] += _BULK_FLOOR * part_s
        for owed_to in self._owed_s:
            self._owed_s[owed_to] = max(0.0, self._owed_s[owed_to])

    def slack_s(self, plays: Sequence[tuple[Paced, Member]], now: float, size: int) -> float:
        """The least time that any of some plays has to spare when they are made in this order, `size` to a tick."""
        least_s, end_s = math.inf, now
        for first in range(0, len(plays), size):
            group = plays[first : first + size]
            ticks = max(member.evaluations_left for _, member in group)
            end_s += ticks * self.cost.denoise_s(size) + self.cost.commit_s(len(group))
            least_s = min(least_s, *(paced.deadline_s - end_s for paced, _ in group))
        return least_s

    def _by_deadline(self, plays: list[tuple[Paced, Member]], now: float) -> list[tuple[Paced, Member]]:
        plays.sort(key=lambda play: (play[0].deadline_s, play[1].arrival))
        begun_first = sorted(plays, key=lambda play: not play[1].begun)  # stable: by deadline among themselves
        size = self.cost.together(min(self.max_batch, len(plays)), PLAY_STRETCH)
        return begun_first if self.slack_s(begun_first, now, size) >= 0.0 else plays

    def _size(self, plays: list[tuple[Paced, Member]], now: float) -> int:
        """Members of a tick with plays in it."""
        size = self.cost.together(self.max_batch, PLAY_STRETCH)
        # Company that is cheap is not free: nobody may be late for it.
        while size > len(plays) and self.slack_s(plays, now, size) < 0.0:
            size -= 1
        return size

    def _without_play(self, steps: list[Member], bulk: dict[str, list[Member]], left_s: float) -> list[Member]:
        """The members of a tick that should end in `left_s`; whom one is let in for, those that cost it little too."""
        room = self.cost.within(self.max_batch, max(left_s, PLAY_STRETCH * self.cost.denoise_s(1)))
        others = self._others(steps, bulk, room)
        if others:
            allowed_s = max(left_s, PLAY_STRETCH * self._tick_s(others[:1]))
            while self._tick_s(others) > allowed_s:
                others.pop()  # the one whose turn came last
        return others

    def _tick_s(self, members: Sequence[Member]) -> float:
        """What a tick of these takes: those with their last evaluation are committed in it too."""
        denoised = sum(member.evaluations_left > 0 for member in members)
        committed = sum(member.evaluations_left <= 1 for member in members)
        return (self.cost.denoise_s(denoised) if denoised else 0.0) + (
            self.cost.commit_s(committed) if committed else 0.0
        )

    def _others(self, steps: list[Member], bulk: dict[str, list[Member]], room: int) -> list[Member]:
        owed = 1 if room and bulk and self._owed_s[Priority.BULK] > _OWED_S else 0
        chosen = steps[: room - owed]
        picked = self.shares.pick(bulk, room - len(chosen), self.cost.denoise_s(1))
        # What is owed comes first: a tick that must be short leaves out those at the end.
        return [*picked[:owed], *chosen, *picked[owed:]]

    def _note_waiting(self, *, steps: bool, bulk: bool) -> None:
        self._waiting = {priority for priority, waits in ((Priority.STEP, steps), (Priority.BULK, bulk)) if waits}
        # Nothing is owed to those who do not ask.
        if not self._waiting:
            self._owed_s[Priority.STEP] = 0.0
        if not bulk:
            self._owed_s[Priority.BULK] = 0.0


def _begun_then_oldest(member: Candidate) -> tuple[bool, int]:
    return not member.begun, member.arrival
