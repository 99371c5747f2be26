"""`worldtree models new, validate, bench, pack, install` as a user runs them: processes of their own, no server."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from worldtree_runtime.testing import TinyWorld

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "worldtree.cli", "models", *arguments],
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "160"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = TinyWorld(action_size=2).write(tmp_path / "work")
    described = yaml.safe_load((folder / "model.yaml").read_text())
    described["action"] |= {"low": -0.75, "high": 0.75}
    (folder / "model.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return folder


@pytest.mark.parametrize("command", ["list", "new", "validate", "bench", "pack", "install"])
def test_help_of_each_command_says_what_it_does(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 6


def test_a_package_goes_from_validate_to_the_repository(run: Run, package: Path, tmp_path: Path) -> None:
    checked = run("validate", str(package))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "bit-identical in batches of 1, 2, 3, 4, 8, 16" in checked.stdout
    assert "tiny/1 can be served" in checked.stdout

    timed = run("bench", str(package), "--repeats", "2")
    assert timed.returncode == 0, timed.stderr
    assert "sessions per GiB" in timed.stdout
    assert json.loads(run("bench", str(package), "--repeats", "1", "--json").stdout)["package"] == "tiny/1"

    packed = run("pack", str(package))
    assert packed.returncode == 0, packed.stderr
    assert (tmp_path / "tiny-1.zip").is_file()
    assert run("install", "tiny-1.zip", "--models", "models").returncode == 0
    assert (tmp_path / "models/tiny/1/model.yaml").is_file()


def test_a_broken_package_ends_with_1_and_names_file_field_and_what_was_expected(run: Run, package: Path) -> None:
    (package / "starts/dawn.png").write_bytes(b"GIF89a")
    for command in ("validate", "pack", "install"):
        done = run(command, str(package))
        assert done.returncode == 1
        row = next(line for line in done.stdout.splitlines() if " bad " in line)
        for part in ("dawn.png", "starts.dawn", "must be a PNG file"):
            assert part in row
        assert "cannot be served: 1 of" in done.stderr
    answer = json.loads(run("validate", str(package), "--json").stdout)
    assert [each["field"] for each in answer["findings"] if each["verdict"] == "bad"] == ["starts.dawn"]
    timed = run("bench", str(package.parent / "2"))
    assert timed.returncode == 1
    assert "model.yaml" in timed.stderr


def test_new_writes_a_folder_and_says_what_comes_next(run: Run, tmp_path: Path) -> None:
    done = run("new", "dunes", "--latent", "--vector", "3", "--frames-per-chunk", "3", "--size", "24x40")
    assert done.returncode == 0, done.stderr
    described = yaml.safe_load((tmp_path / "dunes/1/model.yaml").read_text())
    assert described["latent"] == {"shape": [6, 10, 8]}
    assert described["action"]["size"] == 3
    assert "python export.py" in done.stdout
    again = run("new", "dunes")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert run("new", "other", "--size", "large").returncode == 2


def test_names_may_begin_with_a_dash(run: Run, package: Path, tmp_path: Path) -> None:
    done = run("new", "dunes", "--actions", "-up,down", "--out", "-work")
    assert done.returncode == 0, done.stderr
    described = yaml.safe_load((tmp_path / "-work/dunes/1/model.yaml").read_text())
    assert described["action"]["names"] == ["-up", "down"]
    refused = run("new", "--", "-dunes")
    assert refused.returncode == 1
    assert "name: String should match pattern" in refused.stderr

    package.parent.rename(tmp_path / "-tiny")
    packed = run("pack", "--out", "-tiny.zip", "--", "-tiny/1")
    assert "must be '-tiny' like its folder" in " ".join(packed.stdout.split()), packed.stderr
    (tmp_path / "-tiny").rename(tmp_path / "tiny")
    assert run("pack", "--out", "-tiny.zip", "tiny/1").returncode == 0
    assert run("install", "--models", "-models", "--", "-tiny.zip").returncode == 0
    assert (tmp_path / "-models/tiny/1/model.yaml").is_file()
