"""What the project says of itself: Python versions, what CI runs, nothing of one machine in any file."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT / "pyproject.toml", ROOT / "clients/python/pyproject.toml"]
PYTHONS = ["3.11", "3.12", "3.13"]


def project(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(file.read_text())["project"]
    return found


def committed_files() -> list[Path]:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        pytest.skip(f"git ls-files: {done.stderr.strip()}")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("file", PROJECTS, ids=lambda file: str(file.parent.name))
def test_the_metadata_names_the_supported_pythons(file: Path) -> None:
    classifier = "Programming Language :: Python :: "
    named = [text.removeprefix(classifier) for text in project(file)["classifiers"] if text.startswith(classifier)]
    assert named == PYTHONS
    assert project(file)["requires-python"] == f">={PYTHONS[0]}"


@pytest.mark.parametrize("file", PROJECTS, ids=lambda file: str(file.parent.name))
def test_the_licence_is_the_one_in_the_file(file: Path) -> None:
    assert project(file)["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_the_server_has_the_extras_that_the_docs_name() -> None:
    assert {"cpu", "gpu", "train", "dev"} <= set(project(ROOT / "pyproject.toml")["optional-dependencies"])


def test_serving_needs_no_torch() -> None:
    server = project(ROOT / "pyproject.toml")
    needed = [*server["dependencies"], *server["optional-dependencies"]["cpu"], *server["optional-dependencies"]["dev"]]
    assert not [requirement for requirement in needed if re.match(r"torch\b", requirement)]


def test_ci_lints_and_tests_and_nothing_else() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    commands = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert [command for command in commands if not command.startswith(("set ", "cd "))] == ["make lint", "make test"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111, ".ci/run can't be executed"


def test_no_committed_file_names_a_place_of_one_machine() -> None:
    homes = rf"/(?:home|Users)/[A-Za-z]\w*/|{re.escape(str(Path.home()))}/"
    # the checkout's own folder, where it is not so short that it means nothing
    here = rf"|{re.escape(str(ROOT))}\b" if len(ROOT.parts) > 2 else ""
    place = re.compile(f"(?:{homes}{here})".encode())
    found = [str(path.relative_to(ROOT)) for path in committed_files() if place.search(path.read_bytes())]
    assert not found


def test_the_lock_file_of_the_node_client_pins_content_and_names_no_registry() -> None:
    lock = json.loads((ROOT / "clients/node/package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    for name, package in packages.items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
