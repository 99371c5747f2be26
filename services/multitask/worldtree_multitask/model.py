"""The network on ONNX Runtime: one session for ever whose weights are inputs, and one graph that makes them.

Weights that are embedded in a graph must not be replaced: `add_initializer` over them is silently wrong in part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from worldtree_runtime.inference import TensorSpec, check_signature, open_session
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.multitask_package import StoredMultitask

from worldtree_multitask.domain import Blend
from worldtree_multitask.merge_graph import merge_graph
from worldtree_multitask.package import Contents, Images
from worldtree_multitask.run_graph import LOGITS, RunLayout, run_graph

_TOLERANCE = 1e-4  # of the largest weight; measured: 1e-6
_LONE_PROBES = 8
_PART = 256  # images of a run for methods and scores


@dataclass(frozen=True)
class Weights:
    """Memory for a merge's weights, [parameters] arranged for the run: the merge graph writes there, and the network
    reads there. On another device than a CPU the network has a copy.
    """

    flat: NDArray[np.float32]  # what is bound is this memory, so it must live as long
    written: Any  # binding of the merge graph
    binding: Any  # binding of the network

    @property
    def byte_count(self) -> int:
        return self.flat.nbytes


class Model:
    """One package. `make` and `predict` are for one thread at a time; `network()` gives others theirs."""

    def __init__(self, stored: StoredMultitask, contents: Contents, *, device: str = "cpu", threads: int = 1) -> None:
        """Raises PackageError when the graph is not what `model.yaml` says, or does not answer as it should."""
        package = stored.package
        self.contents = contents
        self.task_names = package.task_names
        self._size = (package.image.height_px, package.image.width_px, package.image.channels)
        path = stored.folder / package.files.predict
        self._given = open_session(path, device=device, threads=threads)
        weights = [TensorSpec(place.name, "float", place.shape) for place in contents.layout.tensors]
        outputs = [TensorSpec(task.name, "float", (None, len(task.classes))) for task in package.tasks]
        check_signature(path, self._given, [TensorSpec("images", "uint8", (None, *self._size)), *weights], outputs)
        own, transposed = run_graph(path, {place.name for place in contents.layout.tensors}, self.task_names)
        self._predict = open_session(path, graph=own, device=device, threads=threads)
        ends = list(accumulate(len(task.classes) for task in package.tasks))
        self._columns = {
            task.name: slice(end - len(task.classes), end) for task, end in zip(package.tasks, ends, strict=True)
        }
        self._run_layout = RunLayout(contents.layout, transposed)
        self._in_place = device == "cpu"  # elsewhere what is bound is copied there at once
        self._spare: Weights | None = None
        arranged = [self._run_layout.arranged(each) for each in (contents.base, contents.task_vectors)]
        graph = merge_graph(contents.layout.layers, *arranged)
        self._merge = open_session(path, graph=graph, device=device, threads=threads)
        self._check(path)
        self.lone_differs = self._lone_differs()

    def make(self, blend: Blend) -> Weights:
        """A merge's weights, bound."""
        made, self._spare = self._spare or self._bound(), None
        if blend.coefficients is not None:
            made.written.bind_cpu_input("coefficients", blend.coefficients)
            self._merge.run_with_iobinding(made.written)
        else:
            assert blend.weights is not None, "a blend has coefficients or weights"
            made.flat[:] = self._run_layout.arranged(blend.weights)
        if not self._in_place:
            self._bind_inputs(made)
        return made

    def prepare(self) -> None:
        """Binds memory for the next merge, which takes about as long as making its weights: for when nobody waits."""
        if self._spare is None:
            self._spare = self._bound()

    def _bound(self) -> Weights:
        flat = np.zeros(self.contents.layout.size, np.float32)
        made = Weights(flat, self._merge.io_binding(), self._predict.io_binding())
        for layer, part in self.contents.layout.layers.items():
            own = flat[part]
            made.written.bind_output(layer, "cpu", 0, np.float32, (1, own.size), own.ctypes.data)
        if self._in_place:
            self._bind_inputs(made)
        return made

    def _bind_inputs(self, made: Weights) -> None:
        for name, view in self._run_layout.views(made.flat).items():
            made.binding.bind_cpu_input(name, view)

    def predict(self, weights: Weights, images: Images, tasks: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Logits [images, classes] of each task."""
        count = len(images)
        if count == 1 and self.lone_differs:
            # A product with one row is rounded otherwise than one with more: alone or in a batch must be the same.
            images = np.concatenate([images, images])
        binding = weights.binding
        binding.bind_cpu_input("images", np.ascontiguousarray(images))
        binding.clear_binding_outputs()  # one bound before has the size of its batch
        binding.bind_output(LOGITS)
        self._predict.run_with_iobinding(binding)
        logits = binding.copy_outputs_to_cpu()[0]
        return {task: logits[:count, self._columns[task]] for task in tasks}

    def network(self) -> "FlatNetwork":
        """The network for a method of merging, in whichever thread."""
        return FlatNetwork(self._given, self.contents)

    def _check(self, path: Any) -> None:
        """That the merge graph agrees with numpy, and that the network answers with the weights that it is given."""
        layout = self.contents.layout
        rng = np.random.default_rng(0)
        coefficients = rng.uniform(0.1, 1.0, (len(layout.layers), len(self.task_names))).astype(np.float32)
        expected = layout.combine(self.contents.base, self.contents.task_vectors, coefficients)
        made = self.make(Blend("", coefficients))
        off = float(np.abs(made.flat - self._run_layout.arranged(expected)).max())
        if not off <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise PackageError(path, "merge", f"the merge graph must agree with numpy; it is off by {off:g}")
        images = rng.integers(0, 256, (2, *self._size), np.uint8)
        bound = self.predict(made, images, self.task_names)
        given = self.network()
        for task in self.task_names:
            if not np.isfinite(bound[task]).all():
                raise PackageError(path, f"output {task}", "must be finite")
            off = float(np.abs(bound[task] - given.logits(expected, images, task)).max())
            if not off <= _TOLERANCE * max(1.0, float(np.abs(bound[task]).max())):
                raise PackageError(path, f"output {task}", f"differs by {off:g} between bound and given weights")

    def _lone_differs(self) -> bool:
        """Whether a run of one image rounds otherwise than one of more; looked for with all experts in the weights, as
        a base may be zero where they are not.
        """
        rng = np.random.default_rng(1)
        images = rng.integers(0, 256, (_LONE_PROBES, *self._size), np.uint8)
        shape = (len(self.contents.layout.layers), len(self.task_names))
        weights = self.make(Blend("", np.ones(shape, np.float32)))
        self.lone_differs = False
        together = self.predict(weights, images, self.task_names)
        for row in range(_LONE_PROBES):
            alone = self.predict(weights, images[row : row + 1], self.task_names)
            if any(not np.array_equal(alone[task][0], together[task][row]) for task in self.task_names):
                return True
        return False


class FlatNetwork:
    """`merging.Network`: a flat vector of weights and images in, logits out. For one thread; sessions may be shared.

    It is the package's own graph: methods move flat vectors as the package has them.
    """

    def __init__(self, session: Any, contents: Contents) -> None:
        self._session = session
        self._layout = contents.layout
        self._options = ort.RunOptions()
        self._options.only_execute_path_to_fetches = True
        self.evaluation_count = 0

    def logits(self, weights: NDArray[np.float32], images: Images, task: str) -> NDArray[np.float32]:
        feeds = self._layout.views(weights)
        parts = []
        for first in range(0, len(images), _PART):
            part = np.ascontiguousarray(images[first : first + _PART])
            parts.append(self._session.run([task], {**feeds, "images": part}, self._options)[0])
            self.evaluation_count += len(part)
        return np.concatenate(parts)
