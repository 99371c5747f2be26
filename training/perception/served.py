"""The package in onnxruntime as methods of merging see it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file
from worldtree_multitask.merging import Layout
from worldtree_runtime.multitask_package import MultitaskPackage

DEFAULT_PACKAGE = Path("models/perception/1")
_PART = 256  # images a run


class OnnxNetwork:
    """`worldtree_multitask.merging.Network` over predict.onnx, one thread."""

    def __init__(self, file: Path, layout: Layout) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._layout = layout
        self.evaluation_count = 0

    def logits(self, weights: NDArray[np.float32], images: NDArray[np.uint8], task: str) -> NDArray[np.float32]:
        feeds = self._layout.views(weights)
        parts = []
        for first in range(0, len(images), _PART):
            part = images[first : first + _PART]
            parts.append(self._session.run([task], {**feeds, "images": part})[0])
            self.evaluation_count += len(part)
        return np.concatenate(parts)


@dataclass(frozen=True)
class Package:
    """A package read whole. `task_vectors`: [experts, parameters], of the tasks in their order."""

    folder: Path
    manifest: MultitaskPackage
    layout: Layout
    base: NDArray[np.float32]
    task_vectors: NDArray[np.float32]
    corners: NDArray[np.float32] | None
    network: OnnxNetwork

    @staticmethod
    def read(folder: Path) -> Package:
        manifest = MultitaskPackage.model_validate(yaml.safe_load((folder / "model.yaml").read_text()))
        base = load_file(str(folder / manifest.files.base))
        layout = Layout(
            {layer.name: layer.tensors for layer in manifest.layers}, {name: a.shape for name, a in base.items()}
        )
        experts = [layout.flatten(load_file(str(folder / task.expert))) for task in manifest.tasks]
        corners = None if manifest.preference is None else load_file(str(folder / manifest.preference))["corners"]
        network = OnnxNetwork(folder / manifest.files.predict, layout)
        return Package(folder, manifest, layout, layout.flatten(base), np.stack(experts), corners, network)

    def images(self, name: str) -> tuple[dict[str, NDArray[np.uint8]], dict[str, NDArray[np.int64]]]:
        """A named set by task, and the labels of those that have some."""
        file = next(each.file for each in self.manifest.image_sets if each.name == name)
        with np.load(self.folder / file, allow_pickle=False) as arrays:
            images = {task: arrays[task] for task in self.manifest.task_names if task in arrays.files}
            labels = {task: arrays[f"{task}.labels"] for task in images if f"{task}.labels" in arrays.files}
        return images, labels
