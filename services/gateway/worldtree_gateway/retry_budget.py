"""How many calls may be sent a second time: a part of those that come, so that trouble is not made worse by trying."""

import math
import time
from collections.abc import Callable

_WINDOW_S = 10.0


class RetryBudget:
    """A share `ratio` of the calls of the last ten seconds or so, and `per_s` a second beyond them, as Finagle's
    RetryBudget and Linkerd's have it. Credit fades rather than expires, which needs one number and no window.
    """

    def __init__(self, *, ratio: float, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ratio, self._reserve, self._clock = ratio, per_s * _WINDOW_S, clock
        self._credit = 0.0  # fades to 0 from both sides, so that `per_s` comes back where it was overdrawn
        self._faded_s = clock()

    def earn(self) -> None:
        """A call has come."""
        self._fade()
        self._credit += self._ratio

    def spend(self) -> bool:
        """Whether one more call may be sent; if so, it is paid."""
        self._fade()
        if self._credit + self._reserve < 1:
            return False
        self._credit -= 1
        return True

    def _fade(self) -> None:
        now_s = self._clock()
        self._credit *= math.exp((self._faded_s - now_s) / _WINDOW_S)
        self._faded_s = now_s
