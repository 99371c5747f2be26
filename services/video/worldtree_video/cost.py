"""What a tick costs in seconds, by its members: timed at load, then kept up with the ticks that are really run."""

from collections.abc import Mapping

# A new tick moves its estimate by a tenth, and counts for at most twice what was expected: one hiccup of a shared
# machine must neither refuse plays nor degrade them, and a machine that did get slower is known after a few ticks.
_WEIGHT, _OUTLIER = 0.1, 2.0


class _Curve:
    """Seconds by count: straight between the counts that are known, and on along the last slope beyond them."""

    def __init__(self, seconds: Mapping[int, float]) -> None:
        self._seconds = dict(sorted(seconds.items()))

    def at(self, count: int) -> float:
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

    def observe(self, count: int, seconds: float) -> None:
        expected = self.at(count)
        if expected <= 0.0:
            self._seconds[count] = seconds
        else:
            self._seconds[count] = expected + _WEIGHT * (min(seconds, _OUTLIER * expected) - expected)


class CostModel:
    """Estimates of the engine's time. `denoise_seconds`: one evaluation by batch size, as timed at load.

    With nothing timed all is free until the first ticks have been seen.
    """

    def __init__(self, denoise_seconds: Mapping[int, float]) -> None:
        self._denoise = _Curve(denoise_seconds)
        # A commit is one more run of the network: a first guess, until the first has been seen.
        self._commit = _Curve(denoise_seconds)

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
