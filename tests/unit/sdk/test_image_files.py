"""Images as a command line names them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worldtree.cli.image_files import read_images, read_learning_images
from worldtree.errors import InvalidRequest


def grey(level: int, size: int = 4) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def test_folders_are_read_in_order_and_other_files_in_them_left(tmp_path: Path) -> None:
    for name, level in (("b.png", 2), ("a.jpg", 100), ("c.webp", 3)):
        Image.fromarray(grey(level)).save(tmp_path / name, lossless=True)
    (tmp_path / "notes.txt").write_text("no picture")
    np.save(tmp_path / "d.npy", np.stack([grey(4), grey(5)]))
    images, names = read_images([tmp_path, tmp_path / "b.png"])
    assert names == ["a.jpg", "b.png", "c.webp", "d.npy[0]", "d.npy[1]", "b.png"]
    assert images.shape == (6, 4, 4, 3)
    assert images[1:, 0, 0, 0].tolist() == [2, 3, 4, 5, 2]


def test_transparent_and_grey_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("LA", (4, 4), (7, 0)).save(tmp_path / "shade.png")
    images, _ = read_images([tmp_path / "shade.png"])
    assert images[0, 0, 0].tolist() == [7, 7, 7]


def test_arrays_by_task_may_have_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "sets.npz", hue=np.stack([grey(1), grey(2)]), **{"hue.labels": np.array([0, 1])})
    images, labels = read_learning_images([tmp_path / "sets.npz"])
    assert images["hue"].shape == (2, 4, 4, 3)
    assert labels == {"hue": [0, 1]}
    np.savez(tmp_path / "bare.npz", hue=grey(1))
    images, labels = read_learning_images([tmp_path / "bare.npz"])
    assert images["hue"].shape == (1, 4, 4, 3)
    assert labels is None


@pytest.mark.parametrize("name", ["objects.npy", "objects.npz"])
def test_pickled_arrays_are_never_loaded(tmp_path: Path, name: str) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    if name.endswith("npy"):
        np.save(tmp_path / name, objects, allow_pickle=True)
    else:
        np.savez(tmp_path / name, hue=objects)
    with pytest.raises(InvalidRequest, match="objects"):
        read_learning_images([tmp_path / name])


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InvalidRequest, match=r"bomb\.png"):
        read_images([tmp_path / "bomb.png"])
