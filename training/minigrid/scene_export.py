"""Exports the scene model into the package and checks it. `python -m training.minigrid.scene_export --help`.

Can be run again at any time, before or after the world model's export: it touches `scene.onnx` and the manifest's
`prompt` and `files.scene` alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnxruntime as ort
import torch
import typer
import yaml

from training.learner import load_average
from training.minigrid.export import DEFAULT_PACKAGE, strip
from training.minigrid.scene_manifest import FILE, GUIDANCE, add_scene
from training.minigrid.scene_model import Scene, SceneConfig, SceneModel
from training.minigrid.scene_train import DEFAULT_CHECKPOINT
from training.minigrid.vocabulary import EXAMPLES, tokenize
from training.verify import BATCHES

app = typer.Typer(add_completion=False)


def load_scene(checkpoint: Path) -> SceneModel:
    """The moving average of a checkpoint, ready for inference."""
    return load_average(checkpoint, lambda settings: SceneModel(SceneConfig(**settings)))


def example_inputs(batch: int) -> dict[str, torch.Tensor]:
    """Noisy views at levels from 1 to 0.4 and the package's example prompts, the last of each six empty."""
    generator = torch.Generator().manual_seed(0)
    prompts = [*EXAMPLES[:5], ""]
    return {
        "x": torch.randn(batch, 1, 56, 56, 3, generator=generator),
        "t": torch.linspace(1.0, 0.4, batch),
        "tokens": torch.from_numpy(np.stack([tokenize(prompts[k % 6])[0] for k in range(batch)])),
    }


def export_scene(module: Scene, path: Path) -> None:
    """Writes one file, weights inside."""
    inputs = example_inputs(3)
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as scratch:
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            input_names=list(inputs),
            output_names=["x0"],
            opset_version=20,
            verbose=False,
        )
        assert program is not None
        program.save(str(Path(scratch, FILE)))
        graph = onnx.load(str(Path(scratch, FILE)))
    strip(graph)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def verify_scene(module: Scene, path: Path) -> Iterator[str]:
    """Yields one line a check; raises AssertionError at the first that fails."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = example_inputs(16)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    whole = session.run(None, arrays)[0]
    with torch.no_grad():
        reference = module(*inputs.values()).numpy()
    # The answer is drawn, so the last bits may choose another tile where two are all but equal.
    cells = np.abs(whole - reference).reshape(16, 7, 8, 7, 8, 3).max((2, 4, 5)) < 1e-5
    assert cells.mean() > 0.99, cells.mean()
    yield f"onnxruntime against torch: {cells.sum()} of {cells.size} cells are the same tile"
    for batch in BATCHES:
        for first in range(0, 16 - batch + 1, batch):
            rows = slice(first, first + batch)
            alone = session.run(None, {name: value[rows] for name, value in arrays.items()})[0]
            assert np.array_equal(alone, whole[rows]), batch
    yield f"bit-identical for batches of {BATCHES}"


@app.command()
def main(
    checkpoint: Annotated[Path, typer.Option(help="what scene_train.py saved")] = DEFAULT_CHECKPOINT,
    folder: Annotated[Path, typer.Option(help="the package folder to write into")] = DEFAULT_PACKAGE,
    guidance: Annotated[float, typer.Option(help="how far past the prompt's own logits to go")] = GUIDANCE,
) -> None:
    """Writes scene.onnx, checks it in onnxruntime, and tells model.yaml of it."""
    module = Scene(load_scene(checkpoint), guidance)
    folder.mkdir(parents=True, exist_ok=True)
    export_scene(module, folder / FILE)
    for line in verify_scene(module, folder / FILE):
        typer.echo(line)
    manifest = folder / "model.yaml"
    if manifest.exists():
        document = add_scene(yaml.safe_load(manifest.read_text()), folder)
        manifest.write_text(yaml.safe_dump(document, sort_keys=False, width=120))
    parameters = sum(p.numel() for p in module.model.parameters())
    typer.echo(f"{folder / FILE}: {(folder / FILE).stat().st_size / 1e6:.1f} MB, {parameters / 1e6:.2f} M parameters")


if __name__ == "__main__":
    app()
