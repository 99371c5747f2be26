"""MODEL_CARD.md of the policies, from what `evaluate` left: `python -m training.navigator.card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from training.markdown import holds, number, paragraph, table
from training.navigator.evaluate import EVALUATION, bars, in_order, played_with
from training.navigator.export import PACKAGES
from training.navigator.figures import CARD, FOLDER, Cells, Figures
from training.navigator.train import BATCH, STEPS

_WHAT = {
    "joint": "Denoises what will be seen and what is done about it together: MiniGrid and BabyAI missions in words.",
    "action-only": "As `joint`, but imagines nothing: trained and asked without frames. For comparison.",
    "reactive": "One action from what is in view, with no memory and no frames: behaviour cloning. For comparison.",
}


def card(shape: str, cells: Cells, checkpoints: list[dict[str, Any]], few: list[dict[str, Any]]) -> str:
    names = [str(each["name"]) for each in PACKAGES[shape][1]]
    rows = [
        [
            env.rsplit("-v", 1)[0],
            planner,
            str(tally.count),
            f"{tally.success:.3f} ({tally.success_interval[0]:.2f}-{tally.success_interval[1]:.2f})",
            f"{tally.spl:.3f} ± {tally.spl_margin:.3f}",
            f"{tally.steps:.1f}",
        ]
        for env, planners in cells.items()
        for planner, tally in planners.items()
        if shape == "joint" or planner in names
    ]
    parts = [
        f"# {PACKAGES[shape][0]}",
        paragraph(
            _WHAT[shape],
            f"Trained for {STEPS[shape]:,} steps of {BATCH} chunks on 30,000 demonstrations (seed 0, one core):",
            "no lava.",
            "Planners: " + ", ".join(f"`{name}`" for name in names) + ".",
        ),
        "## Closed loop, in the simulator",
        paragraph(
            "Held-out seeds, through the gateway, two actions of each chunk executed; 95% intervals. `make",
            "evaluate-navigator` prints it, with falls, collisions and latencies.",
            "The temperature of the policies was chosen by looking at a hundred of these seeds.",
        ),
        table(["environment", "planner", "episodes", "success", "SPL", "steps"], rows),
    ]
    if shape == "joint":
        verdicts = [
            [name, number(value), f"{sign} {number(limit)}", "holds" if holds(value, sign, limit) else "missed"]
            for name, value, sign, limit in bars(cells)
        ]
        parts += _mismatch(checkpoints) if checkpoints else []
        parts += _scarce(few) if few else []
        parts += ["## Bars", table(["bar", "reached", "wanted", ""], verdicts)]
    return "\n\n".join(parts) + "\n"


def _mismatch(checkpoints: list[dict[str, Any]]) -> list[str]:
    rows = [
        [f"{each['steps']:,}", *(number(each[key]) for key in ("nats", "right", "one_room", "several_rooms"))]
        for each in checkpoints
    ]
    return [
        "## What is foretold, and what is done",
        paragraph(
            "Three checkpoints of the network: how well it foretells frames when the actions are known, on held-out",
            "demonstrations, and how often it gets there. `python -m training.navigator.mismatch` prints it.",
        ),
        table(["steps of training", "nats a cell", "cells right", "one room", "several rooms"], rows),
    ]


def _scarce(few: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            f"{each['demonstrations']:,}",
            each["planner"],
            str(each["episodes"]),
            *(number(each[key]) for key in ("one_room", "several_rooms")),
            f"{number(each['success'])} ({number(each['interval'][0])}-{number(each['interval'][1])})",
        ]
        for each in few
    ]
    return [
        "## With few demonstrations",
        paragraph(
            f"The ablation repeated after {few[0]['steps']:,} steps on few demonstrations, where foretelling frames",
            "might teach what actions alone do not. `python -m training.navigator.scarce` prints it.",
        ),
        table(["demonstrations", "planner", "episodes", "one room", "several rooms", "everywhere"], rows),
    ]


app = typer.Typer(add_completion=False)


@app.command()
def main(
    models: Annotated[Path, typer.Option(help="the model repository")] = Path("models"),
) -> None:
    """Writes the cards of the packages that there are."""
    cells = in_order(Figures(EVALUATION, played_with(models)).cells())
    checkpoints, few = (
        json.loads(file.read_text()) if file.exists() else []
        for file in (FOLDER / "mismatch.json", FOLDER / "scarce.json")
    )
    for shape, (name, _) in PACKAGES.items():
        folder = models / name / "1"
        if folder.exists():
            (folder / CARD).write_text(card(shape, cells, checkpoints, few))
            typer.echo(f"{folder / CARD}")


if __name__ == "__main__":
    app()
