"""How fast somebody may use something up: the generic cell rate algorithm.

A bucket is one number, the time at which all that was used would have been used at the even rate (ITU-T I.371, annex A:
"theoretical arrival time"). Whoever is no more than the burst ahead of it may go on.
"""

from dataclasses import dataclass

_RESOLUTION_S = 1e-6  # of clocks; less is the rounding of sums


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units a second, and `burst` units at once."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        assert self.per_s > 0, f"per_s must be above 0, got {self.per_s}"
        assert self.burst > 0, f"burst must be above 0, got {self.burst}"

    @property
    def unit_s(self) -> float:
        """Seconds that one unit takes at the even rate."""
        return 1 / self.per_s

    @property
    def burst_s(self) -> float:
        return self.burst / self.per_s

    def used(self, arrival_s: float, now_s: float, units: float) -> tuple[float, float]:
        """The theoretical arrival time after `units` more, and the seconds to wait before they may be used; 0: none."""
        after_s = max(arrival_s, now_s) + units * self.unit_s
        wait_s = after_s - self.burst_s - now_s
        return after_s, wait_s if wait_s > _RESOLUTION_S else 0.0
