"""A policy's `model.yaml`: what is wrong is told by field."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from worldtree_navigator.policy import Policy
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.policy_package import PolicyPackage

SHIPPED = Path(__file__).parents[3] / "models" / "joint" / "1"


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((SHIPPED / "model.yaml").read_text())
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"remembered": 20}, "remembered must be 0, or odd and 13 or more, got 20"),
        ({"remembered": 11}, "13 or more"),
        ({"actions": ["left", "left", "right", "forward"]}, "actions must be distinct"),
        ({"actions": ["left", "right"]}, "ground.forward must be one of the actions"),
        ({"tile_count": 10}, "below tile_count"),
        ({"image": {"height_px": 55, "width_px": 56}}, "7 cells a side"),
        ({"imagines": False}, "order 'together'"),
        ({"horizon": 0}, "horizon"),
        ({"planners": []}, "planners"),
        (
            {"files": {"context": "context.onnx", "denoise": "../denoise.onnx", "tiles": "tiles.npy"}},
            "inside the package",
        ),
        ({"files": {"denoise": "denoise.onnx", "tiles": "tiles.npy"}}, "files.context"),
        ({"mood": "good"}, "mood"),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, Any], said: str) -> None:
    PolicyPackage.model_validate(manifest())
    with pytest.raises(ValidationError, match=said):
        PolicyPackage.model_validate({**manifest(), **change})


def written(folder: Path, change: dict[str, Any]) -> Path:
    """A copy of the shipped package, changed, in a repository."""
    target = folder / "joint" / "1"
    target.mkdir(parents=True)
    for name in ("context.onnx", "denoise.onnx", "tiles.npy"):
        (target / name).write_bytes((SHIPPED / name).read_bytes())
    (target / "model.yaml").write_text(yaml.safe_dump({**deepcopy(manifest()), **change}))
    return target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"horizon": 5}, r"input actions: must have shape \(None, 5\), got"),
        ({"remembered": 0}, "input around: is not one of"),
        ({"tile_count": 61}, r"files.tiles: must be uint8 \[61, 8, 8, 3\], got uint8 \[60, 8, 8, 3\]"),
    ],
)
def test_files_that_are_not_what_the_manifest_says_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    target = written(tmp_path, change)
    with pytest.raises(PackageError, match=said):
        Policy(ModelRepository(tmp_path, PolicyPackage).read(target))


def test_one_graph_takes_what_the_other_gives(tmp_path: Path) -> None:
    target = written(tmp_path, {})
    other = SHIPPED.parents[1] / "reactive" / "1"  # looks at no map: its context has fewer tokens
    (target / "denoise.onnx").write_bytes((other / "denoise.onnx").read_bytes())
    with pytest.raises(PackageError, match="input context: must have shape"):
        Policy(ModelRepository(tmp_path, PolicyPackage).read(target))


def test_tiles_are_never_unpickled(tmp_path: Path) -> None:
    target = written(tmp_path, {})
    np.save(target / "tiles.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(PackageError, match=r"files\.tiles"):
        Policy(ModelRepository(tmp_path, PolicyPackage).read(target))
