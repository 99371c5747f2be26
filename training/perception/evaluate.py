"""Measures the package and those of other seeds. `python -m training.perception.evaluate --help`.

Merges are made by the service's own methods, over predict.onnx, from the package's calibration images (without labels);
scales are tuned on validation labels; every figure is of test images: seeds of episodes that nothing else uses. Scores
are the share of class-balanced images answered right, each task through its own camera; means are over tasks, then
over seeds of training.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import onnxruntime as ort
import typer
from rich.console import Console
from rich.table import Table

from training.minigrid.data import FIRST_SEED
from training.perception.bars import bars_of, merge_table
from training.perception.data import DEFAULT_FOLDER, Domain, load
from training.perception.fronts import front_rows, random_preference_rows, strength_rows
from training.perception.measure import Study, draw_labelled
from training.perception.methods import merge_rows
from training.perception.places import folder_of, package_of, strangers_of
from training.perception.tasks import TASK_NAMES

TEST, VALIDATION = 600, 200  # images of each task
PREFERENCES = 64
EVALUATIONS = 200
QUICK_TEST, QUICK_VALIDATION = 150, 40
app = typer.Typer(add_completion=False)


def measure(
    seed: int, folder: Path, validation: dict[str, Domain], test: dict[str, Domain], *, quick: bool
) -> list[dict[str, Any]]:
    """All rows of one seed of training. In a quick look: no preferences at random and no fronts."""

    def say(line: str) -> None:
        typer.echo(f"seed {seed}: {line}")

    counts = (QUICK_VALIDATION, QUICK_TEST) if quick else (VALIDATION, TEST)
    # Other draws than those of the package's own sets.
    drawn = draw_labelled(validation, counts[0], 41), draw_labelled(test, counts[1], 43)
    study = Study.read(package_of(seed, folder), strangers_of(seed, folder), *drawn)
    rows = merge_rows(study, quick=quick, say=say) + strength_rows(study)
    if not quick:
        rows += random_preference_rows(study, [row for row in rows if row["kind"] == "merge"], PREFERENCES)
        rows += front_rows(study, EVALUATIONS, say)
    return [{"seed": seed, **row} for row in rows]


def _digest(seed: int, folder: Path) -> str:
    """Of all that is measured: the package's files, the strangers, and the methods of this checkout."""
    package = package_of(seed, folder)
    files = [path for path in sorted(package.rglob("*")) if path.is_file() and path.name != "MODEL_CARD.md"]
    code = sorted(Path("services/multitask/worldtree_multitask/merging").glob("*.py"))
    code += [Path("training/perception") / f"{name}.py" for name in ("fronts", "methods", "measure", "evaluate")]
    known = hashlib.sha256()
    for path in (*files, strangers_of(seed, folder), *code):
        known.update(path.read_bytes())
    return known.hexdigest()


def measure_kept(seed: int, folder: Path, *, again: bool) -> list[dict[str, Any]]:
    """As `measure`; what was measured of the same weights by the same code is kept in the seed's folder."""
    kept, digest = folder_of(seed, folder) / "figures.json", _digest(seed, folder)
    if kept.exists() and not again:
        found = json.loads(kept.read_text())
        if found["digest"] == digest:
            rows: list[dict[str, Any]] = found["rows"]
            return rows
    rows = measure(seed, folder, load("validation", folder), load("test", folder), quick=False)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"digest": digest, "rows": rows}, indent=1) + "\n")
    return rows


def print_table(bars: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """One table: a merge a row, tasks as columns, means over seeds; the bars last."""
    table = Table(title="held-out seeds; share answered right", show_lines=False)
    table.add_column("", no_wrap=True)
    for name in ("mean", "of experts", *TASK_NAMES):
        table.add_column(name, justify="right", no_wrap=True)
    for cells in merge_table(rows):
        table.add_row(*cells)
    table.add_section()
    for bar in bars:
        verdict = "holds" if bar["holds"] else "MISSED"
        sign = ">=" if bar["better"] == "higher" else "<="
        table.add_row(bar["name"], f"{bar['value']:.3f}", f"{sign} {bar['bar']:g}", verdict)
    Console(width=200).print(table)


@app.command()
def main(
    seeds: Annotated[str, typer.Option(help="of training, by commas; others than 0 must have been trained here")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="a look at the shipped package, in under a minute")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the figures go")] = None,
    folder: Annotated[Path, typer.Option(help="where recorded frames and results lie")] = DEFAULT_FOLDER,
    again: Annotated[bool, typer.Option(help="measure again what is kept")] = False,
    card: Annotated[bool, typer.Option(help="rewrite MODEL_CARD.md with these figures (not when --quick)")] = True,
) -> None:
    """Evaluates, prints one table; fails where a bar does not hold (not when --quick)."""
    started = time.monotonic()
    chosen = [int(each) for each in seeds.split(",") if each]
    if not chosen:
        chosen = [seed for seed in range(1 if quick else 3) if (package_of(seed, folder) / "model.yaml").exists()]
    rows: list[dict[str, Any]] = []
    for seed in chosen:
        if quick:
            rows += measure(seed, folder, load("validation", folder), load("test", folder), quick=True)
        else:
            rows += measure_kept(seed, folder, again=again)
    bars = bars_of(rows)
    print_table(bars, rows)
    document = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "onnxruntime": ort.__version__,
        },
        "settings": {
            "seeds": chosen,
            "quick": quick,
            "test_images": QUICK_TEST if quick else TEST,
            "validation_images": QUICK_VALIDATION if quick else VALIDATION,
            "first_seed": FIRST_SEED["test"],
            "preferences": PREFERENCES,
            "evaluations": EVALUATIONS,
            "seconds": round(time.monotonic() - started, 1),
        },
        "bars": bars,
        "rows": rows,
    }
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n")
    if card and not quick:
        from training.perception.card import write_card

        write_card(package_of(0, folder), document)
    if not quick and not all(bar["holds"] for bar in bars):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
