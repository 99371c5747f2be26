"""Which replicas fail one call after the other though they are up: they get no new calls for a while."""

import time
from collections.abc import Callable, Sequence

_LONGEST_S = 300.0


class Standing:
    """One replica's: `failure_limit` failures in a row send it away, each time for `base_s` longer, until a call that
    succeeds clears it.
    """

    def __init__(self, *, failure_limit: int, base_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failure_limit, self._base_s, self._clock = failure_limit, base_s, clock
        self._failures = 0
        self._times = 0  # sent away without a success since
        self._until_s = float("-inf")

    @property
    def away(self) -> bool:
        return self._clock() < self._until_s

    def succeeded(self) -> None:
        """A call."""
        self._failures = self._times = 0

    def cleared(self) -> None:
        """As if nothing had been."""
        self.succeeded()
        self._until_s = float("-inf")

    def failed(self) -> bool:
        """Whether that sends it away."""
        self._failures += 1
        if self._failures < self._failure_limit or self.away:
            return False
        self._failures = 0
        self._times += 1
        self._until_s = self._clock() + min(_LONGEST_S, self._times * self._base_s)
        return True


def sound(standings: Sequence[Standing]) -> list[bool]:
    """Which may have new calls: all that are not away, and all alike where most are, as it is not theirs then."""
    away = [each.away for each in standings]
    return [True] * len(away) if 2 * sum(away) > len(away) else [not each for each in away]
