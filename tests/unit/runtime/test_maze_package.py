"""The model.yaml of a maze model: what is wrong is named by file and field."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from worldtree_runtime.maze_package import MazePackage
from worldtree_runtime.model_package import OtherKind, PackageError
from worldtree_runtime.model_repository import ModelRepository, StoredPackage
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_mazes import TinyMaze


def read(folder: Path, **changes: Any) -> StoredPackage[MazePackage]:
    """The tiny maze's package with some fields changed; a value of `...` takes one away."""
    place = TinyMaze().write(folder)
    manifest = {**TinyMaze().manifest(), **changes}
    manifest = {name: value for name, value in manifest.items() if value is not ...}
    (place / "model.yaml").write_text(yaml.safe_dump(manifest))
    return ModelRepository(folder, MazePackage).read(place)


def test_a_package_is_read_whole(tmp_path: Path) -> None:
    stored = read(tmp_path)
    assert (stored.name, stored.version, len(stored.digest)) == ("tiny-maze", "1", 64)
    assert (stored.package.max_rows, stored.package.max_columns, stored.package.fill.rounds) == (8, 8, 4)
    assert stored.package.paths() == {"files.path": "path.onnx"}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"max_rows": ...}, "max_rows", "Field required"),
        ({"max_rows": 0}, "max_rows", "greater than or equal to 1"),
        ({"max_columns": 257}, "max_columns", "less than or equal to 256"),
        ({"max_columns": "wide"}, "max_columns", "valid integer"),
        ({"fill": {"rounds": 0, "sure": 0.9}}, "fill.rounds", "greater than or equal to 1"),
        ({"fill": {"rounds": 4, "sure": 1.5}}, "fill.sure", "less than or equal to 1"),
        ({"fill": {"rounds": 4}}, "fill.sure", "Field required"),
        ({"files": {"path": "gone.onnx"}}, "files.path", "gone.onnx, which is missing"),
        ({"files": {"path": "../path.onnx"}}, "model.yaml", "inside the package"),
        ({"files": {}}, "files.path", "Field required"),
        ({"speed": 3}, "speed", "not permitted"),
        ({"name": "other"}, "name", "'tiny-maze' like its folder"),
        ({"version": 2}, "version", "'1' like its folder"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(PackageError) as refused:
        read(tmp_path, **changes)
    assert refused.value.file == tmp_path / "tiny-maze" / "1" / "model.yaml"
    assert refused.value.field == field
    assert says in str(refused.value)


def test_packages_of_other_services_may_lie_beside_it(tmp_path: Path) -> None:
    TinyMaze().write(tmp_path)
    world = TinyWorld().write(tmp_path)
    repository = ModelRepository(tmp_path, MazePackage)
    assert [stored.name for stored in repository.scan()] == ["tiny-maze"]
    with pytest.raises(OtherKind, match="must be 'maze'"):
        repository.read(world)
