"""Both objectives on mazes of held-out seeds, by size. `python -m training.mazes.evaluate`.

`mlm_u` is the package as it is served, through the service's own code; `next_token` the model of the same shape and the
same time of training that predicts step by step (`training/mazes/weights`), and decodes greedily.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from worldtree.episodes import wilson
from worldtree_navigator.grid import Grid
from worldtree_navigator.maze_model import MazeModel as Served
from worldtree_navigator.maze_path import follow
from worldtree_runtime.maze_package import MazePackage
from worldtree_runtime.model_repository import ModelRepository

from training.mazes.decoding import grid_of, next_token_paths, path_of
from training.mazes.export import DEFAULT_PACKAGE
from training.mazes.mazes import Maze, draw_set
from training.mazes.states import BASELINE, CURVES, load_state
from training.mazes.train import DEFAULT_FOLDER, MEASURED, MEASURED_SIDES

SIZES = ((5, 5), (6, 6), (7, 7), (8, 8), (9, 9), (10, 10), (7, 10))
BLOCKED_SIZES = ((8, 8), (10, 10))
LARGE = 7  # rows and columns from which mazes count for the bar
MARGIN = 0.15
PICTURE = Path("docs/mazes-learning.png")
_BATCH = 50
Row = dict[str, Any]
Bar = tuple[str, float, float]  # what, reached, wanted at least


def interval(right: int, count: int) -> tuple[float, float]:
    """Of a share, 95% (Wilson 1927)."""
    return wilson(right / count, count)


def difference_interval(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float, float]:
    """The difference of two shares of the same mazes, and its 95% interval, by what each maze makes of it."""
    each = np.array(ours, float) - np.array(theirs, float)
    half = 1.96 * float(each.std(ddof=1)) / len(each) ** 0.5
    return float(each.mean()), float(each.mean()) - half, float(each.mean()) + half


def served_paths(served: Served, mazes: Sequence[Maze], *, rounds: int | None = None) -> tuple[list[list[int]], float]:
    """Paths of mazes of one size as the service finds them, and the mean number of rounds."""
    paths, passes = [], []
    for first in range(0, len(mazes), _BATCH):
        part = mazes[first : first + _BATCH]
        fillings = [served.begin(*_begun(maze)) for maze in part]
        if rounds is not None:
            for each in fillings:
                each.rounds_left = rounds
        count = 0
        while still := [each for each in fillings if not each.done]:
            served.advance(still)
            count += len(still)
        passes.append(count)
        paths += [path_of(filling, maze)[0] for filling, maze in zip(fillings, part, strict=True)]
    return paths, sum(passes) / len(mazes)


def _begun(maze: Maze) -> tuple[int, int, bytes, int, int]:
    rows, columns = maze.open_sides.shape
    return rows, columns, maze.open_sides.tobytes(), maze.path[0], maze.path[-1]


def measured(paths: Sequence[Sequence[int]], mazes: Sequence[Maze]) -> dict[str, Any]:
    exact = [tuple(path) == maze.path for path, maze in zip(paths, mazes, strict=True)]
    valid = [
        grid_of(maze).path_fault(path, maze.path[0], maze.path[-1]) is None
        for path, maze in zip(paths, mazes, strict=True)
    ]
    return {
        "exact": float(np.mean(exact)),
        "interval": interval(sum(exact), len(exact)),
        "valid": float(np.mean(valid)),
        "each": exact,
    }


def report(served: Served, baseline: Any, count: int, say: Callable[[str], None]) -> tuple[list[Row], dict[str, Any]]:
    """A row a size, and what all mazes of LARGE by LARGE cells and more say together."""
    rows: list[Row] = []
    for sizes, blocked in ((SIZES, False), (BLOCKED_SIZES, True)):
        for height, width in sizes:
            mazes = draw_set("test", height, width, count, blocked=blocked)
            ours, rounds = served_paths(served, mazes)
            at_once, _ = served_paths(served, mazes, rounds=1)
            theirs: list[list[int]] = []
            for first in range(0, count, _BATCH):
                theirs += next_token_paths(baseline, mazes[first : first + _BATCH])
            name = f"{height} x {width}" + (", cells blocked" if blocked else "")
            row = {
                "size": name,
                "large": min(height, width) >= LARGE and not blocked,
                "mazes": count,
                "path": float(np.mean([len(maze.path) for maze in mazes])),
                "rounds": rounds,
                "mlm_u": measured(ours, mazes),
                "mlm_u, one round": measured(at_once, mazes),
                "next_token": measured(theirs, mazes),
            }
            rows.append(row)
            say(f"{name}: {row['mlm_u']['exact']:.3f} against {row['next_token']['exact']:.3f}")  # type: ignore[index]
    large = [row for row in rows if row["large"]]
    found: dict[str, Any] = {}
    for name in ("mlm_u", "mlm_u, one round", "next_token"):
        each = [right for row in large for right in row[name]["each"]]
        found[name] = {"exact": float(np.mean(each)), "interval": interval(sum(each), len(each)), "each": each}
    found["difference"] = difference_interval(found["mlm_u"]["each"], found["next_token"]["each"])
    found["mazes"] = len(found["mlm_u"]["each"])
    for kept in (
        *(row[name] for row in rows for name in ("mlm_u", "mlm_u, one round", "next_token")),
        *(found[name] for name in ("mlm_u", "mlm_u, one round", "next_token")),
    ):
        del kept["each"]
    return rows, found


def bars_of(found: dict[str, Any]) -> list[Bar]:
    return [
        (
            f"exact match of mlm_u above that of next_token, {LARGE} x {LARGE} cells and more",
            found["difference"][0],
            MARGIN,
        )
    ]


def print_report(rows: list[Row], found: dict[str, Any]) -> None:
    console = Console(width=150)
    table = Table(title="paths found exactly (95% interval), and valid ones")
    for name in ("size", "mazes", "cells of path", "rounds", "mlm_u", "valid", "in one round", "next_token", "valid"):
        table.add_column(name, justify="right")
    for row in rows:
        ours, theirs = row["mlm_u"], row["next_token"]
        table.add_row(
            row["size"], str(row["mazes"]), f"{row['path']:.1f}", f"{row['rounds']:.1f}", shown(ours),
            f"{ours['valid']:.3f}", f"{row['mlm_u, one round']['exact']:.3f}", shown(theirs), f"{theirs['valid']:.3f}",
        )  # fmt: skip
    console.print(table)
    table = Table(title=f"{LARGE} x {LARGE} cells and more, none blocked: {found['mazes']} mazes")
    for name in ("mlm_u", "in one round", "next_token", "difference"):
        table.add_column(name, justify="right")
    difference, low, high = found["difference"]
    shares = (shown(found[name]) for name in ("mlm_u", "mlm_u, one round", "next_token"))
    table.add_row(*shares, f"{difference:.3f} ({low:.3f} to {high:.3f})")
    console.print(table)
    table = Table(title="bars")
    for name in ("bar", "reached", "wanted", ""):
        table.add_column(name)
    for what, value, wanted in bars_of(found):
        table.add_row(what, f"{value:.3f}", f">= {wanted:g}", "holds" if value >= wanted else "MISSED")
    console.print(table)


def shown(measure: dict[str, Any]) -> str:
    low, high = measure["interval"]
    return f"{measure['exact']:.3f} ({low:.3f} to {high:.3f})"


def floors(served: Served, count: int = 100) -> list[dict[str, float]]:
    """Maps that are no mazes, of 8 x 8 cells of which a share is blocked at random, where there is a way: how many
    paths are valid, and how many as short as any. Nothing like them was trained on.
    """
    rng, side, found = np.random.default_rng(7), 8, []
    for share in (0.0, 0.15, 0.3, 0.4):
        valid, shortest, tried = 0, 0, 0
        while tried < count:
            blocked = (rng.random(side * side) < share).astype(np.uint8)
            start, goal = (int(cell) for cell in rng.choice(side * side, 2, replace=False))
            blocked[[start, goal]] = 0
            grid = Grid.of_blocked(side, side, blocked.tobytes())
            best = grid.shortest_path(start, goal)
            if best is None:
                continue
            tried += 1
            filling = served.begin(side, side, grid.open_sides, start, goal)
            while not filling.done:
                served.advance([filling])
            labels, chances = filling.labels.ravel().tolist(), filling.chances.ravel().tolist()
            path, _ = follow(grid, labels, chances, start, goal)
            if grid.path_fault(path, start, goal) is None:
                valid, shortest = valid + 1, shortest + (len(path) == len(best))
        found.append({"blocked": share, "valid": valid / count, "shortest": shortest / count})
    return found


def validated(served: Served) -> float:
    """Exact match of the package on the mazes that the learning curves are measured on."""
    right: list[bool] = []
    for side in MEASURED_SIDES:
        mazes = draw_set("validation", side, side, MEASURED)
        right += measured(served_paths(served, mazes)[0], mazes)["each"]
    return float(np.mean(right))


def draw_curves(curves: dict[str, Any], served: float, path: Path) -> None:
    """Exact match on validation mazes against minutes of training, as a PNG. `served`: of the package."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for objective, curve in curves.items():
        minutes, shares = zip(*curve["points"], strict=True)
        axes.plot(minutes, shares, marker="o", markersize=3, label=f"{objective} ({curve['steps']:,} steps)")
    axes.plot(curves["mlm_u"]["points"][-1][0], served, marker="*", markersize=12, label="mlm_u, as it is served")
    axes.set_xlabel("minutes of training, one core")
    axes.set_ylabel("paths found exactly")
    axes.set_ylim(0, 1.02)
    axes.set_title("validation mazes of 7 x 7 to 10 x 10 cells")
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


