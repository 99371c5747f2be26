"""What was inferred through the inference protocol, by model and version, since this gateway started."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2 as pb

from worldtree_gateway.oip_models import Model

_BATCH_SIZES_MAX = 1024  # of one model; services choose them, so there are few


@dataclass(slots=True)
class Spent:
    """Where the time of one answer went, in seconds, as its service tells it.

    `inference_count`: chunks, images or clips. `batch_size`: members of the run, of whichever request; 0: none ran.
    """

    inference_count: int = 0
    queue_s: float = 0.0
    infer_s: float = 0.0
    batch_size: int = 0
    cached: bool = False

    def add(self, other: "Spent") -> None:
        """Takes another answer to the same request in."""
        self.inference_count += other.inference_count
        self.queue_s += other.queue_s
        self.infer_s += other.infer_s
        self.batch_size = max(self.batch_size, other.batch_size)
        self.cached = self.cached or other.cached


@dataclass(slots=True)
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(max(0.0, seconds) * 1e9)

    def message(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(slots=True)
class _Counts:
    """Of one version of a model. The names are the protocol's."""

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    compute_input: _Duration = field(default_factory=_Duration)
    compute_infer: _Duration = field(default_factory=_Duration)
    compute_output: _Duration = field(default_factory=_Duration)
    cache_hit: _Duration = field(default_factory=_Duration)
    batches: dict[int, _Duration] = field(default_factory=dict)


class Statistics:
    """Counted here, as requests are answered: what other protocols are asked is not in it.

    A request that the cache answers counts as a success and a cache hit, and as no inference or execution, as the
    protocol wants it.
    """

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._counts: dict[tuple[str, str, str], _Counts] = {}

    def succeeded(self, model: Model, seconds: float, spent: Spent, *, input_s: float, output_s: float) -> None:
        """`seconds`: the whole request. `input_s`, `output_s`: reading its tensors, writing those of its answers."""
        counts = self._of(model)
        counts.last_inference_ms = round(self._wall() * 1000)
        counts.success.add(seconds)
        if spent.cached:
            counts.cache_hit.add(seconds)
            return
        counts.inference_count += spent.inference_count
        counts.execution_count += 1
        counts.queue.add(spent.queue_s)
        counts.compute_input.add(input_s)
        counts.compute_infer.add(spent.infer_s)
        counts.compute_output.add(output_s)
        if spent.batch_size and (spent.batch_size in counts.batches or len(counts.batches) < _BATCH_SIZES_MAX):
            counts.batches.setdefault(spent.batch_size, _Duration()).add(spent.infer_s)

    def failed(self, model: Model, seconds: float) -> None:
        """A request of a model that is known; what names none is nobody's failure."""
        counts = self._of(model)
        counts.last_inference_ms = round(self._wall() * 1000)
        counts.fail.add(seconds)

    def response(self, models: Sequence[Model]) -> pb.ModelStatisticsResponse:
        """Of these models; those that nobody has asked anything are all 0."""
        response = pb.ModelStatisticsResponse()
        for model in models:
            counts = self._counts.get((model.section, model.name, model.version), _Counts())
            stats = response.model_stats.add(
                name=model.name,
                version=model.version,
                last_inference=counts.last_inference_ms,
                inference_count=counts.inference_count,
                execution_count=counts.execution_count,
            )
            for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit"):
                getattr(stats.inference_stats, name).CopyFrom(getattr(counts, name).message())
            for batch_size, duration in sorted(counts.batches.items()):
                stats.batch_stats.add(batch_size=batch_size, compute_infer=duration.message())
        return response

    def _of(self, model: Model) -> _Counts:
        return self._counts.setdefault((model.section, model.name, model.version), _Counts())
