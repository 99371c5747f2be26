"""Measures scene prompts against what they ask for. `python -m training.minigrid.scene_evaluate --help`.

The package's own graph is measured, under its own schedule. Two sets of prompts that training did not see:
- *described*: captions of views of the test seeds, so that what they ask for does exist together;
- *composed*: two things drawn independently of each other and of where they would be found.

What a prompt asks for is looked for in the view drawn for it. *by chance* is the same question asked of the view
that was drawn for another prompt of the set.
- *thing*: one of the kind is there; *colour*, *state*, *number*, *place*: with the named colour, state, number, place,
  of the mentions that name one; *carried*: it is in the agent's hands; *everything*: all that the prompt names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

from training.minigrid import tiles
from training.minigrid.captions import Caption, Mention, describe, write_caption
from training.minigrid.data import FIRST_SEED, record_many
from training.minigrid.legal import legal_views
from training.minigrid.package import UInt8
from training.minigrid.scene_data import pick_views
from training.minigrid.scene_sampler import SceneSampler
from training.minigrid.vocabulary import COLORS, EXAMPLES, STATES

DEFAULT_OUTPUT = Path("out/training/minigrid/scene.json")
DEFAULT_PACKAGE = Path("models/minigrid/1")
REAL_TOLERANCE = 2.0  # of 255, mean absolute error of a tile
VARIETY_PROMPTS = ("", "a lava crossing with a green goal", "a room with a red locked door and a yellow key")
VARIETY_SEEDS = 64
Ids = npt.NDArray[np.int64]
app = typer.Typer(add_completion=False)

# What a mention is asked in each column, if it names such a thing.
QUESTIONS: dict[str, Callable[[Mention], Mention | None]] = {
    "thing": lambda m: None if m.carried else Mention(m.kind),
    "colour": lambda m: None if m.carried or not m.color else Mention(m.kind, m.color),
    "state": lambda m: replace(m, count=1, place=None) if m.state else None,
    "number": lambda m: m if m.count > 1 else None,
    "place": lambda m: m if m.place else None,
    "carried": lambda m: m if m.carried else None,
}


@dataclass(frozen=True, slots=True)
class Held:
    """Views of held-out episodes and a caption of each."""

    captions: list[Caption]
    views: Ids  # [n, 49]


def described(split: str, episodes: int) -> Held:
    """A caption of one view of each episode of a split."""
    rng = np.random.default_rng([episodes, 3])
    names, views = pick_views(record_many(split, episodes, length=40, check_rate=0.0), rng)
    return Held([describe(name, ids, rng) for name, ids in zip(names, views, strict=True)], views)


def composed(split: str, count: int) -> list[Caption]:
    """Prompts that name two things of independent kinds and colours; other ones for each split."""
    rng = np.random.default_rng([5, FIRST_SEED[split]])

    def thing() -> Mention:
        kind = str(rng.choice(["door", "door", "key", "ball", "box"]))
        state = str(rng.choice(STATES)) if kind == "door" and rng.random() < 0.6 else None
        return Mention(kind, str(rng.choice(COLORS)), state)

    pairs = [(thing(), thing()) for _ in range(count)]
    return [Caption(write_caption(pair, "a room", rng), pair) for pair in pairs]


def ask(captions: list[Caption], views: Ids) -> dict[str, float | None]:
    """Share of what the captions name that the views show, by question."""
    answers: dict[str, list[bool]] = {name: [] for name in (*QUESTIONS, "everything")}
    for caption, view in zip(captions, views, strict=True):
        for name, question in QUESTIONS.items():
            asked = [q for m in caption.mentions if (q := question(m)) is not None]
            answers[name] += [bool(q.holds(view)) for q in asked]
        if caption.mentions:
            answers["everything"].append(all(bool(m.holds(view)) for m in caption.mentions))
    return {name: float(np.mean(given)) if given else None for name, given in answers.items()}


def quality(frames: UInt8) -> dict[str, float]:
    """Real-tile share, and share of legal views, of frames [n, 56, 56, 3]."""
    ids, errors = tiles.nearest_tile(frames)
    return {"real": float((errors <= REAL_TOLERANCE).mean()), "legal": float(legal_views(ids).mean())}


def spread(ids: Ids) -> dict[str, float]:
    """How different views [n, 49] are: distinct ones, and share of cells in which two of them differ on average."""
    apart = [float((ids[k + 1 :] != ids[k]).mean()) for k in range(len(ids) - 1)]
    counts = np.arange(len(ids) - 1, 0, -1)
    return {"distinct": float(len(np.unique(ids, axis=0))), "cells_apart": float(np.average(apart, weights=counts))}


def contents(ids: Ids) -> dict[str, float]:
    """Things and seen cells a view, of views [n, 49]."""
    things = (ids >= tiles.GOAL) & (ids < tiles.OBJECT_COUNT)
    return {"things": float(things.sum(-1).mean()), "seen": float((ids != tiles.DARK).sum(-1).mean())}


def histogram_gap(ids: Ids, truth: Ids) -> float:
    """Total variation between the tiles of two sets of views, 0 to 1."""
    one, other = (np.bincount(v.ravel(), minlength=tiles.TILE_COUNT) / v.size for v in (ids, truth))
    return float(0.5 * np.abs(one - other).sum())


def judge(sampler: SceneSampler, levels: list[float], *, split: str, count: int, seed: int = 0) -> dict[str, Any]:
    """What `count` prompts of each set, and none, lead to; beside the simulator's own views."""
    held = described(split, count)
    seed += FIRST_SEED[split]  # what was tried on validation met other noise
    document: dict[str, Any] = {"settings": {"prompts": len(held.captions), "composed": count, "levels": levels}}
    for name, captions in (("described", held.captions), ("composed", composed(split, count))):
        frames = sampler.draw([c.text for c in captions], levels=levels, seed=seed)
        ids = tiles.nearest_tile(frames)[0]
        document[name] = {**ask(captions, ids), **quality(frames), **contents(ids)}
        document[f"{name}, by chance"] = ask(captions, np.roll(ids, 1, axis=0))
    free = sampler.draw([""] * len(held.views), levels=levels, seed=seed + 1)
    ids = tiles.nearest_tile(free)[0]
    document["unasked"] = {**quality(free), **contents(ids), "histogram_gap": histogram_gap(ids, held.views)}
    half = len(held.views) // 2
    gap = histogram_gap(held.views[:half], held.views[half:])
    document["simulator"] = {**contents(held.views), "histogram_gap": gap, **spread(held.views[:VARIETY_SEEDS])}
    return document


