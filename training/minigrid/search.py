"""Tries samplers and noise schedules on validation seeds. `python -m training.minigrid.search --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.minigrid import tiles
from training.minigrid.data import record_many
from training.minigrid.evaluate import DEFAULT_PACKAGE
from training.minigrid.legal import legal_views
from training.minigrid.package import Package
from training.minigrid.rolling import BATCH, START_COUNT, future_actions, generate, share, truth_of

DEPTH = 4
TWO = [[1.0, t] for t in (0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3)]
FOUR = [
    [1.0, 0.9, 0.7, 0.5],
    [1.0, 0.9, 0.7, 0.35],
    [1.0, 0.85, 0.6, 0.35],
    [1.0, 0.8, 0.6, 0.4],
    [1.0, 0.75, 0.6, 0.45],
    [1.0, 0.75, 0.55, 0.35],
    [1.0, 0.7, 0.55, 0.4],
]
EIGHT = [[1.0, 0.95, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]]
app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="the package folder")] = DEFAULT_PACKAGE,
    episode_count: Annotated[int, typer.Option("--episodes", help="validation episodes")] = 64,
) -> None:
    """Prints one line a schedule: accuracy, real-tile share (all, newly seen), legal views; depths 1 to 4 together."""
    package = Package(folder, block_count=BATCH * 9)
    length = START_COUNT + DEPTH
    episodes = record_many("validation", episode_count, length=length, check_rate=0.0, lively=True)
    truth = truth_of(episodes, depth=DEPTH, window=package.window)
    new = (truth.ids != tiles.DARK) & ~truth.plain
    # A view with much that is new is where coherence is decided.
    surprising = new.sum(-1) >= 8
    for levels in ([1.0], *TWO, *FOUR, *EIGHT):
        for kind in ("euler", "renoise"):
            if len(levels) <= 2 and kind == "euler":
                continue
            made = generate(package, episodes, future_actions(episodes, DEPTH), levels=levels, kind=kind, seed=5)
            right = share(made.ids == truth.ids, truth.plain)
            legal = legal_views(made.ids)
            figures = {
                "determined": right,
                "real": float(made.real.mean()),
                "real, new": share(made.real, new),
                "legal": float(legal.mean()),
                "legal, much new": share(legal, surprising),
            }
            line = "  ".join(f"{name} {value or 0:.3f}" for name, value in figures.items())
            typer.echo(f"{kind:8s} {line}  {levels}")


if __name__ == "__main__":
    app()
