"""Tries schedules and guidances of the scene model on validation seeds. `python -m training.minigrid.scene_search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from training.minigrid.package import Floats, Ints
from training.minigrid.scene_evaluate import judge
from training.minigrid.scene_export import load_scene
from training.minigrid.scene_manifest import GUIDANCE, SCHEDULE
from training.minigrid.scene_model import Scene
from training.minigrid.scene_sampler import SceneSampler
from training.minigrid.scene_train import DEFAULT_CHECKPOINT

SCHEDULES = (
    [1.0, 0.95, 0.9, 0.8],
    [1.0, 0.97, 0.95, 0.93, 0.9, 0.86, 0.8, 0.7],
    [1.0, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.83, 0.78, 0.7],
    [1.0, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9, 0.89, 0.88, 0.86, 0.84, 0.81, 0.77, 0.72],
)
GUIDANCES = (1.0, 1.5, 2.0, 3.0)
app = typer.Typer(add_completion=False)


def torch_sampler(module: Scene) -> SceneSampler:
    def evaluate(x: Floats, t: Floats, tokens: Ints) -> Floats:
        with torch.no_grad():
            x0: Floats = module(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(tokens)).numpy()
        return x0

    return SceneSampler(evaluate)


@app.command()
def main(
    checkpoint: Annotated[Path, typer.Option(help="what scene_train.py saved")] = DEFAULT_CHECKPOINT,
    prompts: Annotated[int, typer.Option(help="of each set")] = 64,
) -> None:
    """Every schedule with the chosen guidance, then every guidance with the chosen schedule."""
    torch.set_num_threads(1)
    model = load_scene(checkpoint)
    tried = [(levels, GUIDANCE) for levels in SCHEDULES] + [(list(SCHEDULE), guidance) for guidance in GUIDANCES]
    for levels, guidance in tried:
        found = judge(torch_sampler(Scene(model, guidance)), levels, split="validation", count=prompts)
        asked = ", ".join(
            f"{name}: everything {found[name]['everything']:.3f} legal {found[name]['legal']:.3f} "
            f"things {found[name]['things']:.2f}"
            for name in ("described", "composed")
        )
        free = found["unasked"]
        typer.echo(
            f"{len(levels):2} evaluations, guidance {guidance:g}: {asked}; unasked: legal {free['legal']:.3f} "
            f"things {free['things']:.2f} seen {free['seen']:.1f} gap {free['histogram_gap']:.3f}"
        )
    typer.echo(f"the simulator: {found['simulator']}")


if __name__ == "__main__":
    app()
