"""What happened to every operation: counted by plateau and kind, timed in HDR histograms.

Latencies count from the intended start, so a server (or a client) that stalls is charged for all who had to wait
behind the stall, as wrk2 does (https://github.com/giltene/wrk2 names what goes wrong else: coordinated omission). An
open loop never waits for an answer before it means to send the next. A closed loop does, so a robot's decisions are
recorded with those that its own waiting left out (`record_corrected_value` of HDR histograms).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from hdrh.histogram import HdrHistogram

Ending = Literal["ok", "refused", "failed", "unsent", "interrupted"]
_LONGEST_US, _DIGITS = 3_600_000_000, 3
TIMED_OUT = "DEADLINE_EXCEEDED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one operation ended. `latency_s`: from its intended start to the answer that counts.

    `good`: answered within its deadline, and if it was a play, in time. `work`: chunks that it brought.
    `decisions_s`: of a robot, how long each decision took, in a loop that meant to make one each `period_s`.
    """

    ending: Ending
    latency_s: float
    good: bool = False
    reason: str = ""
    retry_info: bool = False
    work: int = 0
    chunk_count: int = 0  # of a play
    late_chunk_count: int = 0
    decisions_s: tuple[float, ...] = ()
    period_s: float = 0.0


def histogram() -> HdrHistogram:
    return HdrHistogram(1, _LONGEST_US, _DIGITS)


@dataclass
class Tally:
    """Outcomes of one kind in one plateau, or of several added up."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    good_count: int = 0
    work: int = 0
    good_work: int = 0
    chunk_count: int = 0
    late_chunk_count: int = 0
    silent_refusals: int = 0  # RESOURCE_EXHAUSTED without saying when to come again
    latency: HdrHistogram = field(default_factory=histogram)

    @property
    def total(self) -> int:
        """All that were meant to be sent, but for those that an interrupt left open."""
        return self.counts.total() - self.counts["interrupted"]

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.ending] += 1
        if outcome.reason:
            self.reasons[outcome.reason] += 1
        self.good_count += outcome.good
        self.work += outcome.work
        self.good_work += outcome.work if outcome.good else 0
        self.chunk_count += outcome.chunk_count
        self.late_chunk_count += outcome.late_chunk_count
        self.silent_refusals += outcome.ending == "refused" and not outcome.retry_info
        if outcome.decisions_s:
            for seconds in outcome.decisions_s:
                self.latency.record_corrected_value(_us(seconds), _us(outcome.period_s))
        elif outcome.ending == "ok" or outcome.reason == TIMED_OUT:
            # One that was given up had waited that long: left out, the worst would be missing.
            self.latency.record_value(_us(outcome.latency_s))

    def merge(self, other: "Tally") -> None:
        self.counts += other.counts
        self.reasons += other.reasons
        self.good_count += other.good_count
        self.work += other.work
        self.good_work += other.good_work
        self.chunk_count += other.chunk_count
        self.late_chunk_count += other.late_chunk_count
        self.silent_refusals += other.silent_refusals
        self.latency.add(other.latency)

    def share(self, ending: Ending) -> float:
        return self.counts[ending] / self.total if self.total else 0.0

    def seconds_at(self, percentile: float) -> float:
        """0 where nothing was timed."""
        if not self.latency.get_total_count():
            return 0.0
        return float(self.latency.get_value_at_percentile(percentile)) / 1e6


def summed(tallies: Iterable[Tally]) -> Tally:
    whole = Tally()
    for tally in tallies:
        whole.merge(tally)
    return whole


class Recorder:
    """Tallies by plateau and kind, and a line of time in `slice_count` parts."""

    def __init__(self, seconds: float, *, slice_count: int = 120) -> None:
        self.tallies: dict[tuple[int, str], Tally] = {}
        self.slice_s = max(1.0, seconds / slice_count)
        self.slices: dict[int, Tally] = {}

    def add(self, plateau: int, kind: str, at_s: float, outcome: Outcome) -> None:
        """One that was meant to start at `at_s` of the run."""
        self.tallies.setdefault((plateau, kind), Tally()).add(outcome)
        self.slices.setdefault(int(at_s / self.slice_s), Tally()).add(outcome)

    def of(self, *, plateaus: Iterable[int], kinds: Iterable[str]) -> Tally:
        """Those of some plateaus and kinds together."""
        wanted = {(plateau, kind) for plateau in plateaus for kind in kinds}
        return summed(tally for place, tally in self.tallies.items() if place in wanted)


def _us(seconds: float) -> int:
    return min(_LONGEST_US, max(1, round(seconds * 1e6)))
