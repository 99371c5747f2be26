"""How long a chunk that would only repeat an action waits for a control, instead of starting as soon as it may."""

# Of a period. What no play is promised, less what a tick in front may take (`agenda.LONGEST_OTHER`) and a little more,
# may be waited. But a chunk is to be there a quarter before it is due: the wait grows slowly and halves at once, so it
# settles below what the machine's hiccups leave.
_KEPT, _SPARE, _GROWTH = 0.15, 0.25, 1 / 32


class Patience:
    """The wait of one play, by the time that its chunks had to spare.

    A chunk that is started early for nothing makes the next control wait for the chunk after it. One that waits takes
    up the control that comes meanwhile, at once; what it waited is missing until its deadline.
    """

    def __init__(self, period_s: float) -> None:
        self.wait_s = 0.0
        self._period_s = period_s
        self._longest_s = 0.0

    def limit(self, load: float) -> None:
        """Plays are promised this share of the engine's time; they may be due all at once, and need it then."""
        self._longest_s = max(0.0, 1.0 - load - _KEPT) * self._period_s
        self.wait_s = min(self.wait_s, self._longest_s)

    def made(self, spare_s: float) -> None:
        """A chunk came so long before it was due, less what was made ahead of the clock."""
        if spare_s < _SPARE * self._period_s:
            self.wait_s /= 2
        else:
            self.wait_s = min(self.wait_s + _GROWTH * self._period_s, self._longest_s)
