"""What a merge at request time costs against files of weights, and one merged network against its experts.

- A fixed model is `predict.onnx` with a merge's weights embedded as constants, which ONNX Runtime packs as it likes:
  what a toolkit's exported merge would be. A run of the service has its weights as inputs.
- A new preference: its weights made by the merge graph, and the first prediction with them, against one prediction of a
  fixed model; and against writing that model's file, loading it and predicting. As in the service, memory for the next
  merge was bound while nobody waited.
- Warm: a run with weights that were made before, against the fixed model on the same batch, and what the difference is
  of a whole request to the service over gRPC with one image.
- Throughput: all tasks by one merged network, against each task by its own fixed expert, one after another.
- Memory: the process before and after 32 merges were made, and what the shelf counts.

One thread, rounds that interleave what is compared, medians.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc.aio
import numpy as np
import onnx
import onnxruntime as ort
import typer
from numpy.typing import NDArray
from onnx import numpy_helper
from report import Bar, Row, median, median_ratio, publish
from usage import resident_bytes
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1.multi_task_pb2_grpc import MultiTaskStub
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.domain import Blend, blend_of
from worldtree_multitask.merging.preference import blend_corners
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.model import Weights
from worldtree_multitask.served import Served
from worldtree_multitask.serving import serve_multitask
from worldtree_runtime.metrics import process_registry
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.multitask_package import MultitaskPackage

ROOT = Path(__file__).parents[1]
BATCHES = (1, 2, 8, 32)
LIVE = 32


class Bench:
    """The shipped package, as the service has it, and fixed models of its merges."""

    def __init__(self, scratch: Path) -> None:
        (stored,) = ModelRepository(ROOT / "models", MultitaskPackage).scan()
        self.served = Served(stored, MultitaskSettings(), MultitaskMetrics(process_registry()))
        self.model = self.served.model
        self.tasks = self.model.task_names
        self._graph = onnx.load(stored.folder / stored.package.files.predict)
        self._scratch = scratch
        self._rng = np.random.default_rng(0)

    def preference(self) -> Blend:
        """A preference nobody asked for before, as a blend."""
        shares = self._rng.dirichlet(np.ones(len(self.tasks))).astype(np.float32)
        corners = self.model.contents.corners
        assert corners is not None, "the shipped package has a map of preferences"
        return blend_of(self.served.stored.digest, blend_corners(shares, corners), None)

    def images(self, count: int) -> NDArray[np.uint8]:
        size = self.served.package.image
        return self._rng.integers(0, 256, (count, size.height_px, size.width_px, 3), np.uint8)

    def flat(self, blend: Blend) -> NDArray[np.float32]:
        contents = self.model.contents
        assert blend.coefficients is not None, "a preference only adds"
        return contents.layout.combine(contents.base, contents.task_vectors, blend.coefficients)

    def export(self, flat: NDArray[np.float32], tasks: Sequence[str], name: str) -> Path:
        """Writes a fixed model of some tasks; its file."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self._graph)
        weights = self.model.contents.layout.views(flat)
        inputs = [each for each in graph.graph.input if each.name not in weights]
        del graph.graph.input[:]
        graph.graph.input.extend(inputs)
        graph.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
        outputs = [each for each in graph.graph.output if each.name in tasks]
        del graph.graph.output[:]
        graph.graph.output.extend(outputs)
        file = self._scratch / f"{name}.onnx"
        onnx.save(graph, file)
        return file


def opened(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def timed(act: Callable[[], Any]) -> float:
    begun_s = time.perf_counter()
    act()
    return time.perf_counter() - begun_s


def interleaved(
    acts: Sequence[Callable[[], Any]], rounds: int, before: Callable[[], None] = lambda: None
) -> list[list[float]]:
    """Seconds of each act, round by round; the first rounds are not counted, nor what is done `before` each act."""
    for act in acts:
        act()
        act()
    found: list[list[float]] = [[] for _ in acts]
    for number in range(rounds):
        order = range(len(acts)) if number % 2 else reversed(range(len(acts)))
        for index in order:
            before()
            found[index].append(timed(acts[index]))
    return found


def new_preference(bench: Bench, rounds: int) -> tuple[list[Row], list[Bar]]:
    """A preference made and answered, a fixed model's prediction, and a fixed model made and answered."""
    image = bench.images(1)
    fixed = opened(bench.export(bench.flat(bench.preference()), bench.tasks, "fixed"))
    blends = iter([bench.preference() for _ in range(rounds + 2)])

    def ours() -> None:
        bench.model.predict(bench.model.make(next(blends)), image, bench.tasks)

    def exported() -> None:
        opened(bench.export(bench.flat(bench.preference()), bench.tasks, "exported")).run(None, {"images": image})

    seconds = interleaved(
        [ours, lambda: fixed.run(None, {"images": image}), exported], rounds, before=bench.model.prepare
    )
    rows: list[Row] = [
        {
            "what": what,
            "batch": 1,
            "ms": 1e3 * median(each),
            "against a fixed prediction": median_ratio(each, seconds[1]),
        }
        for what, each in zip(("new preference, answered", "fixed model", "new file, answered"), seconds, strict=True)
    ]
    bars = [
        Bar("new_preference_per_prediction", median_ratio(seconds[0], seconds[1]), 25.0, "lower"),
        Bar("new_preference_per_exported_file", median_ratio(seconds[0], seconds[2]), 0.1, "lower"),
    ]
    return rows, bars


async def request_seconds(images: NDArray[np.uint8], rounds: int) -> float:
    """Median of a warm Predict with one preference, over gRPC, the service in this process."""
    tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=images.shape, data=images.tobytes())
    request = pb.PredictRequest(
        images=common.Frames(tensor=tensor), preference=pb.Preference(weights=[1, 2, 3, 4, 5, 6])
    )
    settings = MultitaskSettings(port=0, metrics_port=0, models=str(ROOT / "models"), drain_timeout_s=0)
    async with serve_multitask(settings) as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        predict = MultiTaskStub(channel).Predict
        seconds = []
        for _ in range(rounds + 5):
            begun_s = time.perf_counter()
            await predict(request)
            seconds.append(time.perf_counter() - begun_s)
    return median(seconds[5:])


