"""What `make bench` ends with: the bars that do not hold, and an exit code that says whether there are any."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).parents[2] / "benchmarks/run.py"
NAMES = (
    "engine",
    "tree",
    "realtime",
    "tiers",
    "formats",
    "multitask",
    "probe_generated",
    "imagine",
    "navigator",
    "gateway",
    "chaos",
    "rolling",
    "floods",
    "capacity",
    "fleet",
)
HOLDS = {"name": "speed", "value": 2.0, "bar": 1.0, "better": "higher", "holds": True}
MISSED = {"name": "delay", "value": 3.25, "bar": 1.5, "better": "lower", "holds": False}
# stands in for every benchmark: writes the bars it was given, or ends with an error
BENCHMARK = """
import json, pathlib, sys
told = json.loads(pathlib.Path(__file__).with_suffix(".told").read_text())
if told is None:
    sys.exit(3)
file = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps({"bars": told}))
"""


def run(folder: Path, *flags: str, **told: Any) -> subprocess.CompletedProcess[str]:
    """Runs all; `told`: the bars of a benchmark that has others than HOLDS, or None for one that fails."""
    for file in (RUN, RUN.with_name("report.py")):
        shutil.copy(file, folder)
    for name in NAMES:
        (folder / f"{name}.py").write_text(BENCHMARK)
        (folder / f"{name}.told").write_text(json.dumps(told.get(name, [HOLDS])))
    command = [sys.executable, str(folder / "run.py"), "--out", str(folder / "out"), *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=folder, env={**os.environ, "COLUMNS": "100"}
    )


def test_it_says_so_when_all_bars_hold(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all bars hold\n"


@pytest.mark.parametrize(("flags", "code"), [((), 1), (("--quick",), 0)])
def test_it_ends_with_the_bars_that_do_not_hold_and_fails_but_for_a_look(
    tmp_path: Path, flags: tuple[str, ...], code: int
) -> None:
    done = run(tmp_path, *flags, tiers=[HOLDS, MISSED])
    assert done.returncode == code, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "tiers" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["tiers", "delay", "3.25", "≤ 1.5"]
    assert "speed" not in done.stdout
    assert "all bars hold" not in done.stdout


def test_one_that_ends_with_an_error_fails_even_a_look_and_leaves_no_old_figures(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/tree.json").write_text(json.dumps({"bars": [HOLDS]}))
    done = run(tmp_path, "--quick", tree=None)
    assert done.returncode == 1
    assert "it ended with an error" in done.stdout
    assert not (tmp_path / "out/tree.json").exists()
    assert (tmp_path / "out/formats.json").exists(), "the others are run all the same"


def test_every_benchmark_starts_and_explains_itself() -> None:
    names = sorted(path.stem for path in RUN.parent.glob("*.py") if "typer.run(main)" in path.read_text())
    listed = re.search(r"BENCHMARKS = \(([^)]*)\)", RUN.read_text())
    assert listed
    assert names == sorted([*re.findall(r'"(\w+)"', listed[1]), "run"])
    for name in names:
        command = [sys.executable, str(RUN.with_name(f"{name}.py")), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "100"})
        assert done.returncode == 0, done.stderr
        assert "--quick" in done.stdout
