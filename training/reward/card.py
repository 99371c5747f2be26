"""MODEL_CARD.md of the judge, from the figures that `evaluate` and `downstream` left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from training.markdown import holds, number, paragraph, table
from training.reward.data import DEFAULT_FOLDER, GROUPS, MARGIN, STEPS
from training.reward.rubric import CATEGORIES, CATEGORY_NAMES, DIMENSIONS
from training.reward.served import DEFAULT_PACKAGE

app = typer.Typer(add_completion=False)


def card(figures: dict[str, Any], downstream: dict[str, Any] | None) -> str:
    found = figures["report"]
    best, pairs, held = (found[name] for name in ("best of four", "pairwise", "pairwise, flaws of other kinds"))
    parts = [
        "# judge",
        paragraph(
            "Judges rollouts of MiniGrid by what they were for. Two layers, after DMoERM: a router over categories of",
            "goals, and for each dimension an expert, a low-rank adapter on a shared trunk; an MLP a category joins",
            "their scores.",
        ),
        paragraph(
            f"Learnt from {GROUPS['train']:,} groups of four clips of {min(STEPS)} to {max(STEPS)} steps, by pairs of",
            "which 30% are labelled wrong; calibrated with labels as wrong. Truth is the simulator's. What follows is",
            "of other seeds, clean labels, goals in sentences never trained on; in half of the groups, flaws are of",
            f"kinds never trained on. In each group the best leads by {MARGIN:g} standard deviations or more.",
            "`make evaluate-reward` prints all of it.",
        ),
        "## Best of four",
        table(
            ["mean", *CATEGORY_NAMES, "known flaws", "flaws of other kinds"],
            [[number(best[name]) for name in ("mean", *CATEGORY_NAMES, "known flaws", "flaws of other kinds")]],
        ),
        "Chance is 0.25.",
        "## Dimensions",
        table(
            ["dimension", "what its score means", "pairs in order", "flaws of other kinds"],
            [[each.name, each.description, number(pairs[each.name]), number(held[each.name])] for each in DIMENSIONS],
        ),
        "## Categories",
        table(
            ["category", "what its goals ask", "what counts"],
            [
                [each.name, each.description, ", ".join(f"{name} {weight:g}" for name, weight in each.weights.items())]
                for each in CATEGORIES
            ],
        ),
        "## Chances, ties, weights, goals of no category",
        table(
            ["", ""],
            [
                [
                    "expected calibration error of the chance that one clip is better",
                    number(found["calibration"]["error"]),
                ],
                ["both of two equally good clips before all others", number(found["ties"]["before all others"])],
                ["and sharing the first rank", number(found["ties"]["shared rank"])],
                [
                    "best of four under weights of the request, against the truth weighted alike",
                    number(found["reweighted"]),
                ],
                ["goals put into their category", number(found["router"]["category found"])],
                ["goals of no category recognised as such", number(found["router"]["none recognised"])],
                ["goals of a category taken for none", number(found["router"]["taken for none"])],
                [
                    f"clips that the world model imagined with a mistake ({found['drift']['pairs']:.0f} of "
                    f"{found['drift']['of clips']:.0f}) found less good as pictures than the simulator's",
                    number(found["drift"]["reward in order"]),
                ],
                ["and less permanent", number(found["drift"]["permanence in order"])],
            ],
        ),
        "![Chances said and shares that came true](../../../docs/judge-calibration.png)",
        "## Bars",
        table(
            ["bar", "reached", "wanted", ""],
            [
                [what, number(value), f"{sign} {wanted:g}", "holds" if holds(value, sign, wanted) else "missed"]
                for what, value, sign, wanted in figures["bars"]
            ],
        ),
        "## Shapes",
        paragraph(
            "Best of four of networks with one trunk, trained on the same pairs for as many steps, fewer than the",
            "judge's own (`make compare-reward`), and of pixels. `double` has an expert a dimension and an MLP a",
            "category, and is told of dimensions too; the others are told which of two is better. `one-expert` has an",
            "expert a category, `dense` one head of as many parameters for all, `single` one linear head.",
        ),
        table(
            ["shape", "label noise", "seeds", "parameters", "mean", *CATEGORY_NAMES],
            _shapes(figures["shapes"]),
        ),
    ]
    if downstream is not None:
        counts = list(downstream["ceiling"])
        rows = [*downstream["curves"].items(), ("a judge that is never wrong", downstream["ceiling"])]
        parts += [
            "## The best of N, done in the simulator",
            paragraph(
                f"{downstream['episodes']} held-out episodes with an errand in view; the chosen future is played in",
                "the real simulator. `python -m training.reward.downstream`.",
            ),
            table(["", *(f"N = {count}" for count in counts)], [[n, *(number(v[c]) for c in counts)] for n, v in rows]),
            "![Success against the number of futures](../../../docs/judge-best-of-n.png)",
        ]
    return "\n\n".join(parts) + "\n"


def _shapes(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Means over seeds."""
    found = []
    for shape, noise in dict.fromkeys((row["shape"], row["noise"]) for row in rows):
        own = [row for row in rows if (row["shape"], row["noise"]) == (shape, noise)]
        means = [number(float(np.mean([row[name] for row in own]))) for name in ("mean", *CATEGORY_NAMES)]
        seeds = "-" if noise is None else ", ".join(str(row["seed"]) for row in own)
        found.append([shape, "-" if noise is None else f"{noise:g}", seeds, f"{own[0]['parameters']:,}", *means])
    return found


@app.command()
def main(
    package: Annotated[Path, typer.Option(help="package folder")] = DEFAULT_PACKAGE,
    folder: Annotated[Path, typer.Option(help="where the figures lie")] = DEFAULT_FOLDER,
) -> None:
    """Writes the card."""
    figures, later = json.loads((folder / "evaluate.json").read_text()), folder / "downstream.json"
    downstream = json.loads(later.read_text()) if later.exists() else None
    (package / "MODEL_CARD.md").write_text(card(figures, downstream))
    typer.echo(f"{package / 'MODEL_CARD.md'} written")


if __name__ == "__main__":
    app()
