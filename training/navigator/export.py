"""Makes packages of trained policies, checked in onnxruntime: `python -m training.navigator.export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import torch
import typer
import yaml
from torch import Tensor, nn
from worldtree_runtime.policy_package import PolicyPackage

from training.minigrid import pose, tiles
from training.navigator.batches import batch
from training.navigator.data import DEFAULT_FOLDER, MAP, Demonstrations
from training.navigator.expert import ground
from training.navigator.missions import MAX_WORDS, WORDS
from training.navigator.model import ACTION_MASK, MASK, PATCH, Policy
from training.navigator.train import load_policy
from training.reward.graphs import export

_TOLERANCE = 2e-3
_ROUNDS = 3
# Taken at their likeliest, actions lead one robot in eight round in circles: back where it was, it does the same.
_TEMPERATURE = 1.0
# By the shape that is trained: the package's name, and who plans with it.
PACKAGES: dict[str, tuple[str, list[dict[str, object]]]] = {
    "joint": (
        "joint",
        [
            {
                "name": "joint",
                "description": "denoises frames and actions together, each read off the other",
                "rounds": _ROUNDS,
                "temperature": _TEMPERATURE,
            },
            {
                "name": "envision_then_plan",
                "description": "the same network, frames first, then the actions that lead to them",
                "order": "frames-first",
                "rounds": _ROUNDS + 1,
                "temperature": _TEMPERATURE,
            },
        ],
    ),
    "action-only": (
        "action-only",
        [
            {
                "name": "action_only",
                "description": "denoises actions, and imagines nothing",
                "rounds": _ROUNDS,
                "temperature": _TEMPERATURE,
            }
        ],
    ),
    "reactive": (
        "reactive",
        [
            {
                "name": "behaviour_cloning",
                "description": "what is in view to one action, with no memory",
                "rounds": 1,
                "temperature": _TEMPERATURE,
            }
        ],
    ),
}


class Context(nn.Module):
    """What is known, as one tensor [n, layers, 2, heads, tokens, width / heads]."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.names = ["view", "words", *["around"] * policy.config.map]

    def forward(self, view: Tensor, words: Tensor, around: Tensor | None = None) -> Tensor:
        known = self.policy.context(view, view if around is None else around, words)
        return torch.stack([torch.stack(each, dim=1) for each in known], dim=1)


class Denoise(nn.Module):
    """A round, given what the first graph found."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.names = ["context", "actions", *["frames"] * policy.config.frames]

    def forward(self, context: Tensor, actions: Tensor, frames: Tensor | None = None) -> tuple[Tensor, ...]:
        known = [(layer[:, 0], layer[:, 1]) for layer in context.unbind(1)]
        return self.policy.denoise(known, actions, frames)


def manifest_of(policy: Policy, shape: str) -> dict[str, Any]:
    name, planners = PACKAGES[shape]
    config, walked = policy.config, ground()
    return {
        "format": 1,
        "kind": "navigator",
        "name": name,
        "version": "1",
        "description": "Goes to things, opens doors, finds the goal in MiniGrid and BabyAI, from what is in view.",
        "license": "MIT",
        "image": {"height_px": tiles.FRAME_PX, "width_px": tiles.FRAME_PX, "channels": 3},
        "actions": list(pose.ACTION_NAMES),
        "goal": {"words": list(WORDS), "max_words": MAX_WORDS, "example": "go to the red ball"},
        "ground": {
            "side": walked.side,
            "unseen": walked.unseen,
            "floor": walked.floor,
            "enterable": sorted(walked.enterable),
            "left": pose.ACTION_NAMES[walked.left],
            "right": pose.ACTION_NAMES[walked.right],
            "forward": pose.ACTION_NAMES[walked.forward],
        },
        "tile_count": tiles.TILE_COUNT,
        "remembered": MAP if config.map else 0,
        "horizon": config.horizon,
        "imagines": config.frames,
        "patch": PATCH,
        "planners": planners,
        "files": {"context": "context.onnx", "denoise": "denoise.onnx", "tiles": "tiles.npy"},
    }


def write(policy: Policy, shape: str, target: Path) -> None:
    """A package, whole."""
    target.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(policy, shape)
    PolicyPackage.model_validate(manifest)
    config = policy.config
    inputs = {
        "view": torch.zeros(2, tiles.CELL_COUNT, dtype=torch.int64),
        "words": torch.zeros(2, MAX_WORDS, dtype=torch.int64),
        "actions": torch.full((2, config.horizon), ACTION_MASK),
        "around": torch.zeros(2, MAP * MAP, dtype=torch.int64),
        "frames": torch.full((2, config.horizon, tiles.CELL_COUNT), MASK),
    }
    context, denoise = Context(policy).eval(), Denoise(policy).eval()
    with torch.no_grad():
        inputs["context"] = context(*(inputs[name] for name in context.names))
    for graph, name, outputs in (
        (context, "context", ["context"]),
        (denoise, "denoise", ["action_logits", "frame_logits"][: 1 + config.frames]),
    ):
        export(graph, target / f"{name}.onnx", tuple(inputs[each] for each in graph.names), graph.names, outputs)
    np.save(target / "tiles.npy", tiles.codebook(), allow_pickle=False)
    (target / "model.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False, width=120))


def verify(policy: Policy, target: Path, data: Demonstrations) -> float:
    """The largest difference between torch and onnxruntime, in a batch and alone; asserts that it is below 0.002."""
    rng = np.random.default_rng(1)
    given = batch(data, rng.integers(0, len(data.starts), 16), rng)
    horizon = policy.config.horizon
    inputs = {
        "view": given.view,
        "words": given.words,
        "actions": given.shown_actions[:, :horizon],
        "around": given.around,
        "frames": given.shown_frames[:, :horizon],
    }
    with torch.no_grad():
        wanted = policy(given.view, given.around, given.words, inputs["actions"], inputs["frames"])
    context, denoise = (
        ort.InferenceSession(str(target / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("context", "denoise")
    )
    worst = 0.0
    for rows in (slice(0, 16), slice(3, 4)):
        own = {name: each[rows].numpy() for name, each in inputs.items()}
        (own["context"],) = context.run(None, {name: own[name] for name in Context(policy).names})
        found = denoise.run(None, {name: own[name] for name in Denoise(policy).names})
        worst = max(worst, *(float(np.abs(a - b[rows].numpy()).max()) for a, b in zip(found, wanted, strict=True)))
    assert worst < _TOLERANCE, worst
    return worst


app = typer.Typer(add_completion=False)


@app.command()
def main(
    shape: Annotated[str, typer.Option(help=f"one of {', '.join(PACKAGES)}; empty: all")] = "",
    seed: Annotated[int, typer.Option(help="of training")] = 0,
    folder: Annotated[Path, typer.Option(help="where trained policies and data lie")] = DEFAULT_FOLDER,
    models: Annotated[Path, typer.Option(help="the model repository")] = Path("models"),
) -> None:
    """Exports the policies."""
    data = Demonstrations.load("validation", folder)
    for each in [shape] if shape else list(PACKAGES):
        policy = load_policy(each, seed, folder)
        target = models / PACKAGES[each][0] / "1"
        write(policy, each, target)
        typer.echo(f"{target}: max error {verify(policy, target, data):.1e}")


if __name__ == "__main__":
    app()
