"""Where a ramp's goodput stops following the offered load, and what becomes of it beyond that."""

from collections.abc import Sequence
from dataclasses import dataclass

_FOLLOWS = 0.95  # of what was offered: less, and the plateau is past the knee


@dataclass(frozen=True, slots=True)
class Point:
    """One plateau of a ramp: operations a second that were offered, and that came back good."""

    offered_per_s: float
    good_per_s: float
    good_work_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Knee:
    """`offered_per_s`: the highest load that was still answered. `past_share`: of the best goodput of the whole ramp,
    the least that was seen beyond the knee; None: the ramp never went beyond it."""

    offered_per_s: float
    good_per_s: float
    good_work_per_s: float
    past_share: float | None


def find_knee(points: Sequence[Point]) -> Knee | None:
    """Of a ramp in rising order. None: already its first plateau was too much.

    The last plateau that was answered ends it, so that one slow second within the ramp is not taken for its knee.
    """
    kept = [index for index, point in enumerate(points) if point.good_per_s >= _FOLLOWS * point.offered_per_s]
    if not kept:
        return None
    at = points[kept[-1]]
    best = max(point.good_per_s for point in points)
    past = [point.good_per_s / best for point in points[kept[-1] + 1 :]]
    # Just past the knee a little more may come back good than at it: that is the server's throughput there.
    nearby = points[kept[-1] : kept[-1] + 2]
    return Knee(
        at.offered_per_s,
        max(point.good_per_s for point in nearby),
        max(point.good_work_per_s for point in nearby),
        min(past) if past else None,
    )
