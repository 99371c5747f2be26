"""How good something is believed to be, and what is then better than what: numbers only, no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Opinion:
    """A normal belief. Two are compared by the chance that a draw of one is greater (Thurstone, case V)."""

    mean: float
    deviation: float

    def chance_over(self, other: "Opinion") -> float:
        """That this one is better, 0 to 1; 0.5 where either says nothing."""
        spread = math.hypot(self.deviation, other.deviation)
        if not math.isfinite(spread):
            return 0.5
        return 0.5 * (1 + math.erf((self.mean - other.mean) / spread / math.sqrt(2)))


def ranks(rewards: Sequence[Opinion], tie_below: float) -> list[tuple[int, int]]:
    """(index, rank) best first; one that cannot be told apart from the first of a rank shares it."""
    order = sorted(range(len(rewards)), key=lambda index: (-rewards[index].mean, index))
    found: list[tuple[int, int]] = []
    first, rank = None, 0
    for place, index in enumerate(order, start=1):
        if first is None or rewards[first].chance_over(rewards[index]) >= 0.5 + tie_below:
            first, rank = index, place
        found.append((index, rank))
    return found
