"""When a new play's clock starts, so that the chunks of plays come one after another and not all at once.

Plays at one fps keep their places in the period for good. Two that start their chunks at the same moment make one of
them wait each time, and behind a row of them every hiccup of the ones before adds up: the control of the last is late
although nobody's deadline is missed. A short wait before the first chunk spares all of that.
"""

from collections.abc import Iterable


def start_delay_s(now: float, period_s: float, own_s: float, others: Iterable[tuple[float, float]]) -> float:
    """How long the first chunk should wait, less than a period. `own_s`: the place that its chunks take.

    `others`: when each other play starts its next chunk, and the place that its chunks take. What is not free anywhere
    in the period is put into the middle of the widest gap. (For other periods than one's own the places wander; then
    the answer is as good as any.)
    """
    places = sorted(((start_s - now) % period_s, place_s) for start_s, place_s in others)
    if not places:
        return 0.0
    # The gap after each place, up to the start of the next; the last one goes on into the next period.
    gaps = []
    for index, (start_s, place_s) in enumerate(places):
        next_s = places[index + 1][0] if index + 1 < len(places) else places[0][0] + period_s
        gaps.append((start_s + place_s, next_s))
    first_end_s, first_start_s = gaps[-1]
    gaps.append((first_end_s - period_s, first_start_s - period_s))
    fitting = [max(0.0, begin_s) for begin_s, end_s in gaps if end_s - max(0.0, begin_s) >= own_s]
    if fitting:
        return min(fitting) % period_s
    begin_s, end_s = max(gaps, key=lambda gap: gap[1] - gap[0])
    return max(0.0, (begin_s + end_s - own_s) / 2) % period_s
