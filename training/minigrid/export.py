"""Exports the distilled student as a package and checks it. `python -m training.minigrid.export --help`.

`denoise.onnx` is the student's, `commit.onnx` the teacher's (see `training.minigrid.distill`). Every parameter of a
graph is an initialiser of its own name, "model.patch.weight.T" where the graph holds the transpose, so that the graph
can be run with another model's parameters (see `training.minigrid.package`).
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxscript.optimizer
import torch
import typer
import yaml

from training.minigrid import pose, tiles
from training.minigrid.graphs import TOKENS, Commit, Denoise
from training.minigrid.model import WorldModel
from training.minigrid.scene_manifest import add_scene
from training.minigrid.starts import write_starts
from training.minigrid.states import TEACHER, load_state
from training.verify import verify

DEFAULT_PACKAGE = Path("models/minigrid/1")
DEFAULT_STUDENT = Path("out/training/minigrid/salt.npz")
# Chosen by `python -m training.minigrid.search` on validation seeds.
SAMPLER: dict[str, Any] = {
    "kind": "renoise",
    "default_nfe": 2,
    "schedules": {
        1: [1.0],
        2: [1.0, 0.5],
        4: [1.0, 0.7, 0.6, 0.4],
        8: [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3],
    },
}
EXTERNAL_BYTES = 256  # smaller initialisers stay inside the graph, where shape inference needs them
app = typer.Typer(add_completion=False)


def example_inputs(model: WorldModel, batch: int, blocks: int) -> dict[str, torch.Tensor]:
    """A full set of inputs of both graphs with mixed context lengths."""
    config = model.config
    memory = len(config.memory_layers)
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(blocks, memory, 2, config.heads, TOKENS, config.head_dim, generator=generator)
    pool[:, 0, 0, 0, TOKENS - 1, :4] = torch.randint(0, 2, (blocks, 4), generator=generator).float()
    position = torch.arange(batch) * 5 % (config.window + 1)
    x = torch.randn(batch, 1, 56, 56, 3, generator=generator)
    return {
        "x": x,
        "x0": x.tanh(),
        "t": torch.linspace(0.5, 1.0, batch),
        "action": torch.arange(batch) % (pose.ACTION_COUNT + 1),
        "position": position,
        "pool": pool,
        "table": torch.randint(0, blocks - batch, (batch, config.window), generator=generator),
        "key_mask": torch.arange(config.window)[None] < position[:, None],
        "slot": torch.arange(blocks - batch, blocks),
        "cache_quality": torch.randint(0, 9, (batch, config.window), generator=generator).float(),
    }


INPUTS = {
    "denoise": ("x", "t", "action", "position", "pool", "table", "key_mask", "cache_quality"),
    "commit": ("x0", "action", "position", "pool", "table", "key_mask", "slot", "cache_quality"),
}


def export_graph(module: torch.nn.Module, inputs: dict[str, torch.Tensor], output: str, path: Path) -> None:
    batch, blocks = torch.export.Dim("batch"), torch.export.Dim("blocks")
    dynamic = tuple({0: blocks if name == "pool" else batch} for name in inputs)
    program = torch.onnx.export(
        module,
        tuple(inputs.values()),
        dynamo=True,
        dynamic_shapes=dynamic,
        input_names=list(inputs),
        output_names=[output],
        opset_version=20,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    # Arithmetic on parameters is left to the runtime: what is computed here would keep these parameters' values.
    simple = onnxscript.optimizer.optimize(program.model_proto, input_size_limit=1, output_size_limit=512)
    onnx.save(name_parameters(simple, module), str(path))


def name_parameters(graph: onnx.ModelProto, module: torch.nn.Module) -> onnx.ModelProto:
    """Gives transposes of parameters, which the optimiser has folded, their names. Raises ValueError if one is lost."""
    transposed = {p.detach().numpy().T.tobytes(): name for name, p in module.named_parameters() if p.ndim == 2}
    renamed: dict[str, str] = {}
    for tensor in graph.graph.initializer:
        name = transposed.get(onnx.numpy_helper.to_array(tensor).tobytes())
        if name is not None and not tensor.name.startswith("model."):
            renamed[tensor.name] = tensor.name = f"{name}.T"
    for node in graph.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    floats = {t.name for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 15}
    unnamed = {name for name in floats if not name.startswith("model.")}
    if unnamed:
        raise ValueError(f"no parameter has the values of {sorted(unnamed)}")
    return graph


def strip(graph: onnx.ModelProto) -> None:
    """Takes out what an exporter notes beside the graph: stack traces with its machine's paths, shapes, versions."""
    graph.producer_version = ""
    graph.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    graph.graph.ClearField("value_info")
    for node in graph.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for tensor in graph.graph.initializer:
        tensor.ClearField("metadata_props")


