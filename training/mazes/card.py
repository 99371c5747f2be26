"""MODEL_CARD.md of the maze model, from the figures that `evaluate` left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from training.markdown import number, paragraph, table
from training.mazes.evaluate import LARGE, shown
from training.mazes.export import DEFAULT_PACKAGE
from training.mazes.mazes import LARGEST, SMALLEST
from training.mazes.train import DEFAULT_FOLDER, MEASURED

app = typer.Typer(add_completion=False)


def card(figures: dict[str, Any]) -> str:
    found, curves = figures["large"], figures["curves"]
    minutes = curves["mlm_u"]["points"][-1][0]
    difference, low, high = found["difference"]
    parts = [
        "# mazes",
        paragraph(
            "Fills in the path of a maze: of each cell, the side by which the path leaves it. A transformer on cells,",
            'trained with the multi-step objective MLM-U (Nolte et al. 2024, "Transformers Can Navigate Mazes With',
            'Multi-Step Prediction"): labels are hidden at a rate drawn uniformly, and all of them predicted from the',
            "rest, forwards and backwards. Here all are hidden at first; in each round the surest are kept, dead ends",
            "before the path.",
        ),
        paragraph(
            f"Learnt from mazes of {SMALLEST} to {LARGEST} rows and columns, spanning trees by depth-first search,",
            f"drawn afresh in every step, a fifth of them with blocked cells, for {minutes:.0f} minutes of one core.",
            "What follows is of other seeds. `next_token` is the same network, trained for the same time on the same",
            "mazes to predict the next step. `make evaluate-mazes` prints all of it.",
        ),
        "## Paths found exactly, by size",
        table(
            ["size", "mazes", "cells of path", "rounds", "mlm_u", "valid", "in one round", "next_token", "valid"],
            [_row(row) for row in figures["rows"]],
        ),
        paragraph(
            "In brackets: 95% intervals. A valid path takes only steps that the map allows, from start to goal. Over",
            f"all {found['mazes']:,} mazes of {LARGE} x {LARGE} cells and more: {shown(found['mlm_u'])} against",
            f"{shown(found['next_token'])}, a difference of {difference:.3f} ({low:.3f} to {high:.3f}).",
        ),
        paragraph(
            "In one round, all labels as they are first predicted, the package finds",
            f"{shown(found['mlm_u, one round'])} of them: its lead comes from the rounds, which a model that",
            "only knows what came before cannot take.",
        ),
        "![Learning curves](../../../docs/mazes-learning.png)",
        paragraph(
            f"In that time `mlm_u` took {curves['mlm_u']['steps']:,} steps and `next_token`",
            f"{curves['next_token']['steps']:,}: its sequences are longer, the maze and then the path. Both are",
            f"measured on {MEASURED} validation mazes of each size from {LARGE} x {LARGE} on; the star is the package",
            f"itself there ({figures['validation']:.3f}). The curve is of labels kept from a probability of 0.95 on;",
            "it is served with more care.",
        ),
        "## Bars",
        table(
            ["bar", "reached", "wanted", ""],
            [
                [what, number(value), f">= {wanted:g}", "holds" if value >= wanted else "missed"]
                for what, value, wanted in figures["bars"]
            ],
        ),
        "## Limits",
        paragraph(
            "It learnt mazes without circles. On other maps more of its paths do not hold, where the service asks A*,",
            "and others are not the shortest, which its answer says. 8 x 8 cells, a share of them blocked at random:",
        ),
        table(
            ["blocked", "valid", "as short as any"],
            [[f"{row['blocked']:.0%}", number(row["valid"]), number(row["shortest"])] for row in figures["floors"]],
        ),
        paragraph(f"Maps of more than {LARGEST} rows or columns go to A*."),
    ]
    return "\n\n".join(parts) + "\n"


def _row(row: dict[str, Any]) -> list[str]:
    ours, at_once, theirs = row["mlm_u"], row["mlm_u, one round"], row["next_token"]
    return [
        row["size"],
        str(row["mazes"]),
        f"{row['path']:.1f}",
        f"{row['rounds']:.1f}",
        shown(ours),
        number(ours["valid"]),
        number(at_once["exact"]),
        shown(theirs),
        number(theirs["valid"]),
    ]


@app.command()
def main(
    package: Annotated[Path, typer.Option(help="package folder")] = DEFAULT_PACKAGE,
    folder: Annotated[Path, typer.Option(help="where the figures lie")] = DEFAULT_FOLDER,
) -> None:
    """Writes the card."""
    figures = json.loads((folder / "evaluate.json").read_text())
    (package / "MODEL_CARD.md").write_text(card(figures))
    typer.echo(f"{package / 'MODEL_CARD.md'} written")


if __name__ == "__main__":
    app()
