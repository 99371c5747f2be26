"""Writes the package and checks it in onnxruntime. `python -m training.mazes.export`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml
from torch import Tensor, nn
from worldtree_navigator.maze_model import MazeModel as Served
from worldtree_runtime.maze_package import MazePackage
from worldtree_runtime.model_repository import ModelRepository

from training.mazes.decoding import ROUNDS, SURE
from training.mazes.mazes import LARGEST, draw_set
from training.mazes.model import HIDDEN, MazeModel
from training.mazes.states import BASELINE, read_trained, save_curves, save_state
from training.mazes.train import DEFAULT_FOLDER

DEFAULT_PACKAGE = Path("models/mazes/1")
_INPUTS = ("open_sides", "marks", "labels")
_TOLERANCE = 1e-4
_CHECKED = ((5, 5), (7, 9), (10, 10), (1, 4), (2, 1))  # rows and columns
_BATCHES = (1, 3, 16)


class Chances(nn.Module):
    """The model as it is served: probabilities in place of logits."""

    def __init__(self, model: MazeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, open_sides: Tensor, marks: Tensor, labels: Tensor) -> Tensor:
        return self.model(open_sides, marks, labels).softmax(-1)  # type: ignore[no-any-return]


def manifest(rounds: int, sure: float) -> dict[str, object]:
    return {
        "format": 1,
        "kind": "maze",
        "name": "mazes",
        "version": "1",
        "description": "Fills in the paths of mazes of up to 10 x 10 cells, all steps at once, in a few rounds.",
        "license": "MIT",
        "files": {"path": "path.onnx"},
        "max_rows": LARGEST,
        "max_columns": LARGEST,
        "fill": {"rounds": rounds, "sure": sure},
    }


def write(model: MazeModel, target: Path, *, rounds: int, sure: float) -> None:
    given = torch.zeros(2, 6, 7, dtype=torch.int64)
    written = io.BytesIO()
    torch.onnx.export(
        Chances(model).eval(),
        (given, given, given),
        written,
        input_names=list(_INPUTS),
        output_names=["chances"],
        dynamic_axes={name: {0: "batch", 1: "rows", 2: "columns"} for name in (*_INPUTS, "chances")},
        opset_version=18,
        dynamo=False,
    )
    target.mkdir(parents=True, exist_ok=True)
    (target / "path.onnx").write_bytes(written.getvalue())
    package = MazePackage.model_validate(manifest(rounds, sure))
    (target / "model.yaml").write_text(
        yaml.safe_dump(package.model_dump(mode="json"), sort_keys=False, width=120, allow_unicode=True)
    )


@torch.no_grad()
def verify(model: MazeModel, target: Path) -> float:
    """Largest difference of probabilities between the package, loaded as the service does, and torch. Raises ValueError
    where it is above the tolerance, or where a batch says anything else than each of its mazes alone.
    """
    stored = ModelRepository(target.parent.parent, MazePackage).read(target)
    served, worst = Served(stored), 0.0
    for rows, columns in _CHECKED:
        rng = np.random.default_rng([rows, columns])
        mazes = draw_set("validation", rows, columns, max(_BATCHES))
        sides, marks = (np.stack([getattr(m, name) for m in mazes]).astype(np.int64) for name in _INPUTS[:2])
        labels = rng.integers(0, HIDDEN + 1, sides.shape)
        found = served.predict(sides, marks, labels)
        wanted = Chances(model)(*(torch.from_numpy(each) for each in (sides, marks, labels))).numpy()
        worst = max(worst, float(np.abs(found - wanted).max()))
        for batch in _BATCHES:
            part = served.predict(sides[:batch], marks[:batch], labels[:batch])
            if not np.array_equal(part, found[:batch]):
                raise ValueError(f"{target}: {rows} x {columns} in batches of {batch} differs from {max(_BATCHES)}")
    if worst > _TOLERANCE:
        raise ValueError(f"{target}: onnxruntime differs from torch by {worst}")
    return worst


app = typer.Typer(add_completion=False)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="where trained models lie")] = DEFAULT_FOLDER,
    target: Annotated[Path, typer.Option(help="package folder")] = DEFAULT_PACKAGE,
    rounds: Annotated[int, typer.Option(help="rounds at most")] = ROUNDS,
    sure: Annotated[float, typer.Option(help="probability from which a label is kept")] = SURE,
) -> None:
    """Writes the package, checks it, and keeps the baseline's weights and both learning curves."""
    torch.set_num_threads(1)
    model = read_trained("mlm_u", folder)
    write(model, target, rounds=rounds, sure=sure)
    off = verify(model, target)
    save_state(read_trained("next_token", folder), BASELINE)
    save_curves(folder)
    size = sum(path.stat().st_size for path in target.iterdir())
    typer.echo(f"{target}: {size / 1e6:.1f} MB, within {off:.1e} of torch; {BASELINE} written")


if __name__ == "__main__":
    app()
