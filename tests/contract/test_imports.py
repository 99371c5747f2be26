"""Who may import whom: every contract of .importlinter holds, and each one complains when it is broken on purpose."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
HOMES = {
    "worldtree": ROOT / "clients/python/src/worldtree",
    "worldtree_loadtest": ROOT / "clients/loadtest/src/worldtree_loadtest",
    **{path.name: path for path in sorted((ROOT / "services").glob("*/worldtree_*"))},
}


def read_contracts() -> dict[str, dict[str, str]]:
    """By id: what .importlinter says of each contract."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    prefix = "importlinter:contract:"
    return {name.removeprefix(prefix): dict(parser[name]) for name in parser.sections() if name.startswith(prefix)}


CONTRACTS = read_contracts()


def lint(folder: Path) -> str:
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def names(contract: dict[str, str], field: str) -> list[str]:
    """One name a line; of `a | b` the first, without the ( ) of a layer that may be absent."""
    return [line.partition("|")[0].strip(" ()") for line in contract[field].split("\n") if line.strip()]


def violation(contract: dict[str, str]) -> tuple[str, str]:
    """(module, what it must not import)."""
    match contract["type"]:
        case "layers":
            container = names(contract, "containers")[0] + "." if "containers" in contract else ""
            layers = names(contract, "layers")
            return container + layers[-1], container + layers[0]
        case "independence":
            one, other, *_ = names(contract, "modules")
            return one, other
        case "forbidden":
            return names(contract, "source_modules")[0], names(contract, "forbidden_modules")[0]
    raise AssertionError(f"say here how a contract of type {contract['type']} is broken")


def test_every_contract_holds() -> None:
    report = lint(ROOT)
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in report, report


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_a_contract_complains_when_it_is_broken(contract: dict[str, str], tmp_path: Path) -> None:
    for package, home in HOMES.items():
        shutil.copytree(home, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    importer, imported = violation(contract)
    path = tmp_path.joinpath(*importer.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert file.is_file(), f"{importer} is no module"
    file.write_text(file.read_text() + f"\n\nimport {imported}\n")

    report = lint(tmp_path)

    assert re.search(rf"^{re.escape(contract['name'])} BROKEN", report, re.MULTILINE), report


def test_a_new_room_must_be_declared(tmp_path: Path) -> None:
    for package, home in HOMES.items():
        shutil.copytree(home, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    (tmp_path / "worldtree_video/attic.py").write_text('"""A room nobody declared."""\n')

    report = lint(tmp_path)

    assert "attic" in report
    assert "0 broken" not in report
