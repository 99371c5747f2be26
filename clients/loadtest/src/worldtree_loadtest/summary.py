"""A recording in figures: what the JSON holds, the thresholds judge and the page draws."""

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import grpc

from worldtree_loadtest.generator import Recording
from worldtree_loadtest.knee import Knee, Point, find_knee
from worldtree_loadtest.recorder import Tally
from worldtree_loadtest.scenario import Threshold
from worldtree_loadtest.schedule import Plateau

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0)


class Summary:
    """Figures of a recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.kinds = [operation.kind for operation in recording.scenario.operations]
        self.knee = self._knee()

    @property
    def measured(self) -> list[int]:
        """The plateaus that count, those that had begun when the run ended."""
        plateaus = enumerate(self.recording.plateaus)
        return [index for index, each in plateaus if each.measured and each.begin_s < self.recording.ran_s]

    def tally(self, *, kind: str | None = None, phase: str | None = None) -> Tally:
        """All that was measured, or what was of a kind, or in a phase (also one that is not measured)."""
        plateaus: Iterable[int] = self.measured
        if phase is not None:
            plateaus = [index for index, each in enumerate(self.recording.plateaus) if each.phase == phase]
        return self.recording.recorder.of(plateaus=plateaus, kinds=self.kinds if kind is None else [kind])

    def seconds(self, phase: str | None = None) -> float:
        """How long that was."""
        return sum(
            self._ran(each)
            for index, each in enumerate(self.recording.plateaus)
            if (index in self.measured if phase is None else each.phase == phase)
        )

    def value(self, threshold: Threshold) -> float | None:
        """The figure that a threshold is about; None: there is none, as of a ramp that found no knee."""
        metric = threshold.metric
        if metric in ("goodput_past_knee", "knee_per_s"):
            if self.knee is None:
                return None
            return self.knee.past_share if metric == "goodput_past_knee" else self.knee.offered_per_s
        tally = self.tally(kind=threshold.operation, phase=threshold.phase)
        if not tally.total:
            return None
        match metric:
            case "error_share":
                return tally.share("failed") + tally.share("unsent")
            case "refused_share":
                return tally.share("refused")
            case "unsent_share":
                return tally.share("unsent")
            case "goodput_share":
                return tally.good_count / tally.total
            case "goodput_per_s":
                return tally.good_count / max(self.seconds(threshold.phase), 1e-9)
            case "late_chunk_share":
                return tally.late_chunk_count / tally.chunk_count if tally.chunk_count else None
            case "refused_without_retry_info":
                return float(tally.silent_refusals)
            case "max_s":
                return tally.seconds_at(100.0)
            case _:
                return tally.seconds_at({"p50_s": 50.0, "p90_s": 90.0, "p99_s": 99.0, "p999_s": 99.9}[metric])

    def document(self) -> dict[str, Any]:
        """Everything, as it stands in the JSON."""
        recording = self.recording
        return {
            "scenario": recording.scenario.model_dump(mode="json"),
            "machine": {
                "cores": os.cpu_count(),
                "processor": platform.machine(),
                "python": platform.python_version(),
                "grpc": grpc.__version__,
            },
            "interrupted": recording.interrupted,
            "ran_s": round(recording.ran_s, 3),
            "send_delay_max_s": round(recording.send_delay_max_s, 6),
            "all": figures(self.tally(), self.seconds()),
            "operations": {kind: figures(self.tally(kind=kind), self.seconds()) for kind in self.kinds},
            "plateaus": [
                self._plateau(index, plateau)
                for index, plateau in enumerate(recording.plateaus)
                if plateau.begin_s < recording.ran_s
            ],
            "knee": None if self.knee is None else asdict(self.knee),
            "timeline": [
                {"at_s": number * recording.recorder.slice_s, **figures(tally, recording.recorder.slice_s)}
                for number, tally in sorted(recording.recorder.slices.items())
            ],
        }

    def _ran(self, plateau: Plateau) -> float:
        return max(0.0, min(plateau.end_s, self.recording.ran_s) - plateau.begin_s)

    def _plateau(self, index: int, plateau: Plateau) -> dict[str, Any]:
        tally = self.recording.recorder.of(plateaus=[index], kinds=self.kinds)
        return {
            "name": plateau.name,
            "seconds": round(self._ran(plateau), 3),
            "offered_per_s": plateau.rate_per_s,
            "measured": plateau.measured,
            **figures(tally, max(self._ran(plateau), 1e-9)),
        }

    def _knee(self) -> Knee | None:
        whole = [
            (index, each)
            for index, each in enumerate(self.recording.plateaus)
            if each.climbs and each.measured and each.end_s <= self.recording.ran_s + 0.01
        ]
        points = []
        for index, plateau in whole:
            tally = self.recording.recorder.of(plateaus=[index], kinds=self.kinds)
            seconds = plateau.seconds
            points.append(Point(tally.total / seconds, tally.good_count / seconds, tally.good_work / seconds))
        return find_knee(points)


def figures(tally: Tally, seconds: float) -> dict[str, Any]:
    """A tally in plain numbers."""
    latency = {f"p{str(rank).removesuffix('.0').replace('.', '')}_s": tally.seconds_at(rank) for rank in PERCENTILES}
    return {
        "count": tally.total,
        "ok": tally.counts["ok"],
        "good": tally.good_count,
        "refused": tally.counts["refused"],
        "failed": tally.counts["failed"],
        "unsent": tally.counts["unsent"],
        "interrupted": tally.counts["interrupted"],
        "per_s": tally.total / seconds,
        "refused_per_s": tally.counts["refused"] / seconds,
        "failed_per_s": (tally.counts["failed"] + tally.counts["unsent"]) / seconds,
        "good_per_s": tally.good_count / seconds,
        "good_work_per_s": tally.good_work / seconds,
        "work": tally.work,
        "chunks": tally.chunk_count,
        "late_chunks": tally.late_chunk_count,
        "refused_without_retry_info": tally.silent_refusals,
        "reasons": dict(tally.reasons.most_common()),
        "latency": {**latency, "max_s": tally.seconds_at(100.0), "timed": tally.latency.get_total_count()},
        "curve": [[rank, tally.seconds_at(rank)] for rank in _CURVE],
    }
