"""What foretelling frames teaches where there is little to learn from: `python -m training.navigator.scarce`.

The published ablation (AstraNav-World: frames and actions denoised together against either alone), repeated with few
demonstrations: with 30,000 of them the policy that foretells nothing has seen everything it needs as well. All are
trained alike, for as many steps, and play the same held-out episodes.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from worldtree.episodes import wilson

from training.navigator.data import DEFAULT_FOLDER, record_all
from training.navigator.driving import drive, served
from training.navigator.evaluate import ACTION_ONLY, ENVISION, JOINT
from training.navigator.figures import FOLDER
from training.navigator.missions import MULTI_ROOM, ONE_ROOM
from training.navigator.train import load_policy, train

_ASKED = {"joint": (JOINT, ENVISION), "action-only": (ACTION_ONLY,)}  # planners of each shape
_EVERYWHERE = (*ONE_ROOM, *MULTI_ROOM)


def learn(shape: str, demonstrations: int, steps: int, seed: int) -> Path:
    """Trains one, if it is missing. Returns the folder that it lies in."""
    torch.set_num_threads(1)
    folder = DEFAULT_FOLDER / f"{demonstrations}-demonstrations-{steps}-steps"
    train(shape, seed, folder, steps, typer.echo)
    return folder


app = typer.Typer(add_completion=False)


@app.command()
def main(
    demonstrations: Annotated[list[int] | None, typer.Option(help="how many; may be repeated")] = None,
    steps: Annotated[int, typer.Option(help="of training")] = 1000,
    count: Annotated[int, typer.Option(help="episodes of each environment")] = 60,
    seed: Annotated[int, typer.Option(help="of training")] = 0,
    workers: Annotated[int, typer.Option(help="processes that train")] = 1,
    json_file: Annotated[Path, typer.Option("--json", help="where the figures go")] = (FOLDER / "scarce.json"),
) -> None:
    """Prints success by number of demonstrations and by planner."""
    amounts = demonstrations or [500]
    for amount in amounts:
        record_all(DEFAULT_FOLDER / f"{amount}-demonstrations-{steps}-steps", episodes=amount, held=100)
    jobs = [(shape, amount, steps, seed) for amount in amounts for shape in _ASKED]
    with ProcessPoolExecutor(workers) as pool:
        folders = dict(zip(jobs, pool.map(learn, *zip(*jobs, strict=True)), strict=True))
    table = Table(title=f"held-out episodes, policies of {steps:,} steps, 95% intervals")
    for name in ("demonstrations", "planner", "one room", "several rooms", "everywhere"):
        table.add_column(name, justify="left" if name == "planner" else "right")
    rows: list[dict[str, Any]] = []
    for (shape, amount, _, _), folder in folders.items():
        with served(load_policy(shape, seed, folder), shape) as policy:
            for planner in _ASKED[shape]:
                found = drive(policy, planner, _EVERYWHERE, count)
                one, several, everywhere = (
                    sum(found[env] for env in group) / len(group) for group in (ONE_ROOM, MULTI_ROOM, _EVERYWHERE)
                )
                total = count * len(_EVERYWHERE)
                low, high = wilson(everywhere, total)
                rows.append(
                    {
                        "demonstrations": amount,
                        "steps": steps,
                        "planner": planner,
                        "episodes": total,
                        "one_room": one,
                        "several_rooms": several,
                        "success": everywhere,
                        "interval": [low, high],
                    }
                )
                told = f"{everywhere:.3f} ({low:.3f}-{high:.3f})"
                table.add_row(f"{amount:,}", planner, f"{one:.3f}", f"{several:.3f}", told)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(rows, indent=1) + "\n")
    Console(width=120).print(table)


if __name__ == "__main__":
    app()
