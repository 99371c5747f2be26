"""The judge as graphs of one step, for a service that scores many clips at once, each at its own place."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from training.minigrid import tiles
from training.reward.goals import MAX_WORDS
from training.reward.model import DoubleLayer, Expert, Joint, Opinion, Router, Trunk


class TrunkStep(nn.Module):
    """One frame of each clip."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(
        self, frames: Tensor, before: Tensor, actions: Tensor, words: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> tiles of this frame, the memory after it, features, the layer that experts adapt."""
        trunk = self.trunk
        here, leftovers = trunk.cells(frames)
        seen, changes = trunk.look(before, here, leftovers, actions, trunk.goal(words))
        # A GRU cell written out: exported as such it would be a loop over one step.
        cell = trunk.memory
        of_seen = nn.functional.linear(seen, cell.weight_ih, cell.bias_ih).chunk(3, dim=1)
        of_past = nn.functional.linear(memory, cell.weight_hh, cell.bias_hh).chunk(3, dim=1)
        reset, update = torch.sigmoid(of_seen[0] + of_past[0]), torch.sigmoid(of_seen[1] + of_past[1])
        fresh = torch.tanh(of_seen[2] + reset * of_past[2])
        after = fresh + update * (memory - fresh)
        features = torch.cat([seen, after, changes], dim=1)
        return here, after, features, trunk.dense(features)


class ExpertStep(nn.Module):
    """One frame's features of each clip; what came before is its sum and its greatest, [n, pooled] each."""

    def __init__(self, expert: Expert) -> None:
        super().__init__()
        self.expert = expert

    def forward(
        self, features: Tensor, dense: Tensor, total: Tensor, most: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> sum and greatest with this frame, which is the `count`th [n, 1]; mean and deviation of the opinion."""
        seen = self.expert.steps(features, dense)
        total, most = total + seen, torch.maximum(most, seen)
        mean, deviation = self.expert.read(total / count, most, seen)
        return total, most, mean, deviation


class RouterStep(nn.Module):
    """Words -> probabilities of the categories, that of none last."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def forward(self, words: Tensor) -> Tensor:
        return self.router(words).softmax(1)


class JointStep(nn.Module):
    """Opinions of the dimensions [n, dimensions] -> those of the categories [n, categories]."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        whole = self.joint(Opinion(mean, deviation))
        return whole.mean, whole.deviation


def write_graphs(model: DoubleLayer, router: Router, folder: Path) -> None:
    """trunk.onnx, router.onnx and joint.onnx."""
    config, n = model.trunk.config, 2
    place = (n, tiles.CELL_COUNT, config.width)
    export(
        TrunkStep(model.trunk),
        folder / "trunk.onnx",
        (
            torch.zeros(n, tiles.FRAME_PX, tiles.FRAME_PX, 3, dtype=torch.uint8),
            torch.zeros(place),
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n, MAX_WORDS, dtype=torch.int64),
            torch.zeros(n, config.memory),
        ),
        ("frames", "before", "actions", "words", "memory"),
        ("here", "memory_after", "features", "dense"),
    )
    words = torch.zeros(n, MAX_WORDS, dtype=torch.int64)
    export(RouterStep(router), folder / "router.onnx", (words,), ("words",), ("probabilities",))
    scores = torch.ones(n, len(model.experts))
    export(
        JointStep(model.joint),
        folder / "joint.onnx",
        (scores, scores),
        ("mean", "deviation"),
        ("whole_mean", "whole_deviation"),
    )


def write_expert(expert: Expert, path: Path, card: str, key: str) -> None:
    """One dimension's file, with what it says of itself."""
    features, dense = expert.down.in_features, expert.up.out_features
    pooled = torch.zeros(2, expert.out.in_features // 3)
    export(
        ExpertStep(expert),
        path,
        (torch.zeros(2, features), torch.zeros(2, dense), pooled, pooled, torch.ones(2, 1)),
        ("features", "dense", "total", "most", "count"),
        ("total_after", "most_after", "mean", "deviation"),
    )
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, {key: card})
    onnx.save(graph, str(path))


def export(
    module: nn.Module, path: Path, inputs: tuple[Tensor, ...], names: Sequence[str], outputs: Sequence[str]
) -> None:
    """By tracing; the first axis of everything differs from run to run."""
    axes = {name: {0: "n"} for name in (*names, *outputs)}
    written = io.BytesIO()
    torch.onnx.export(
        module.eval(),
        inputs,
        written,
        input_names=list(names),
        output_names=list(outputs),
        dynamic_axes=axes,
        opset_version=18,
        dynamo=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(written.getvalue())
