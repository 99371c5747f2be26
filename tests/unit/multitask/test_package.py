"""Packages are read whole, each file checked; the network answers with the weights that it is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from worldtree_multitask.domain import blend_of
from worldtree_multitask.model import Model
from worldtree_multitask.package import Contents, read_contents
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.multitask_package import MultitaskPackage, StoredMultitask
from worldtree_runtime.testing_experts import TinyExperts

SHIPPED = Path(__file__).parents[3] / "models"


def stored(repository: Path, name: str = "tiny-experts") -> StoredMultitask:
    return ModelRepository(repository, MultitaskPackage).read(repository / name / "1")


def read(repository: Path) -> Contents:
    return read_contents(stored(repository))


def edit_tensors(file: Path, **changes: Any) -> None:
    save_file({**load_file(file), **changes}, file)


def edit_set(file: Path, **changes: Any) -> None:
    with np.load(file) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    np.savez(file, **{name: array for name, array in {**kept, **changes}.items() if array is not None})


NAN = np.full((192, 6), np.nan, np.float16)
BREAKS: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    "a vector cut short": (
        "experts/hue.safetensors",
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        "tasks.hue.expert",
        "readable safetensors",
    ),
    "a vector that is NaN": (
        "experts/hue.safetensors",
        lambda file: edit_tensors(file, **{"embed.weight": NAN}),
        "embed.weight",
        "must be finite",
    ),
    "a vector of whole numbers": (
        "experts/hue.safetensors",
        lambda file: edit_tensors(file, **{"embed.weight": np.ones((192, 6), np.int32)}),
        "embed.weight",
        "must be float16 or float32, got int32",
    ),
    "a vector of another shape": (
        "experts/hue.safetensors",
        lambda file: edit_tensors(file, **{"embed.weight": np.ones((6, 192), np.float16)}),
        "embed.weight",
        "must have shape [192, 6] like the base, got [6, 192]",
    ),
    "a vector of something else": (
        "experts/hue.safetensors",
        lambda file: edit_tensors(file, more=np.ones(3, np.float16)),
        "more",
        "is no tensor of the base",
    ),
    "a base with more": (
        "base.safetensors",
        lambda file: edit_tensors(file, more=np.ones(3, np.float32)),
        "more",
        "one of layers",
    ),
    "a set that is none": (
        "sets/calibration.npz",
        lambda file: file.write_bytes(b"PK\x03\x04"),
        "image_sets.calibration",
        "readable npz",
    ),
    "a set of pickles": (
        "sets/calibration.npz",
        lambda file: np.savez(file, hue=np.array([{}], object)),
        "image_sets.calibration",
        "readable npz",
    ),
    "images of another size": (
        "sets/calibration.npz",
        lambda file: edit_set(file, hue=np.zeros((2, 9, 9, 3), np.uint8)),
        "hue",
        "must be uint8 [images, 8, 8, 3], got uint8 [2, 9, 9, 3]",
    ),
    "images of no task": (
        "sets/calibration.npz",
        lambda file: edit_set(file, taste=np.zeros((2, 8, 8, 3), np.uint8)),
        "taste",
        "must be named like one of",
    ),
    "a class that there is not": (
        "sets/scoring.npz",
        lambda file: edit_set(file, **{"hue.labels": np.full(24, 3)}),
        "hue.labels",
        "classes must be 0 to 2, got 3",
    ),
    "labels of other images": (
        "sets/scoring.npz",
        lambda file: edit_set(file, **{"hue.labels": np.zeros(3, np.int64)}),
        "hue.labels",
        "one class an image",
    ),
    "no labels to score with": (
        "sets/scoring.npz",
        lambda file: edit_set(file, **{"hue.labels": None}),
        "scoring.hue",
        "must have labels",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_file_is_named_with_what_was_expected(tmp_path: Path, case: str) -> None:
    name, breaks, field, said = BREAKS[case]
    file = TinyExperts().write(tmp_path) / name
    breaks(file)
    with pytest.raises(PackageError) as refused:
        read(tmp_path)
    assert refused.value.field == field
    assert said in refused.value.expected
    assert refused.value.file.name in (file.name, "model.yaml")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda manifest: manifest["layers"][0]["tensors"].append("read.bias"), "tensors of layers must be distinct"),
        (lambda manifest: manifest["tasks"].append(manifest["tasks"][0]), "tasks must be distinct"),
        (lambda manifest: manifest.update(scoring="calibrated"), "scoring must name one of image_sets"),
        (lambda manifest: manifest["files"].update(base="../base.safetensors"), "must lie inside the package"),
        (lambda manifest: manifest["tasks"][0].update(classes=["one"]), "at least 2"),
        (lambda manifest: manifest.update(layerz=[]), "Extra inputs"),
    ],
)
def test_a_manifest_that_cannot_be(tmp_path: Path, edit: Callable[[Any], Any], said: str) -> None:
    file = TinyExperts().write(tmp_path) / "model.yaml"
    manifest = yaml.safe_load(file.read_text())
    edit(manifest)
    file.write_text(yaml.safe_dump(manifest))
    with pytest.raises(PackageError, match=said):
        read(tmp_path)


def test_a_graph_whose_weights_are_embedded_is_refused(tmp_path: Path) -> None:
    file = TinyExperts().write(tmp_path) / "predict.onnx"
    graph = onnx.load(file)
    for name, array in TinyExperts().base().items():
        graph.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(graph, file)
    (kept,) = [each for each in graph.graph.input if each.name == "images"]
    del graph.graph.input[:]
    graph.graph.input.append(kept)
    onnx.save(graph, file)
    entry = stored(tmp_path)
    with pytest.raises(PackageError, match="is missing"):
        Model(entry, read_contents(entry))


@pytest.fixture(params=["tiny-experts", "perception"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    if request.param == "tiny-experts":
        TinyExperts().write(tmp_path)
    entry = stored(tmp_path if request.param == "tiny-experts" else SHIPPED, request.param)
    return Model(entry, read_contents(entry))


def test_the_merge_graph_is_the_layouts_arithmetic(model: Model) -> None:
    contents = model.contents
    rng = np.random.default_rng(3)
    coefficients = rng.normal(0, 1, (len(contents.layout.layers), len(model.task_names))).astype(np.float32)
    made = model.make(blend_of("", coefficients, None))
    expected = contents.layout.combine(contents.base, contents.task_vectors, coefficients)
    whole = model.make(blend_of("", None, expected))
    assert np.allclose(made.flat, whole.flat, atol=2e-5)
    linear = model.predict(made, contents.image_sets["scoring"].images[model.task_names[0]][:9], model.task_names)
    given = model.predict(whole, contents.image_sets["scoring"].images[model.task_names[0]][:9], model.task_names)
    for task in model.task_names:
        assert np.allclose(linear[task], given[task], atol=1e-3)


def test_an_image_is_answered_alike_in_any_company(model: Model) -> None:
    images = np.concatenate([each[:6] for each in model.contents.image_sets["scoring"].images.values()])[:17]
    shape = (len(model.contents.layout.layers), len(model.task_names))
    weights = model.make(blend_of("", np.full(shape, 0.4, np.float32), None))
    whole = model.predict(weights, images, model.task_names)
    for count in (1, 2, 3, 5, 8, 16):
        for first in range(0, len(images) - count + 1, count):
            part = model.predict(weights, images[first : first + count], model.task_names)
            for task in model.task_names:
                assert np.array_equal(part[task], whole[task][first : first + count]), (count, first, task)


def test_equal_weights_have_equal_digests_and_others_do_not() -> None:
    ones = np.ones((2, 3), np.float32)
    assert blend_of("m", ones, None).digest == blend_of("m", ones.copy(order="F"), None).digest
    others = {
        blend_of("n", ones, None).digest,
        blend_of("m", ones * 2, None).digest,
        blend_of("m", None, ones[0]).digest,
    }
    assert len(others | {blend_of("m", ones, None).digest}) == 4
