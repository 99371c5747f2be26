"""Writes a package of what `train` left. `python -m training.perception.export --seed 0`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml
from safetensors.torch import save_file
from worldtree_runtime.multitask_package import MultitaskPackage

from training.minigrid import tiles
from training.perception.cameras import CAMERA_OF
from training.perception.data import DEFAULT_FOLDER, Domain, load
from training.perception.graph import export_graph
from training.perception.places import folder_of, package_of, strangers_of
from training.perception.preference import Merger, learn_map
from training.perception.served import Package
from training.perception.tasks import STRANGER_NAMES, TASK_NAMES, TASKS
from training.perception.train import read_base, read_expert

CALIBRATION, SCORING = 64, 100  # images of each task
_TOLERANCE = 2e-4  # of logits, onnxruntime against torch
app = typer.Typer(add_completion=False)


def manifest_of(layers: dict[str, list[str]]) -> dict[str, object]:
    return {
        "format": 1,
        "kind": "multitask",
        "name": "perception",
        "version": "1",
        "description": "Six questions about MiniGrid frames, each with its own camera: one base and six experts",
        "license": "Apache-2.0",
        "image": {"height_px": tiles.FRAME_PX, "width_px": tiles.FRAME_PX, "channels": 3},
        "files": {"predict": "predict.onnx", "base": "base.safetensors"},
        "layers": [{"name": name, "tensors": tensors} for name, tensors in layers.items()],
        "tasks": [
            {
                "name": task.name,
                "description": f"{task.description}; {CAMERA_OF[task.name]} camera",
                "classes": list(task.classes),
                "expert": f"experts/{task.name}.safetensors",
            }
            for task in TASKS
        ],
        "image_sets": [
            {
                "name": "calibration",
                "description": f"{CALIBRATION} images of each task, without labels, to learn merges from",
                "file": "sets/calibration.npz",
            },
            {
                "name": "scoring",
                "description": f"{SCORING} labelled images of each task that nothing learns from",
                "file": "sets/scoring.npz",
            },
        ],
        "preference": "preference.safetensors",
    }


def save_sets(validation: dict[str, Domain], test: dict[str, Domain], folder: Path) -> None:
    """Calibration from the validation split, scoring from the test split; the same for every seed of training."""
    rng = np.random.default_rng(31)
    folder.mkdir(parents=True, exist_ok=True)
    calibration = {name: domain.batch(CALIBRATION, rng)[0] for name, domain in validation.items()}
    np.savez_compressed(folder / "calibration.npz", **calibration)  # type: ignore[arg-type]
    scoring: dict[str, np.ndarray] = {}
    for name, domain in test.items():
        scoring[name], scoring[f"{name}.labels"] = domain.batch(SCORING, rng)
    np.savez_compressed(folder / "scoring.npz", **scoring)  # type: ignore[arg-type]


def verify(folder: Path, merger: Merger) -> float:
    """Largest difference of logits between onnxruntime and torch, over each expert and an even merge of all.

    Raises ValueError where it is above the tolerance.
    """
    package = Package.read(folder)
    images = package.images("calibration")[0]
    count, worst = len(TASK_NAMES), 0.0
    for row in (*np.eye(count, dtype=np.float32), np.full(count, 1 / count, np.float32)):
        coefficients = np.tile(row, (len(package.layout.layers), 1))
        weights = package.layout.combine(package.base, package.task_vectors, coefficients)
        for task in TASK_NAMES:
            with torch.no_grad():
                wanted = merger.logits(torch.from_numpy(coefficients), task, torch.from_numpy(images[task])).numpy()
            worst = max(worst, float(np.abs(package.network.logits(weights, images[task], task) - wanted).max()))
    if worst > _TOLERANCE:
        raise ValueError(f"{folder}: onnxruntime differs from torch by {worst}")
    return worst


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="0 writes the shipped package")] = 0,
    folder: Annotated[Path, typer.Option(help="where recorded frames and results lie")] = DEFAULT_FOLDER,
    target: Annotated[Path | None, typer.Option(help="package folder, if another")] = None,
) -> None:
    """Writes the package of one seed, and its strangers, and checks the package in onnxruntime."""
    torch.set_num_threads(1)
    home, target = folder_of(seed, folder), target or package_of(seed, folder)
    base = read_base(seed, folder)
    experts = {name: read_expert(home / "experts" / f"{name}.pt") for name in TASK_NAMES}
    heads = {name: head for name, (head, _) in experts.items()}
    task_vectors = {name: task_vector for name, (_, task_vector) in experts.items()}
    (target / "experts").mkdir(parents=True, exist_ok=True)
    export_graph(base, heads, target / "predict.onnx")
    save_file({name: value.contiguous() for name, value in base.state_dict().items()}, target / "base.safetensors")
    for name, task_vector in task_vectors.items():
        halves = {key: value.half().contiguous() for key, value in task_vector.items()}
        save_file(halves, target / "experts" / f"{name}.safetensors")
    others = {name: read_expert(home / "strangers" / f"{name}.pt")[1] for name in STRANGER_NAMES}
    path = strangers_of(seed, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{name}/{key}": v.half().contiguous() for name, each in others.items() for key, v in each.items()}, path
    )
    save_sets(load("validation", folder), load("test", folder), target / "sets")
    merger = Merger(base, heads, task_vectors, load("train", folder))
    save_file({"corners": learn_map(merger, seed, say=typer.echo)}, target / "preference.safetensors")
    manifest = MultitaskPackage.model_validate(manifest_of(base.layers()))
    text = yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, width=120)
    (target / "model.yaml").write_text(text)
    typer.echo(f"{target}: onnxruntime is within {verify(target, merger):.1e} of torch")


if __name__ == "__main__":
    app()
