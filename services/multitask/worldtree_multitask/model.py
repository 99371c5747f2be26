"""The network on ONNX Runtime: one session for ever whose weights are inputs, and one graph that makes them.

Weights that are embedded in a graph must not be replaced: `add_initializer` over them is silently wrong in part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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

_TOLERANCE = 1e-4  # of the largest weight; measured: 1e-6
_LONE_PROBES = 8
_PART = 256  # images of a run for methods and scores


@dataclass(frozen=True)
class Weights:
    """A merge's tensors on the device, bound once to the inputs of the network."""

    values: dict[str, Any]  # OrtValue by tensor
    binding: Any
    byte_count: int


class Model:
    """One package. `make` and `predict` are for one thread at a time; `network()` gives others theirs."""

    def __init__(self, stored: StoredMultitask, contents: Contents, *, device: str = "cpu", threads: int = 1) -> None:
        """Raises PackageError when the graph is not what `model.yaml` says, or does not answer as it should."""
        package = stored.package
        self.contents = contents
        self.task_names = package.task_names
        self._size = (package.image.height_px, package.image.width_px, package.image.channels)
        self._device = device
        path = stored.folder / package.files.predict
        self._predict = open_session(path, device=device, threads=threads)
        weights = [TensorSpec(place.name, "float", place.shape) for place in contents.layout.tensors]
        outputs = [TensorSpec(task.name, "float", (None, len(task.classes))) for task in package.tasks]
        check_signature(path, self._predict, [TensorSpec("images", "uint8", (None, *self._size)), *weights], outputs)
        graph = merge_graph(contents.layout, contents.base, contents.task_vectors)
        self._merge = open_session(path, graph=graph, device=device, threads=threads)
        self._check(path)
        self.lone_differs = self._lone_differs()

    def make(self, blend: Blend) -> Weights:
        """A merge's weights on the device."""
        layout = self.contents.layout
        if blend.coefficients is not None:
            binding = self._merge.io_binding()
            binding.bind_cpu_input("coefficients", blend.coefficients)
            for place in layout.tensors:
                binding.bind_output(place.name, self._device)
            self._merge.run_with_iobinding(binding)
            made = dict(zip([place.name for place in layout.tensors], binding.get_outputs(), strict=True))
        else:
            assert blend.weights is not None, "a blend has coefficients or weights"
            # Views share the vector's memory on a CPU, and the vector lives as long as they do.
            made = {
                name: ort.OrtValue.ortvalue_from_numpy(view, self._device)
                for name, view in layout.views(blend.weights).items()
            }
        binding = self._predict.io_binding()
        for name, value in made.items():
            binding.bind_ortvalue_input(name, value)
        return Weights(made, binding, 4 * layout.size)

    def predict(self, weights: Weights, images: Images, tasks: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Logits [images, classes] of each task."""
        count = len(images)
        if count == 1 and self.lone_differs:
            # A product with one row is rounded otherwise than one with more: alone or in a batch must be the same.
            images = np.concatenate([images, images])
        binding = weights.binding
        binding.bind_cpu_input("images", np.ascontiguousarray(images))
        binding.clear_binding_outputs()
        for task in tasks:
            binding.bind_output(task)
        self._predict.run_with_iobinding(binding)
        return {task: out[:count] for task, out in zip(tasks, binding.copy_outputs_to_cpu(), strict=True)}

    def network(self) -> "FlatNetwork":
        """The network for a method of merging, in whichever thread."""
        return FlatNetwork(self._predict, self.contents)

    def _check(self, path: Any) -> None:
        """That the merge graph agrees with numpy, and that the network answers with the weights that it is given."""
        layout = self.contents.layout
        rng = np.random.default_rng(0)
        coefficients = rng.uniform(0.1, 1.0, (len(layout.layers), len(self.task_names))).astype(np.float32)
        expected = layout.combine(self.contents.base, self.contents.task_vectors, coefficients)
        made = self.make(Blend("", coefficients))
        for name, view in layout.views(expected).items():
            found = made.values[name].numpy()
            off = float(np.abs(found - view).max(initial=0.0))
            if not off <= _TOLERANCE * max(1.0, float(np.abs(view).max(initial=0.0))):
                raise PackageError(path, name, f"the merge graph must agree with numpy; it is off by {off:g}")
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
    """`merging.Network`: a flat vector of weights and images in, logits out. For one thread; sessions may be shared."""

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
