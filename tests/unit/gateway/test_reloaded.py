"""Files that change while they are in use."""

import errno
import logging
import os
from pathlib import Path

import pytest
from worldtree_gateway.reloaded import ReloadedFiles


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_file_is_read_again_when_it_has_changed_and_only_then(tmp_path: Path) -> None:
    path, clock, reads = tmp_path / "file", Clock(), 0

    def read() -> str:
        nonlocal reads
        reads += 1
        return path.read_text()

    path.write_text("one")
    file = ReloadedFiles([path], read, every_s=1.0, clock=clock)
    path.write_text("two!")
    assert file.get() == "one", "it was looked at less than a second ago"
    clock.now_s += 1
    assert file.get() == "two!"
    clock.now_s += 5
    assert file.get() == "two!"
    assert reads == 2


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As mounted secrets change: `..data` is a link to a folder, which is put in the place of the last."""
    clock = Clock()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    data = tmp_path / "data"
    data.symlink_to("one")
    file = ReloadedFiles([data / "file"], (data / "file").read_text, every_s=0.0, clock=clock)
    assert file.get() == "one"
    (tmp_path / "next").symlink_to("two")
    os.replace(tmp_path / "next", data)
    assert file.get() == "two"


def test_what_cannot_be_read_is_told_once_and_the_last_value_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    file = ReloadedFiles([path], lambda: int(path.read_text()), every_s=0.0)
    path.write_text("no number")
    assert [file.get(), file.get()] == [1, 1]
    path.unlink()
    assert [file.get(), file.get()] == [1, 1]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    path.write_text("22")
    assert file.get() == 22


def test_a_read_that_fails_for_a_moment_is_tried_again_though_nothing_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, fails = tmp_path / "file", False

    def read() -> str:
        if fails:
            raise OSError(errno.EMFILE, "Too many open files")
        return path.read_text()

    path.write_text("1")
    file = ReloadedFiles([path], read, every_s=0.0)
    path.write_text("22")
    fails = True
    assert [file.get(), file.get()] == ["1", "1"]
    fails = False
    assert file.get() == "22"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_new_mode_is_a_change(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", 0

    def read() -> int:
        nonlocal reads
        reads += 1
        return reads

    path.write_text("1")
    file = ReloadedFiles([path], read, every_s=0.0)
    assert file.get() == 1
    path.chmod(0o400)
    assert file.get() == 2


def test_a_file_that_cannot_be_read_at_first_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ReloadedFiles([tmp_path / "file"], (tmp_path / "file").read_text, every_s=1.0)
