"""Loading packages, and finding models and sessions in what was loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from worldtree.common.v1 import common_pb2 as common
from worldtree_runtime.errors import NotFound
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.testing import TinyWorld
from worldtree_video.catalog import Catalog, load_catalog
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind
from worldtree_video.errors import SessionNotFound
from worldtree_video.metrics import VideoMetrics
from worldtree_video.recipe import Recipe


def load(repository: Path, **settings: Any) -> Catalog:
    small = {"pool_mib": 1, "fp16_pool_mib": 1, "int8_pool_mib": 1, "max_batch": 2, "headroom_blocks": 2}
    known = VideoSettings(models=str(repository), **{**small, **settings})
    return load_catalog(known, VideoMetrics(CollectorRegistry()))


def edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def picture(width: int, height: int) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (width, height)).save(path)


@pytest.mark.parametrize(
    ("file", "damage", "field", "said"),
    [
        ("commit.onnx", Path.unlink, "files.commit", "names commit.onnx, which is missing"),
        ("model.yaml", edited("format: 1", "format: 1\ncolour: blue"), "colour", "not permitted"),
        ("model.yaml", edited("window: 4", "window: 5"), "input table", "must have shape (None, 5)"),
        ("model.yaml", edited("name: tiny", "name: tinny"), "name", "must be 'tiny' like its folder, got 'tinny'"),
        ("model.yaml", edited("- stay", "- fly"), "starts.dusk.actions", "'stay' is no action of the model"),
        ("starts/dawn.png", lambda path: path.write_bytes(b"GIF89a"), "starts.dawn", "must be a PNG file"),
        ("starts/dawn.png", picture(5, 4), "starts.dawn", "must be 6 x 4 pixels, got 5 x 4"),
        ("starts/dusk.png", picture(6, 4), "starts.dusk", "must be 18 x 4 pixels, got 6 x 4"),
        ("starts/dusk.png", picture(2000, 2000), "starts.dusk", "must hold at most 72 pixels"),
    ],
)
def test_a_broken_package_is_refused_by_file_and_field(
    tmp_path: Path, file: str, damage: Callable[[Path], object], field: str, said: str
) -> None:
    damage(TinyWorld().write(tmp_path) / file)
    with pytest.raises(PackageError) as caught:
        load(tmp_path)
    assert caught.value.field == field
    assert said in caught.value.expected


def test_a_start_with_an_action_outside_the_box_is_refused(tmp_path: Path) -> None:
    folder = TinyWorld(action_size=1).write(tmp_path)
    edited("  - - 0.5", "  - - 1.5")(folder / "model.yaml")
    with pytest.raises(PackageError, match=r"\(1\.5,\) is no action of the model"):
        load(tmp_path)


def test_a_start_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    TinyWorld(window=2).write(tmp_path)
    with pytest.raises(PackageError, match="holds 3 chunks, the window 2"):
        load(tmp_path)


def test_a_pool_that_holds_no_session_and_the_headroom_is_refused_with_the_numbers(tmp_path: Path) -> None:
    TinyWorld(tokens=1024).write(tmp_path)
    with pytest.raises(PackageError, match="pool_mib 1 holds 16 blocks of 65536 bytes"):
        load(tmp_path, headroom_blocks=12)


def test_the_newest_version_is_meant_where_none_is_named(tmp_path: Path) -> None:
    for name, version in (("tiny", "9"), ("tiny", "10"), ("other", "1")):
        TinyWorld(name=name, version=version).write(tmp_path)
    catalog = load(tmp_path)
    assert [(entry.stored.name, entry.stored.version) for entry in catalog.newest()] == [("other", "1"), ("tiny", "10")]
    assert catalog.resolve(common.ModelRef(name="tiny", version="9")).ref.version == "9"
    with pytest.raises(NotFound):
        catalog.resolve(common.ModelRef(name="tiny", version="11"))


async def test_a_session_is_found_in_the_model_that_it_belongs_to(tmp_path: Path) -> None:
    for name in ("one", "two"):
        TinyWorld(name=name).write(tmp_path)
    catalog = load(tmp_path)
    catalog.start()
    try:
        names = {}
        for served in catalog:
            recipe = Recipe(served.starts["dusk"], 7, 2, KvPolicy(PolicyKind.SLIDING, 4))
            session = await served.worlds.create(recipe, ttl_s=60)
            names[session.name] = served.stored.name
            await served.worlds.step(session.name, [Action(1)])
        assert {catalog.of_session(name).stored.name for name in names} == {"one", "two"}
        assert all(catalog.of_session(name).stored.name == model for name, model in names.items())
        with pytest.raises(SessionNotFound):
            catalog.of_session("nobody")
        assert catalog.has_room()
        assert catalog.expire() == 0
    finally:
        catalog.stop()


def test_a_tick_is_measured_where_no_batch_size_is_set(tmp_path: Path) -> None:
    TinyWorld().write(tmp_path)
    (served,) = load(tmp_path, max_batch=None)
    assert served.worlds.engine.scheduler.max_batch in (1, 2, 4, 8, 16)


def test_a_broken_package_is_logged_by_file_and_field_and_the_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    TinyWorld().write(tmp_path)
    folders = [TinyWorld(version=version).write(tmp_path) for version in ("2", "3")]
    (folders[0] / "commit.onnx").unlink()
    picture(5, 4)(folders[1] / "starts/dawn.png")
    assert [entry.stored.version for entry in load(tmp_path)] == ["1"]
    told = [vars(record) for record in caplog.records if record.message == "model package refused"]
    assert [(each["file"], each["field"]) for each in told] == [
        (str(folders[0] / "model.yaml"), "files.commit"),
        (str(folders[1] / "starts/dawn.png"), "starts.dawn"),
    ]
    assert told[1]["expected"] == "must be 6 x 4 pixels, got 5 x 4"


def test_where_every_package_is_broken_the_first_is_told(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (TinyWorld(version=version).write(tmp_path) / "commit.onnx").unlink()
    with pytest.raises(PackageError) as caught:
        load(tmp_path)
    assert caught.value.file == tmp_path / "tiny/1/model.yaml"
