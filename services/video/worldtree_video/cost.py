"""What a tick costs in seconds, by its members: timed at load, then kept up with the ticks that are really run."""

import math
from collections.abc import Mapping

# One hiccup of a shared machine must neither refuse plays nor degrade them, and a machine that did get slower is to be
# known after some dozen ticks: a tick counts for a twentieth, and for at most four times what was expected. Cut off
# lower, the rare long ticks of a busy machine would be missing from the mean.
_WEIGHT, _SHARED_WEIGHT, _OUTLIER = 0.05, 0.005, 4.0


class _Curve:
    """Seconds by count: a shape, straight between the counts that are known and on along the last slope beyond them.

    What is seen moves the size that was seen, and slowly the whole shape: sizes that were not run lately keep up with a
    machine that gets slower.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._seconds = dict(sorted(seconds.items()))
        self._scale = 1.0
        self._own: dict[int, float] = {}

    def at(self, count: int) -> float:
        """Never more than what a larger size takes: so one that was timed in a bad moment heals by the others."""
        own = self._shape(count) * self._scale * self._own.get(count, 1.0)
        larger = (self._shape(other) * self._own.get(other, 1.0) for other in self._seconds if other > count)
        return min(own, self._scale * min(larger, default=math.inf))

    def observe(self, count: int, seconds: float) -> None:
        expected = self.at(count)
        if expected <= 0.0:
            self._seconds[count] = seconds
            return
        ratio = min(seconds / expected, _OUTLIER)
        own = self._own.get(count, 1.0)
        moved = 1.0 + _WEIGHT * (ratio - 1.0)
        shared = 1.0 + _SHARED_WEIGHT * (ratio * own - 1.0)
        self._scale *= shared
        self._own[count] = own * moved / shared

    def _shape(self, count: int) -> float:
        known = self._seconds
        if count in known:
            return known[count]
        below = max((other for other in known if other < count), default=None)
        above = min((other for other in known if other > count), default=None)
        if below is None:
            # Nothing smaller was timed: a smaller batch takes at most as long.
            return known[above] if above is not None else 0.0
        if above is None:
            before = max((other for other in known if other < below), default=0)
            slope = (known[below] - known.get(before, 0.0)) / (below - before)
            return known[below] + max(0.0, slope) * (count - below)
        return known[below] + (known[above] - known[below]) * (count - below) / (above - below)


class CostModel:
    """Estimates of the engine's time. As timed at load: one evaluation by batch size, and the commit of one member.

    With nothing timed all is free until the first ticks have been seen.
    """

    def __init__(self, denoise_seconds: Mapping[int, float], *, commit_s: float | None = None) -> None:
        self._denoise = _Curve(denoise_seconds)
        # A commit is one more run of the network: what an evaluation takes is a first guess.
        self._commit = _Curve(denoise_seconds if commit_s is None else {1: commit_s})

    def denoise_s(self, member_count: int) -> float:
        """One evaluation of so many members together, 1 or more."""
        return self._denoise.at(member_count)

    def commit_s(self, member_count: int) -> float:
        """One commit of so many members together, 1 or more."""
        return self._commit.at(member_count)

    def chunk_s(self, nfe: int, member_count: int = 1) -> float:
        """A chunk of `nfe` evaluations from its start to its end, always in the company of as many members."""
        return nfe * self.denoise_s(member_count) + self.commit_s(member_count)

    def together(self, limit: int, stretch: float) -> int:
        """How many members share a tick that takes at most `stretch` times as long as that of one, 1 to `limit`.

        All of them where a batch costs what a member does (a GPU), 1 where its cost grows with each (a CPU).
        """
        allowed_s = stretch * self.denoise_s(1)
        count = 1
        while count < limit and self.denoise_s(count + 1) <= allowed_s:
            count += 1
        return count

    def within(self, limit: int, seconds: float) -> int:
        """How many members a tick may have to end within so many seconds, 1 to `limit`: one is always let in."""
        count = limit
        while count > 1 and self.denoise_s(count) > seconds:
            count -= 1
        return count

    def observe(self, *, denoised_count: int, denoise_s: float, committed_count: int, commit_s: float) -> None:
        """One tick that was run: seconds of its evaluations and of its commits, 0 members where it had none."""
        if denoised_count:
            self._denoise.observe(denoised_count, denoise_s)
        if committed_count:
            self._commit.observe(committed_count, commit_s)


class Overhead:
    """How much longer the engine takes than its graphs do: by what is done between ticks, and by who else is at work.

    Learnt while work is waiting only: a tick that waited for work says nothing.
    """

    def __init__(self) -> None:
        self._ratio = 1.0
        self._since_s: float | None = None

    def after(self, now: float | None) -> None:
        """A tick has ended `now`, and more is to be done; None: nothing is."""
        self._since_s = now

    def observe(self, begun_s: float, ended_s: float, graphs_s: float) -> None:
        """A tick of graphs that took so long in all."""
        if graphs_s > 0.0:
            since_s = begun_s if self._since_s is None else self._since_s
            ratio = min((ended_s - since_s) / graphs_s, _OUTLIER)
            self._ratio += _WEIGHT * (ratio - self._ratio)

    def stretched(self, seconds: float) -> float:
        """So many seconds of graphs, in seconds of the clock."""
        return seconds * self._ratio
