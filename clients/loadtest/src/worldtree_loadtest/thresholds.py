"""Whether a run reached what its scenario asks of the server."""

from collections.abc import Sequence
from dataclasses import dataclass

from worldtree_loadtest.scenario import Threshold
from worldtree_loadtest.summary import Summary


@dataclass(frozen=True, slots=True)
class Verdict:
    """A threshold and the figure that it was held against. `value` None: nothing was seen that it is about."""

    threshold: Threshold
    value: float | None

    @property
    def holds(self) -> bool:
        # What was not seen was not shown to hold.
        if self.value is None:
            return False
        if self.threshold.at_most is not None:
            return self.value <= self.threshold.at_most
        return self.threshold.at_least is not None and self.value >= self.threshold.at_least

    @property
    def name(self) -> str:
        where = [part for part in (self.threshold.operation, self.threshold.phase) if part]
        return f"{self.threshold.metric} of {', '.join(where)}" if where else self.threshold.metric

    @property
    def limit(self) -> str:
        most, least = self.threshold.at_most, self.threshold.at_least
        return f"≤ {most:g}" if most is not None else f"≥ {least:g}"

    @property
    def text(self) -> str:
        return "nothing was seen" if self.value is None else f"{self.value:.4g}"


def judge(summary: Summary) -> Sequence[Verdict]:
    """All thresholds of the scenario, in its order."""
    return [Verdict(threshold, summary.value(threshold)) for threshold in summary.recording.scenario.thresholds]
