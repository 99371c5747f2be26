"""A robot as far as the service knows: its clock, what it has done, what it is going to do. Plain Python."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from worldtree_navigator.errors import Refused

_TOLERANCE_S = 1.0  # a robot's clock may run ahead of its messages so far


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a new chunk goes. `first_step`: the place of its first action among all of the episode. `executing`: what
    the robot will have done by then since the observation. `count`: actions. `starts_at_s`: by the robot's clock.
    """

    first_step: int
    executing: tuple[int, ...]
    count: int
    starts_at_s: float


@dataclass(slots=True)
class Robot:
    """`rate_hz`: actions a second; None: it waits for each chunk. `step`: actions executed in the episode."""

    chunk_length: int
    horizon: int
    rate_hz: float | None
    began_s: float  # when its Start was answered, by the service's clock
    step: int = 0
    taken_at_s: float | None = None  # of its last observation, by its own clock
    _planned: list[int] = field(default_factory=list)
    _planned_from: int = 0

    def check_time(self, taken_at_s: float, now_s: float) -> None:
        """Raises Refused for an observation that is not after the last, or not yet to be."""
        field_name = "observation.taken_at"
        if self.taken_at_s is not None and taken_at_s <= self.taken_at_s:
            raise Refused(
                field_name,
                "OUT_OF_ORDER",
                f"{field_name} must be after {self.taken_at_s:.3f} s, that of the observation before, "
                f"got {taken_at_s:.3f} s",
            )
        latest_s = now_s - self.began_s + _TOLERANCE_S
        if taken_at_s > latest_s:
            raise Refused(
                field_name,
                "FROM_THE_FUTURE",
                f"{field_name} must be {latest_s:.3f} s at most, {_TOLERANCE_S:g} s more than the Start was answered "
                f"ago, got {taken_at_s:.3f} s",
            )

    def observed(self, taken_at_s: float, executed_count: int) -> None:
        self.taken_at_s = taken_at_s
        self.step += executed_count

    @property
    def left_count(self) -> int:
        """Actions that are planned and not executed yet, as of the last observation."""
        return max(0, self._planned_from + len(self._planned) - self.step)

    def age_s(self, now_s: float) -> float:
        """How long ago the last observation was taken."""
        assert self.taken_at_s is not None, "nothing was observed"
        return max(0.0, now_s - self.began_s - self.taken_at_s)

    def time_left_s(self, age_s: float) -> float | None:
        """Until the robot has nothing to do, `age_s` after its last observation was taken. None: it waits."""
        if self.rate_hz is None:
            return None
        # One with nothing to do should have something a step from now.
        return max(self.left_count, 1) / self.rate_hz - age_s

    def slot(self, latency_s: float) -> Slot:
        """For a chunk that will be there `latency_s` after the last observation was taken."""
        assert self.taken_at_s is not None, "nothing was observed"
        passing = 0
        if self.rate_hz is not None:
            # No further than what is planned: there the robot stops and waits.
            passing = min(math.ceil(latency_s * self.rate_hz), self.left_count, self.horizon - 1)
        begin = self.step - self._planned_from
        executing = tuple(self._planned[begin : begin + passing])
        starts_at_s = self.taken_at_s + (passing / self.rate_hz if self.rate_hz is not None else 0.0)
        return Slot(self.step + passing, executing, min(self.chunk_length, self.horizon - passing), starts_at_s)

    def planned(self, slot: Slot, actions: Sequence[int]) -> None:
        """A chunk was sent: it replaces what was planned from its first step on."""
        kept_from = min(self.step, slot.first_step)
        begin = kept_from - self._planned_from
        kept = self._planned[max(begin, 0) : slot.first_step - self._planned_from] if begin >= 0 else []
        self._planned = [*kept, *actions]
        self._planned_from = slot.first_step - len(kept)