def warm(bench: Bench, rounds: int) -> tuple[list[Row], list[Bar]]:
    """Weights as inputs against weights as constants, batch by batch."""
    blend = bench.preference()
    weights, fixed = bench.model.make(blend), opened(bench.export(bench.flat(blend), bench.tasks, "warm"))
    rows: list[Row] = []
    lone_s: list[float] = []
    for batch in BATCHES:
        images = bench.images(batch)
        seconds = interleaved(
            [
                lambda images=images: bench.model.predict(weights, images, bench.tasks),  # type: ignore[misc]
                lambda images=images: fixed.run(None, {"images": images}),  # type: ignore[misc]
            ],
            rounds,
        )
        ours_s, fixed_s = map(median, seconds)
        lone_s = lone_s or [ours_s, fixed_s]
        rows += [
            {"what": "warm merge", "batch": batch, "ms": 1e3 * ours_s, "against a fixed prediction": ours_s / fixed_s},
            {"what": "fixed model", "batch": batch, "ms": 1e3 * fixed_s, "against a fixed prediction": 1.0},
        ]
    request_s = asyncio.run(request_seconds(bench.images(1), rounds))
    more_s = lone_s[0] - lone_s[1]
    rows.append(
        {
            "what": "warm request over gRPC",
            "batch": 1,
            "ms": 1e3 * request_s,
            "against a fixed prediction": request_s / lone_s[1],
        }
    )
    return rows, [Bar("warm_request_per_fixed_request", request_s / (request_s - more_s), 1.1, "lower")]


def throughput(bench: Bench, rounds: int) -> tuple[list[Row], list[Bar]]:
    """All tasks by one merge, and each by its own expert."""
    contents = bench.model.contents
    experts = [
        opened(bench.export(contents.base + vector, [task], f"expert-{task}"))
        for task, vector in zip(bench.tasks, contents.task_vectors, strict=True)
    ]
    weights = bench.model.make(bench.preference())
    rows: list[Row] = []
    ratios = []
    for batch in BATCHES[1:]:
        images = bench.images(batch)
        seconds = interleaved(
            [
                lambda images=images: bench.model.predict(weights, images, bench.tasks),  # type: ignore[misc]
                lambda images=images: [expert.run(None, {"images": images}) for expert in experts],  # type: ignore[misc]
            ],
            rounds,
        )
        ratios.append(median_ratio(seconds[1], seconds[0]))
        rows.append(
            {
                "what": f"{len(experts)} experts, one after another",
                "batch": batch,
                "ms": 1e3 * median(seconds[1]),
                "against a fixed prediction": ratios[-1],
            }
        )
    return rows, [Bar("merged_throughput_per_experts", statistics.median(ratios), 4.0, "higher")]


def live_memory(bench: Bench) -> tuple[list[Row], dict[str, float]]:
    """What 32 merges take: counted, and as the process grew. Never a bar: the allocator rounds as it likes."""
    image = bench.images(2)
    before = resident_bytes(os.getpid())
    kept: list[Weights] = [bench.model.make(bench.preference()) for _ in range(LIVE)]
    for weights in kept:
        bench.model.predict(weights, image, bench.tasks)
    grown = resident_bytes(os.getpid()) - before
    counted = sum(weights.byte_count for weights in kept)
    keys = {"live_merges_counted_mib": counted / 2**20, "live_merges_resident_mib": grown / 2**20}
    row: Row = {"what": f"{LIVE} live merges: {keys['live_merges_counted_mib']:.1f} MiB counted, "
                f"{keys['live_merges_resident_mib']:.1f} MiB of the process",
                "batch": LIVE, "ms": float("nan"), "against a fixed prediction": float("nan")}  # fmt: skip
    return [row], keys


def main(
    rounds: Annotated[int, typer.Option(help="Of each comparison.")] = 200,
    quick: Annotated[bool, typer.Option("--quick", help="A look, in seconds.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
) -> None:
    """Measures merging at request time on the shipped experts; the bars are told, and fail nothing."""
    rounds = min(rounds, 20) if quick else rounds
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        found = [new_preference(bench, rounds // 2), warm(bench, rounds), throughput(bench, rounds // 2)]
        memory, keys = live_memory(bench)
    rows = [row for part, _ in found for row in part] + memory
    bars = [bar for _, part in found for bar in part]
    settings = {"rounds": rounds, "quick": quick, "model": bench.served.stored.name, "threads": 1}
    publish("merging at request time", rows, bars, settings=settings, keys=keys, json_file=json_file)


if __name__ == "__main__":
    typer.run(main)
