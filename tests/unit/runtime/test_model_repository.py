"""Packages in their folders, and the digest that names their content."""

from pathlib import Path

import pytest
from worldtree_runtime.errors import NotFound
from worldtree_runtime.model_package import OtherKind, PackageError
from worldtree_runtime.model_repository import ModelRepository, package_digest, resolve, version_order
from worldtree_runtime.multitask_package import MultitaskPackage
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage


def test_every_package_is_found_by_name_and_version(tmp_path: Path) -> None:
    for name, version in (("b", "1"), ("a", "2"), ("a", "10")):
        TinyWorld(name=name, version=version).write(tmp_path)
    found = [(stored.name, stored.version) for stored in ModelRepository(tmp_path, VideoPackage).scan()]
    assert sorted(found) == [("a", "10"), ("a", "2"), ("b", "1")]
    assert ModelRepository(tmp_path, MultitaskPackage).scan() == []


def test_a_package_of_another_service_is_said_to_be_one(tmp_path: Path) -> None:
    folder = TinyWorld().write(tmp_path)
    with pytest.raises(OtherKind, match="must be 'multitask' for this service, got 'video'"):
        ModelRepository(tmp_path, MultitaskPackage).read(folder)


def test_a_repository_that_is_no_folder_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="must be a folder"):
        ModelRepository(tmp_path / "nowhere", VideoPackage).scan()
    with pytest.raises(PackageError, match=r"holds no name/version/model\.yaml"):
        ModelRepository(tmp_path, VideoPackage).scan()


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("denoise.onnx", "files.denoise"),
        ("commit.onnx", "files.commit"),
        ("starts/dusk.png", "starts.dusk.file"),
    ],
)
def test_a_missing_file_is_named_with_the_field_that_wants_it(tmp_path: Path, file: str, field: str) -> None:
    folder = TinyWorld().write(tmp_path)
    (folder / file).unlink()
    with pytest.raises(PackageError, match=f"names {file}, which is missing") as caught:
        ModelRepository(tmp_path, VideoPackage).scan()
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("old", "new", "field", "said"),
    [
        ("tiny/1", "small/1", "name", "must be 'small' like its folder, got 'tiny'"),
        ("tiny/1", "tiny/2", "version", "must be '2' like its folder, got '1'"),
    ],
)
def test_a_package_in_a_folder_of_another_name_is_refused(
    tmp_path: Path, old: str, new: str, field: str, said: str
) -> None:
    TinyWorld().write(tmp_path)
    (tmp_path / new).parent.mkdir(exist_ok=True)
    (tmp_path / old).rename(tmp_path / new)
    with pytest.raises(PackageError, match=said) as caught:
        ModelRepository(tmp_path, VideoPackage).scan()
    assert caught.value.field == field


def test_the_digest_names_the_content_and_not_the_place(tmp_path: Path) -> None:
    first, second = TinyWorld().write(tmp_path / "one"), TinyWorld().write(tmp_path / "two")
    assert package_digest(first) == package_digest(second)
    assert len(package_digest(first)) == 64


@pytest.mark.parametrize("change", ["content", "name", "more", "split"])
def test_any_change_of_a_file_is_another_digest(tmp_path: Path, change: str) -> None:
    folder = TinyWorld().write(tmp_path)
    (folder / "a.bin").write_bytes(b"12")
    (folder / "b.bin").write_bytes(b"3")
    before = package_digest(folder)
    match change:
        case "content":
            path = folder / "commit.onnx"
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
        case "name":
            (folder / "starts" / "dawn.png").rename(folder / "starts" / "noon.png")
        case "more":
            (folder / "weights.bin").write_bytes(b"")
        case _:  # the same bytes over all, cut at another place
            (folder / "a.bin").write_bytes(b"1")
            (folder / "b.bin").write_bytes(b"23")
    assert package_digest(folder) != before


def test_a_better_sentence_in_the_card_is_no_new_model(tmp_path: Path) -> None:
    folder = TinyWorld().write(tmp_path)
    before = package_digest(folder)
    (folder / "MODEL_CARD.md").write_text("# Tiny\nBetter said.\n")
    assert package_digest(folder) == before
    (folder / "MODEL_CARD.md").unlink()
    assert package_digest(folder) == before


def test_versions_are_ordered_as_people_count() -> None:
    versions = ["10", "9", "1.10", "1.9", "1", "1.0-beta", "2"]
    assert sorted(versions, key=version_order) == ["1", "1.0-beta", "1.9", "1.10", "2", "9", "10"]


PACKAGES = {("tiny", "9"): "a" * 64, ("tiny", "10"): "b" * 64, ("maze", "1"): "c" * 64}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (("tiny", "", ""), ("tiny", "10")),
        (("tiny", "9", ""), ("tiny", "9")),
        (("tiny", "10", "b" * 64), ("tiny", "10")),
        (("maze", "", "c" * 64), ("maze", "1")),
    ],
)
def test_a_reference_means_the_newest_or_the_one_it_names(
    reference: tuple[str, str, str], expected: tuple[str, str]
) -> None:
    assert resolve(PACKAGES, *reference) == expected


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (("tine", "", ""), "known: maze, tiny"),
        (("tiny", "11", ""), "known: tiny/9, tiny/10"),
        (("tiny", "10", "a" * 64), f"known: tiny@{'b' * 64}"),
        (("", "", ""), "known: maze, tiny"),
    ],
)
def test_a_reference_to_nothing_names_what_there_is(reference: tuple[str, str, str], said: str) -> None:
    with pytest.raises(NotFound) as caught:
        resolve(PACKAGES, *reference)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert said in caught.value.message