def measure(sampler: SceneSampler, levels: list[float], *, split: str, count: int, seed: int = 0) -> dict[str, Any]:
    """All figures: what is judged of `count` prompts of each set, and the variety over seeds."""
    document = judge(sampler, levels, split=split, count=count, seed=seed)
    document["variety"] = {
        prompt: spread(tiles.nearest_tile(sampler.draw([prompt] * VARIETY_SEEDS, levels=levels, seed=seed + 2))[0])
        for prompt in VARIETY_PROMPTS
    }
    return document


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show(document: dict[str, Any], console: Console) -> None:
    columns = [*QUESTIONS, "everything", "real", "legal", "things"]
    table = Table("prompts", *columns, title="What was asked for is in the view (share)")
    for name in ("described", "described, by chance", "composed", "composed, by chance", "unasked"):
        table.add_row(name, *(_text(document[name].get(column)) for column in columns))
    console.print(table)
    table = Table("views", "distinct", "cells apart", title=f"{VARIETY_SEEDS} seeds of one prompt")
    for name, row in ((f"'{k}'", v) for k, v in document["variety"].items()):
        table.add_row(name, f"{row['distinct']:.0f}", _text(row["cells_apart"]))
    real = document["simulator"]
    table.add_row("the simulator's", f"{real['distinct']:.0f}", _text(real["cells_apart"]))
    console.print(table)
    for name in ("unasked", "simulator"):
        row = document[name]
        console.print(
            f"{name}: {row['things']:.2f} things and {row['seen']:.1f} seen cells a view; "
            f"tiles {row['histogram_gap']:.3f} apart from the simulator's (total variation)"
        )


def contact_sheet(sampler: SceneSampler, levels: list[float], *, columns: int = 12) -> Image.Image:
    """A row of views for each of the package's example prompts, and one without a prompt."""
    rows = []
    for k, prompt in enumerate(("", *EXAMPLES)):
        frames = sampler.draw([prompt] * columns, levels=levels, seed=100 + k)
        framed = np.pad(frames, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
        rows.append(np.concatenate(list(framed), axis=1))
    return Image.fromarray(np.concatenate(rows))


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="the package")] = DEFAULT_PACKAGE,
    split: Annotated[str, typer.Option(help="test, or validation to choose by")] = "test",
    prompts: Annotated[int, typer.Option(help="of each set")] = 200,
    output: Annotated[Path, typer.Option(help="where the figures go; a .png of views beside")] = DEFAULT_OUTPUT,
    card: Annotated[bool, typer.Option(help="put these figures into MODEL_CARD.md (the test split's only)")] = True,
) -> None:
    """Prints the figures of the package's scene prompts and writes them as JSON."""
    levels = yaml.safe_load((folder / "model.yaml").read_text())["prompt"]["schedule"]
    sampler = SceneSampler.load(folder)
    document = measure(sampler, levels, split=split, count=prompts)
    show(document, Console(width=140))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2))
    contact_sheet(sampler, levels).save(output.with_suffix(".png"))
    if card and split == "test":
        from training.minigrid.scene_card import write_section

        write_section(folder / "MODEL_CARD.md", document)


if __name__ == "__main__":
    app()
