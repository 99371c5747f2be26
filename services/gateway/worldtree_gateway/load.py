"""How much a replica has to do, as far as one gateway can tell, and how large a share it is given so far."""

import time
from collections import deque
from collections.abc import Callable

_OPENED_S = 10.0  # a session that was opened there counts for so long, as its calls have yet to come
_TOLD_S = 30.0  # what others have under way there is believed for so long
_OPENED_COUNT_MAX = 4096
_SHARE_MIN = 0.1


class Load:
    """One replica's, in calls: ours, which the caller counts, those of others as its trailers tell, and the sessions
    that were just opened there. `held`: the sessions that it has, as told last, and those opened since; they need
    its blocks whether a call is under way or not.

    A replica that has just come has no block and no page of memory warm, so its share grows for `ramp_s` from a tenth
    to all of it, as the "slow start" of Envoy has it: max(10 %, time / window), its `aggression` being 1.
    """

    def __init__(self, *, ramp_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ramp_s, self._clock = ramp_s, clock
        self._others = self.held = 0
        self._told_s = float("-inf")
        self._came_s = float("-inf")
        self._new = False
        self._opened: deque[float] = deque(maxlen=_OPENED_COUNT_MAX)

    def came(self) -> None:
        """It was connected to: nothing of what is known holds any more."""
        self._came_s, self._new = self._clock(), self._ramp_s > 0
        self._others = self.held = 0
        self._opened.clear()

    def told(self, under_way: int, *, ours: int) -> None:
        """It has said how many calls are under way there, when so many were ours."""
        self._others = max(0, under_way - ours)
        self._told_s = self._clock()

    def opened(self) -> None:
        """A session is opened there."""
        self._opened.append(self._clock())
        self.held += 1

    def calls(self, ours: int) -> int:
        """How many are under way, with so many of ours."""
        return ours + (self._others if self._others and self._clock() - self._told_s <= _TOLD_S else 0)

    def pressure(self, ours: int) -> float:
        """What decides who gets the next call: calls under way weigh more at one that is new, up to ten times; sessions
        to come do not, so that of a fleet with nothing to do it gets as many as the others.
        """
        opened = self._opened
        if opened:
            gone_s = self._clock() - _OPENED_S
            while opened and opened[0] < gone_s:
                opened.popleft()
        to_come = min(len(opened), self.held)  # some may be gone again
        calls = self.calls(ours)
        return calls / self.share + to_come if calls else to_come

    @property
    def share(self) -> float:
        """Of what it is to have once it has been here for long; 1 then."""
        if not self._new:
            return 1.0
        grown = (self._clock() - self._came_s) / self._ramp_s
        self._new = grown < 1
        return min(1.0, max(_SHARE_MIN, grown))
