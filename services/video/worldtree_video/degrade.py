"""Fewer function evaluations where a play's chunk would be late, and all of them again once there is time."""

from collections.abc import Callable, Sequence

# Back to more evaluations only after so many chunks in a row had time for them and a quarter to spare: else a play at
# the edge would change with every chunk, which a person sees more than a steady lower quality.
_CALM_CHUNKS, _SPARE = 4, 1.25


class NfeLadder:
    """The numbers of evaluations that a play may use: its own and those below it. With none below, it never yields."""

    def __init__(self, nfe: int, choices: Sequence[int] = ()) -> None:
        self._rungs = sorted({nfe, *(choice for choice in choices if choice < nfe)})
        self.nfe = nfe  # of the chunk chosen last
        self._calm_count = 0

    def choose(self, left_s: float, chunk_s: Callable[[int], float]) -> int:
        """The evaluations of a chunk that has `left_s` until it is due; `chunk_s`: what it takes by their number."""
        fitting = [nfe for nfe in self._rungs if chunk_s(nfe) <= left_s]
        roomy = [nfe for nfe in self._rungs if nfe > self.nfe and _SPARE * chunk_s(nfe) <= left_s]
        if self.nfe not in fitting:
            self.nfe = max(fitting, default=self._rungs[0])
            self._calm_count = 0
        elif not roomy:
            self._calm_count = 0
        else:
            self._calm_count += 1
            if self._calm_count >= _CALM_CHUNKS:
                self.nfe = max(roomy)
                self._calm_count = 0
        return self.nfe