def share_weights(graphs: dict[str, onnx.ModelProto], folder: Path, file: str = "weights.bin") -> None:
    """Saves the graphs with one external weights file in which equal tensors stand once."""
    offsets: dict[str, int] = {}
    blob = bytearray()
    for graph in graphs.values():
        strip(graph)
        for tensor in graph.graph.initializer:
            raw = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(raw) < EXTERNAL_BYTES and not tensor.name.startswith("model."):
                continue
            key = hashlib.sha256(raw).hexdigest()
            if key not in offsets:
                blob.extend(bytes(-len(blob) % 64))
                offsets[key] = len(blob)
                blob.extend(raw)
            for name in ("raw_data", "float_data", "int64_data", "int32_data", "external_data"):
                tensor.ClearField(name)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for field, value in (("location", file), ("offset", offsets[key]), ("length", len(raw))):
                tensor.external_data.add(key=field, value=str(value))
    (folder / file).write_bytes(blob)
    for name, graph in graphs.items():
        (folder / name).write_bytes(graph.SerializeToString(deterministic=True))


def manifest(model: WorldModel, starts: list[dict[str, object]]) -> dict[str, Any]:
    config = model.config
    return {
        "format": 1,
        "kind": "video",
        "name": "minigrid",
        "version": "1",
        "description": "MiniGrid seen through the agent's eyes: rooms, doors, keys, balls, boxes, lava; seven actions.",
        "license": "MIT",
        "backend": "onnxruntime",
        "frame": {"height_px": 56, "width_px": 56, "channels": 3, "fps": 10.0},
        "frames_per_chunk": 1,
        "latent": None,
        "cache_quality": True,
        "action": {"kind": "discrete", "names": list(pose.ACTION_NAMES)},
        "kv": {
            "layers": len(config.memory_layers),
            "heads": config.heads,
            "tokens": TOKENS,
            "head_dim": config.head_dim,
            "window": config.window,
            "dtype": "float32",
            "state_tokens": 1,
            "pose": {
                "layer": 0,
                "part": "key",
                "head": 0,
                "token": TOKENS - 1,
                "offset": 0,
                "turn": 4.0,
                "ahead": float(tiles.VIEW_CELLS // 2),
            },
        },
        "sampler": SAMPLER,
        "files": {"denoise": "denoise.onnx", "commit": "commit.onnx"},
        "starts": starts,
    }


@app.command()
def main(
    student: Annotated[Path, typer.Option(help="what distill.py saved")] = DEFAULT_STUDENT,
    teacher: Annotated[Path, typer.Option(help="whose blocks all read")] = TEACHER,
    folder: Annotated[Path, typer.Option(help="the package folder to write")] = DEFAULT_PACKAGE,
) -> None:
    """Writes denoise.onnx, commit.onnx, weights.bin, starts and model.yaml, then checks them in onnxruntime."""
    reader, writer = load_state(student), load_state(teacher)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = example_inputs(reader, batch=3, blocks=12)
    modules = {"denoise": Denoise(reader), "commit": Commit(writer)}
    graphs: dict[str, onnx.ModelProto] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, output in (("denoise", "x0"), ("commit", "pool_out")):
            path = Path(scratch, f"{name}.onnx")
            export_graph(modules[name], {key: inputs[key] for key in INPUTS[name]}, output, path)
            graphs[path.name] = onnx.load(str(path))
    share_weights(graphs, folder)
    document = add_scene(manifest(reader, write_starts(folder)), folder)
    (folder / "model.yaml").write_text(yaml.safe_dump(document, sort_keys=False, width=120))
    examples = example_inputs(reader, batch=16, blocks=64)
    for line in verify(modules, folder, examples, INPUTS, tolerance=1e-3):
        typer.echo(line)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    typer.echo(f"{folder}: {size / 1e6:.1f} MB, {sum(p.numel() for p in reader.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    app()
