"""MODEL_CARD.md, its tables from evaluate's JSON. `python -m training.perception.card FILE` writes it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from training.markdown import number, table
from training.perception import experts, preference
from training.perception.bars import merge_table, titles
from training.perception.base import BATCH, LOWEST_SEVERITY, STEPS
from training.perception.cameras import CAMERA_OF
from training.perception.served import DEFAULT_PACKAGE
from training.perception.tasks import TASK_NAMES, TASKS

_INTRO = """# perception: one base, six experts

Six questions about a 56 x 56 MiniGrid frame, each asked through a camera of its own. One base of 151 k parameters, six
experts as task vectors in half floats, heads as constants of the graph. The backbone's parameters are inputs of
`predict.onnx`, so that any merge is served by the same session. Licence: Apache-2.0. No data but the simulator's.
"""

_USE = """## Use and limits

Made to study and serve merges of experts, and to ask what a generated MiniGrid frame shows: each expert has seen clean
frames, too. It knows MiniGrid's pictures at 8 pixels a cell and nothing else. Scores are of class-balanced images:
rare answers count as much as common ones, so they are no accuracies on a walk through a world. A merge answers some
tasks far worse than their experts do; its card says which.
"""


def _tasks() -> str:
    rows = [
        [task.name, task.description, CAMERA_OF[task.name], ", ".join(task.classes), str(len(task.environments))]
        for task in TASKS
    ]
    return table(["task", "question", "camera", "answers", "environments"], rows)


def _recipe() -> str:
    return (
        f"Base: {STEPS} steps of {BATCH} frames of all environments, through all six cameras at severities "
        f"{LOWEST_SEVERITY:g} to 1 or none, AdamW; it learns what is unseen, free, wall or thing, cell by cell, once "
        "from each tile's features and once from the summary alone: none of the experts' answers. Heads: linear, "
        f"fitted on the frozen base, then frozen. Experts: SGD with momentum at {experts.RATE:g}, "
        f"{experts.STEPS} steps of {experts.BATCH} balanced images, {experts.CLEAN_SHARE:.0%} of them clean, and "
        f"{experts.ANCHORS} frames of the other cameras on which the summary should stay the base's (squared distance "
        "relative to its size, weight "
        f"{experts.ANCHOR_WEIGHT:g}). Map of preferences: {preference.STEPS} steps on {preference.IMAGES} training "
        "images of each task, without labels. Train, validation and test are disjoint by the seeds of their episodes."
    )


def _strengths(rows: list[dict[str, Any]]) -> str:
    shown = [row for row in rows if row["kind"] == "strength"]
    values = shown[0]["strengths"]
    cells = []
    for task in TASK_NAMES:
        curve = np.mean([row["scores"] for row in shown if row["task"] == task], axis=0)
        cells.append([task, *(number(each) for each in curve)])
    return table(["score of", *(f"preference {value:g}" for value in values)], cells)


def _fronts(rows: list[dict[str, Any]]) -> str:
    cells = []
    for title in titles(rows, "front"):
        chosen = [row for row in rows if row["kind"] == "front" and row["title"] == title]
        means = [np.mean([row[what] for row in chosen]) for what in ("tried", "points", "hypervolume")]
        cells.append([title, f"{means[0]:.0f}", f"{means[1]:.0f}", number(float(means[2]))])
    return table(["front", "merges tried", "points", "hypervolume"], cells)


def _preferences(rows: list[dict[str, Any]]) -> str:
    cells = [
        [str(row["seed"]), number(row["map"]), number(row["fixed"]), row["fixed_title"], f"{row['better_share']:.0%}"]
        for row in rows
        if row["kind"] == "preference"
    ]
    return table(["seed", "map", "best fixed merge", "which", "preferences the map answers better"], cells)


def _bars(bars: list[dict[str, Any]]) -> str:
    cells = [
        [
            bar["name"],
            number(bar["value"]),
            f"{'>=' if bar['better'] == 'higher' else '<='} {bar['bar']:g}",
            "holds" if bar["holds"] else "**missed**",
        ]
        for bar in bars
    ]
    return table(["bar", "value", "wanted", ""], cells)


def card_of(document: dict[str, Any]) -> str:
    """The whole text. Needs the rows of a run that was not --quick."""
    rows, settings = document["rows"], document["settings"]
    seeds = len(settings["seeds"])
    parts = [
        _INTRO,
        "## Tasks\n",
        _tasks(),
        "\n## Recipe\n",
        _recipe(),
        "\n## Figures\n",
        f"`python -m training.perception.evaluate`, means over {seeds} seed{'s' if seeds > 1 else ''} of training; the "
        f"package is that of seed 0. {settings['test_images']} test images of each task, "
        f"{settings['validation_images']} validation images to tune scales. Merges are the service's own methods on "
        "predict.onnx, on the package's calibration images.\n",
        table(["merge", "mean", "of experts", *TASK_NAMES], merge_table(rows)),
        "\nguarded: a guard stopped a collapse of the answers in at least one seed. Strangers: four experts of the "
        "same base for questions nobody asks (the picture's rotation, its brightness, which camera took it, labels by "
        "chance), which have no anchor: their own pictures are of every camera.\n",
        _bars(document["bars"]),
        "\nOne task's preference raised, the others sharing the rest:\n",
        _strengths(rows),
        f"\nPreference-weighted score over {settings['preferences']} random preferences:\n",
        _preferences(rows),
        "\nFronts chosen on the calibration images without labels, hypervolume of their test scores from 0:\n",
        _fronts(rows),
        "",
        _USE,
    ]
    return "\n".join(parts)


def write_card(folder: Path, document: dict[str, Any]) -> None:
    (folder / "MODEL_CARD.md").write_text(card_of(document))


app = typer.Typer(add_completion=False)


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="what evaluate wrote with --json")],
    folder: Annotated[Path, typer.Option(help="the package folder")] = DEFAULT_PACKAGE,
) -> None:
    """Writes the card again from figures that are there."""
    write_card(folder, json.loads(file.read_text()))


if __name__ == "__main__":
    app()
