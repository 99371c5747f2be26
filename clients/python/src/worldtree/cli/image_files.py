"""Images of the command line: files, folders, and arrays as NumPy saves them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from worldtree.errors import InvalidRequest
from worldtree.media import pillow
from worldtree.types import Frames

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
LABELS = ".labels"  # NAME.labels of an .npz holds the class ids of the images in NAME
IMAGES_HELP = (
    "Image files, folders of them, or uint8 [n, height, width, 3] in .npy; "
    "also a folder with one folder a task, or an .npz with one array a task (and TASK.labels)."
)


def read_images(paths: Sequence[Path]) -> tuple[Frames, list[str]]:
    """All images of files and folders, in order: [n, height, width, 3], and what each is called."""
    shown: list[Frames] = []
    names: list[str] = []
    for path in _files(paths):
        images = _read(path)
        shown += list(images)
        names += [path.name] if len(images) == 1 else [f"{path.name}[{index}]" for index in range(len(images))]
    sizes = {image.shape for image in shown}
    if len(sizes) > 1:
        told = ", ".join(sorted(f"{width} x {height}" for height, width, _ in sizes))
        raise InvalidRequest(f"images must be of one size, got {told} pixels", field="images")
    return np.stack(shown), names


def read_learning_images(paths: Sequence[Path]) -> tuple[Any, dict[str, Any] | None]:
    """Images to learn from, for every task or {task: images}, and the labels of those that have them."""
    if len(paths) == 1 and paths[0].suffix.lower() == ".npz":
        return _read_sets(paths[0])
    if len(paths) == 1 and paths[0].is_dir():
        folders = sorted(each for each in paths[0].iterdir() if each.is_dir())
        if folders:
            return {folder.name: read_images([folder])[0] for folder in folders}, None
    return read_images(paths)[0], None


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix.lower() in (*PICTURES, ".npy"))
            if not inside:
                raise InvalidRequest(f"{path} holds no image ({', '.join(PICTURES)}, .npy)", field="images")
            found += inside
        else:
            found.append(path)
    return found


def _read(path: Path) -> Frames:
    """[n, height, width, 3]."""
    if path.suffix.lower() == ".npy":
        return _checked(_load(path), path.name)
    image_type = pillow("reading images")
    try:
        with image_type.open(BytesIO(path.read_bytes())) as image:
            pixels: Frames = np.asarray(image.convert("RGB"))[np.newaxis]
            return pixels
    except (image_type.DecompressionBombError, image_type.UnidentifiedImageError) as error:
        raise InvalidRequest(f"{path} is no image that can be read: {error}", field="images") from None


def _read_sets(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    arrays = _load(path)
    images = {name: _checked(arrays[name], f"{path.name}:{name}") for name in arrays if not name.endswith(LABELS)}
    labels = {name.removesuffix(LABELS): arrays[name].tolist() for name in arrays if name.endswith(LABELS)}
    if not images:
        raise InvalidRequest(f"{path} holds no array of images", field="images")
    return images, labels or None


def _load(path: Path) -> Any:
    """The array of an .npy file, or those of an .npz by name."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except ValueError as error:
        raise InvalidRequest(f"{path} holds no array: {error}", field="images") from None


def _checked(array: Any, name: str) -> Frames:
    pixels: Frames = array if array.ndim == 4 else array[np.newaxis]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels):
        raise InvalidRequest(
            f"{name} must be uint8 [n, height, width, 3], got {array.dtype} {list(array.shape)}", field="images"
        )
    return pixels
