"""A multi-task package read whole: base, task vectors, sets of images, each checked before it is served."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.multitask_package import MultitaskPackage, StoredMultitask

from worldtree_multitask.merging import Layout

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """Images [n, height, width, 3] by task, and their classes [n] where it is labelled."""

    images: Mapping[str, Images]
    labels: Mapping[str, Labels]

    @property
    def image_count(self) -> int:
        return sum(len(images) for images in self.images.values())


@dataclass(frozen=True)
class Contents:
    """`base` [parameters], `task_vectors` [tasks, parameters], `corners` [tasks, layers, tasks] or None."""

    layout: Layout
    base: NDArray[np.float32]
    task_vectors: NDArray[np.float32]
    corners: NDArray[np.float32] | None
    image_sets: Mapping[str, ImageSet]


def read_contents(stored: StoredMultitask) -> Contents:
    """Raises PackageError that names the file, the tensor and what was expected."""
    folder, package = stored.folder, stored.package
    base_file = folder / package.files.base
    base = _tensors(base_file, "files.base")
    layers = {layer.name: layer.tensors for layer in package.layers}
    wanted = {name for names in layers.values() for name in names}
    if wanted != base.keys():
        odd = sorted(wanted ^ base.keys())[0]
        raise PackageError(base_file, odd, "must be in the file and in one of layers")
    layout = Layout(layers, {name: tensor.shape for name, tensor in base.items()})
    vectors = []
    for task in package.tasks:
        file = folder / task.expert
        vector = _tensors(file, f"tasks.{task.name}.expert")
        for name, tensor in vector.items():
            if name not in base:
                raise PackageError(file, name, "is no tensor of the base")
            if tensor.shape != base[name].shape:
                raise PackageError(
                    file, name, f"must have shape {list(base[name].shape)} like the base, got {list(tensor.shape)}"
                )
        vectors.append(layout.flatten(vector))
    sets = {
        each.name: _image_set(folder / each.file, f"image_sets.{each.name}", package) for each in package.image_sets
    }
    scoring = sets[package.scoring]
    if missing := [task for task in package.task_names if task not in scoring.labels]:
        raise PackageError(folder / "model.yaml", f"scoring.{missing[0]}", f"must have labels in {package.scoring!r}")
    return Contents(layout, layout.flatten(base), np.stack(vectors), _corners(stored, layout), sets)


def _tensors(file: Path, field: str) -> dict[str, NDArray[np.floating[Any]]]:
    try:
        tensors: dict[str, NDArray[np.floating[Any]]] = load_file(str(file))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PackageError(file, field, f"must be a readable safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in (np.float16, np.float32):
            raise PackageError(file, name, f"must be float16 or float32, got {tensor.dtype}")
        if not np.isfinite(tensor).all():
            raise PackageError(file, name, "must be finite, got NaN or infinity")
    return tensors


def _image_set(file: Path, field: str, package: MultitaskPackage) -> ImageSet:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise PackageError(file, field, f"must be a readable npz file: {error}") from error
    size = (package.image.height_px, package.image.width_px, package.image.channels)
    images: dict[str, Images] = {}
    labels: dict[str, Labels] = {}
    for name, array in arrays.items():
        task = package.task(name.removesuffix(".labels"))
        if task is None:
            raise PackageError(file, name, f"must be named like one of {list(package.task_names)}, or that and .labels")
        if not name.endswith(".labels"):
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != size or not len(array):
                expected = f"must be uint8 [images, {size[0]}, {size[1]}, {size[2]}]"
                raise PackageError(file, name, f"{expected}, got {array.dtype} {list(array.shape)}")
            images[name] = array
            continue
        if (
            array.ndim != 1
            or not np.issubdtype(array.dtype, np.integer)
            or len(array) != len(arrays.get(task.name, ()))
        ):
            raise PackageError(file, name, f"must hold one class an image, got {array.dtype} {list(array.shape)}")
        if array.min() < 0 or array.max() >= len(task.classes):
            raise PackageError(file, name, f"classes must be 0 to {len(task.classes) - 1}, got {array.max()}")
        labels[task.name] = array.astype(np.int64)
    return ImageSet(images, labels)


def _corners(stored: StoredMultitask, layout: Layout) -> NDArray[np.float32] | None:
    if stored.package.preference is None:
        return None
    file = stored.folder / stored.package.preference
    tensors = _tensors(file, "preference")
    tasks = len(stored.package.tasks)
    shape = (tasks, len(layout.layers), tasks)
    found = tensors.get("corners")
    if found is None or found.shape != shape:
        got = "none" if found is None else list(found.shape)
        raise PackageError(file, "corners", f"must have shape {list(shape)}: tasks, layers, experts; got {got}")
    return found.astype(np.float32)
