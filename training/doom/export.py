"""Exports the trained parts as a package and checks it. `python -m training.doom.export --help`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import onnx
import torch
import typer
import yaml
from torch import Tensor

from training.doom import latents, place, train, train_place, world
from training.doom.autoencoder import LATENT_SHAPE, Autoencoder, Decode, Encode, load_autoencoder
from training.doom.graphs import BLOCK_TOKENS, Commit, Denoise, Parts
from training.doom.model import TOKENS, ModelConfig, WorldModel
from training.doom.starts import write_starts
from training.learner import load_average
from training.minigrid.export import share_weights
from training.verify import verify

DEFAULT_PACKAGE = Path("models/doom/1")
SAMPLER: dict[str, Any] = {
    "kind": "euler",
    "default_nfe": 4,
    "schedules": {
        1: [1.0],
        2: [1.0, 0.5],
        4: [1.0, 0.75, 0.5, 0.25],
        8: [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
    },
}
HALF_BYTES = 256  # smaller initialisers keep their type: among them are shapes and constants
Module = TypeVar("Module", bound=torch.nn.Module)
app = typer.Typer(add_completion=False)


def load_parts(model_checkpoint: Path, place_checkpoint: Path) -> Parts:
    """The moving average of the model, and the odometer and localiser; weights as float16 would have them."""
    model = load_average(model_checkpoint, lambda settings: WorldModel(ModelConfig(**settings)))
    odometer, localiser = place.Odometer(), place.Localiser()
    state = torch.load(place_checkpoint, weights_only=True)
    odometer.load_state_dict(state["odometer"])
    localiser.load_state_dict(state["localiser"])
    return halved(Parts(model, odometer, localiser))


def halved(module: Module) -> Module:
    """Rounds what is stored in float16, so that torch and the package compute the same."""
    with torch.no_grad():
        for p in module.parameters():
            if p.numel() * 4 >= HALF_BYTES:
                p.copy_(p.half().float())
    return module.eval().requires_grad_(False)


def store_half(graph: onnx.ModelProto) -> None:
    """Big float32 initialisers that float16 holds exactly are stored so, and cast when the graph is loaded."""
    for tensor in list(graph.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.nbytes < HALF_BYTES:
            continue
        half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        graph.graph.node.insert(0, onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))


def export_graph(module: torch.nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    batch, blocks = torch.export.Dim("batch"), torch.export.Dim("blocks")
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        dynamo=True,
        dynamic_shapes=tuple({0: blocks if name == "pool" else batch} for name in inputs),
        input_names=list(inputs),
        output_names=[output],
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def example_inputs(parts: Parts, batch: int, blocks: int) -> dict[str, Tensor]:
    """A full set of inputs of all graphs with mixed context lengths."""
    config = parts.model.config
    memory = len(config.memory_layers)
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(blocks, memory, 2, config.heads, BLOCK_TOKENS, config.head_dim, generator=generator)
    pool[:, 0, 0, 0, TOKENS] = 0
    pool[:, 0, 0, 0, TOKENS, : place.BELIEF] = torch.rand(blocks, place.BELIEF, generator=generator)
    position = torch.arange(batch) * 3 % (config.window + 1)
    return {
        "x": torch.randn(batch, *LATENT_SHAPE, generator=generator),
        "t": torch.linspace(0.5, 1.0, batch),
        "action": torch.arange(batch) % (world.NONE + 1),
        "position": position,
        "pool": pool,
        "table": torch.randint(0, blocks - batch, (batch, config.window), generator=generator),
        "key_mask": torch.arange(config.window)[None] < position[:, None],
        "slot": torch.arange(blocks - batch, blocks),
        "x0": torch.randn(batch, *LATENT_SHAPE, generator=generator),
        "frames": torch.rand(batch, world.FRAMES, world.HEIGHT, world.WIDTH, 3, generator=generator) * 2 - 1,
        "latents": torch.randn(batch, *LATENT_SHAPE, generator=generator),
    }


INPUTS = {
    "denoise": ("x", "t", "action", "position", "pool", "table", "key_mask"),
    "commit": ("x0", "action", "position", "pool", "table", "key_mask", "slot"),
    "encode": ("frames",),
    "decode": ("latents",),
}
OUTPUTS = {"denoise": "x0", "commit": "pool_out", "encode": "latents", "decode": "frames"}


def modules(parts: Parts, autoencoder: Autoencoder) -> dict[str, torch.nn.Module]:
    """The graphs by name."""
    graphs = {
        "denoise": Denoise(parts),
        "commit": Commit(parts),
        "encode": Encode(autoencoder),
        "decode": Decode(autoencoder),
    }
    return {name: graph.eval() for name, graph in graphs.items()}


def manifest(parts: Parts, starts: list[dict[str, object]]) -> dict[str, Any]:
    config = parts.model.config
    return {
        "format": 1,
        "kind": "video",
        "name": "doom",
        "version": "1",
        "description": "Nine rooms through a marine's eyes, pistol in hand (VizDoom, Freedoom): walk, turn, shoot.",
        "license": "Apache-2.0 AND MIT AND BSD-3-Clause",
        "backend": "onnxruntime",
        "frame": {"height_px": world.HEIGHT, "width_px": world.WIDTH, "channels": 3, "fps": round(world.FPS, 2)},
        "frames_per_chunk": world.FRAMES,
        "latent": {"shape": list(LATENT_SHAPE)},
        "action": {"kind": "discrete", "names": list(world.ACTION_NAMES)},
        "kv": {
            "layers": len(config.memory_layers),
            "heads": config.heads,
            "tokens": BLOCK_TOKENS,
            "head_dim": config.head_dim,
            "window": config.window,
            "dtype": "float32",
            "state_tokens": 1,
            "pose": {
                "layer": 0,
                "part": "key",
                "head": 0,
                "token": TOKENS,
                "offset": 0,
                "step": 1.0,
                "turn": 1.0,
                "ahead": 1.5,
            },
        },
        "sampler": SAMPLER,
        "files": {name: f"{name}.onnx" for name in INPUTS},
        "starts": starts,
    }


@app.command()
def main(
    checkpoint: Annotated[Path, typer.Option(help="what train.py saved")] = train.DEFAULT_CHECKPOINT,
    place_checkpoint: Annotated[Path, typer.Option(help="what train_place.py saved")] = train_place.DEFAULT_CHECKPOINT,
    autoencoder_checkpoint: Annotated[Path, typer.Option(help="the autoencoder")] = latents.DEFAULT_CHECKPOINT,
    folder: Annotated[Path, typer.Option(help="the package folder to write")] = DEFAULT_PACKAGE,
) -> None:
    """Writes the four graphs, weights.bin, starts and model.yaml, then checks them in onnxruntime."""
    torch.set_num_threads(1)
    parts = load_parts(checkpoint, place_checkpoint)
    autoencoder = halved(load_autoencoder(autoencoder_checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    inputs = example_inputs(parts, batch=3, blocks=12)
    graphs: dict[str, onnx.ModelProto] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, module in modules(parts, autoencoder).items():
            path = Path(scratch, f"{name}.onnx")
            export_graph(module, {key: inputs[key] for key in INPUTS[name]}, OUTPUTS[name], path)
            graphs[path.name] = onnx.load(str(path))
            store_half(graphs[path.name])
    share_weights(graphs, folder)
    document = manifest(parts, write_starts(folder))
    (folder / "model.yaml").write_text(yaml.safe_dump(document, sort_keys=False, width=120))
    examples = example_inputs(parts, batch=16, blocks=64)
    for line in verify(modules(parts, autoencoder), folder, examples, INPUTS, tolerance=2e-3):
        typer.echo(line)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    count = sum(p.numel() for p in (*parts.parameters(), *autoencoder.parameters()))
    typer.echo(f"{folder}: {size / 1e6:.1f} MB, {count / 1e6:.2f} M parameters")


if __name__ == "__main__":
    app()
