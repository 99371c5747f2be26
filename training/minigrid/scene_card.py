"""The model card's section on scene prompts, with every figure taken from `scene_evaluate`'s document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.markdown import number, put_section, section_of, table
from training.minigrid.scene_data import MIN_SEEN
from training.minigrid.scene_evaluate import QUESTIONS, VARIETY_SEEDS
from training.minigrid.scene_manifest import GUIDANCE
from training.minigrid.vocabulary import ALIASES, EXAMPLES, TOKENS, WORDS

HEADING = "## Scene prompts"
EXPERTS_HEADING = "## What experts see"  # written by benchmarks/probe_generated.py
_NEXT_HEADING = "## Limits"
TEXT = (
    HEADING
    + """

`scene.onnx` draws a session's first view from noise and the words of a prompt, such as {examples}. It knows {words}
words and {aliases} other spellings of them ({tokens} words a prompt at most): {list}.

Measured on the graph itself by `python -m training.minigrid.scene_evaluate`, {prompts} prompts a row,
{evaluations} evaluations a view. Share of what was asked for that is in the view:

{asked}

- *described*: captions of held-out views. *composed*: two things of independent kinds and colours. *by chance*: the
  same questions, asked of the view drawn for another prompt.
- *thing*: one of the kind; *colour*, *state*, *number*, *place*: as named, where named; *carried*: in the agent's
  hands; *everything*: all that the prompt names. *real* tiles and *legal* views are as above; tiles are drawn one by
  one from the codebook, not blended, and the agent's only in its cell, so *real* is no achievement here; *legal* is.
  *things*: cells with one, a view.
- The prompt's logits are guided (classifier-free, {guidance:g}): more guidance shows more of what is asked, and more
  things than were asked.

Variety, {seeds} seeds of one prompt (*cells apart*: share of the 49 cells in which two views differ on average):

{variety}

Without a prompt, views hold {things:.2f} things and {seen:.1f} seen cells on average, the simulator's {things_true:.2f}
and {seen_true:.1f}; their tiles are {gap:.3f} (total variation) from the simulator's, of which two halves of the
simulator's own views are {gap_true:.3f} apart.

Learnt from the frames of the world model's training set, those with at least {min_seen} seen cells, richer ones more
often, half of them with colours exchanged so that no colour belongs to a thing; captions are made from what a view
shows (`training/minigrid/captions.py`). Words that no caption explains alone (*maze*, *playground*, *chain*) mean what
views of such environments look like. The shipped weights (0.76 M parameters): seed 0, 3,100 steps of 32 views on a
shared core. How long it would be was changed four times on the way, and with it when the rates began to fall; a run
from scratch under the settings in the code has not been repeated. A number is seldom kept to: what is asked for comes
in too many copies.
"""
)


def scene_section(document: dict[str, Any]) -> str:
    """Markdown of what `scene_evaluate.measure` found."""
    columns = [*QUESTIONS, "everything", "real", "legal", "things"]
    sets = ("described", "described, by chance", "composed", "composed, by chance", "unasked")
    asked = [[name, *(number(document[name].get(c)) for c in columns)] for name in sets]
    variety = [
        [f"`{name}`" if name else "none", f"{row['distinct']:.0f}", number(row["cells_apart"])]
        for name, row in document["variety"].items()
    ]
    true, free = document["simulator"], document["unasked"]
    variety.append(["the simulator's views", f"{true['distinct']:.0f}", number(true["cells_apart"])])
    return TEXT.format(
        examples=", ".join(f"*{example}*" for example in EXAMPLES[:2]),
        words=len(WORDS),
        aliases=len(ALIASES),
        tokens=TOKENS,
        list=", ".join(WORDS),
        prompts=document["settings"]["prompts"],
        evaluations=len(document["settings"]["levels"]),
        asked=table(["prompts", *columns], asked),
        seeds=VARIETY_SEEDS,
        guidance=GUIDANCE,
        variety=table(["prompt", "distinct", "cells apart"], variety),
        things=free["things"],
        seen=free["seen"],
        gap=free["histogram_gap"],
        things_true=true["things"],
        seen_true=true["seen"],
        gap_true=true["histogram_gap"],
        min_seen=MIN_SEEN,
    )


def kept_section(card: Path, heading: str = HEADING) -> str:
    """A section of a card that is there, for whoever writes the rest anew; empty when there is none."""
    return section_of(card.read_text(), heading) if card.exists() else ""


def write_section(card: Path, document: dict[str, Any]) -> None:
    """Puts the section in its place in a card, before its limits."""
    card.write_text(put_section(card.read_text(), scene_section(document), before=_NEXT_HEADING))