app = typer.Typer(add_completion=False)


@app.command()
def main(
    package: Annotated[Path, typer.Option(help="package folder")] = DEFAULT_PACKAGE,
    count: Annotated[int, typer.Option(help="mazes of each size")] = 400,
    json_file: Annotated[Path, typer.Option("--json", help="where the figures go")] = DEFAULT_FOLDER / "evaluate.json",
) -> None:
    """Prints the table and the bar, and draws the learning curves."""
    torch.set_num_threads(1)
    served = Served(ModelRepository(package.parent.parent, MazePackage).read(package))
    rows, found = report(served, load_state(BASELINE), count, typer.echo)
    print_report(rows, found)
    curves = json.loads(CURVES.read_text())
    on_validation = validated(served)
    draw_curves(curves, on_validation, PICTURE)
    open_floors = floors(served)
    for row in open_floors:
        told = f"{row['valid']:.2f} valid, {row['shortest']:.2f} as short as any"
        typer.echo(f"8 x 8, no maze, {row['blocked']:.0%} blocked: {told}")
    json_file.parent.mkdir(parents=True, exist_ok=True)
    figures = {"rows": rows, "large": found, "bars": bars_of(found), "curves": curves, "validation": on_validation}
    figures["floors"] = open_floors
    json_file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    app()
