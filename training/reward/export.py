"""Writes the judge's package and checks it in onnxruntime. `python -m training.reward.export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml
from worldtree_runtime.reward_package import CARD_KEY, EXPERTS, ExpertCard, RewardPackage

from training.minigrid import pose, tiles
from training.reward.batches import clips, labels_of, word_ids
from training.reward.calibration import knots_of, noisy_ratings, spread_of
from training.reward.data import DEFAULT_FOLDER, SIZE, STEPS, Group, load
from training.reward.goals import MAX_WORDS, WORDS, example
from training.reward.graphs import write_expert, write_graphs
from training.reward.judged import judge
from training.reward.measure import truths
from training.reward.model import CHANGES, DoubleLayer
from training.reward.places import place_of
from training.reward.router import train_router
from training.reward.rubric import CATEGORIES, DIMENSION_NAMES, DIMENSIONS, UNITS
from training.reward.served import DEFAULT_PACKAGE, Bench, dimension_means, evidence_of

_TOLERANCE = 2e-3
_CHECKED = 40  # groups


def read_double(seed: int, noise: float, folder: Path = DEFAULT_FOLDER) -> DoubleLayer:
    """What `training.reward.train` left."""
    model = DoubleLayer().eval().requires_grad_(False)
    model.load_state_dict(torch.load(place_of("double", noise, seed, folder), weights_only=True))
    return model


def manifest_of(model: DoubleLayer) -> dict[str, object]:
    config = model.trunk.config
    return {
        "format": 1,
        "kind": "reward",
        "name": "judge",
        "version": "1",
        "description": "Judges rollouts of MiniGrid by what they were for: five kinds of goals, eight dimensions.",
        "license": "MIT",
        "image": {"height_px": tiles.FRAME_PX, "width_px": tiles.FRAME_PX, "channels": 3},
        "actions": list(pose.ACTION_NAMES),
        "goal": {"words": list(WORDS), "max_words": MAX_WORDS},
        "trunk": {
            "tiles": [tiles.CELL_COUNT, config.width],
            "memory": config.memory,
            "features": config.summary + config.memory + CHANGES,
            "dense": config.dense,
            "pooled": config.dense + CHANGES,
        },
        "files": {"trunk": "trunk.onnx", "router": "router.onnx", "joint": "joint.onnx"},
        "dimensions": list(DIMENSION_NAMES),
        "categories": [
            {
                "name": category.name,
                "description": category.description,
                "weights": category.weights,
                "example": example(category.name),
            }
            for category in CATEGORIES
        ],
        "trained_steps": max(STEPS),
    }


def write(model: DoubleLayer, goals: list[Group], groups: list[Group], noise: float, seed: int, target: Path) -> float:
    """The whole package: its router learns from `goals` (of train), `groups` (of validation) calibrate it. By how
    much deviations had to be wider.
    """
    rng = np.random.default_rng([seed, 9])
    scores, (truth, _) = judge(model, groups), truths(groups)
    assert scores.dimensions is not None, "the double layer has dimensions"
    labels = labels_of(groups, noise, seed).whole
    spread = spread_of(scores.whole, scores.whole_deviation, labels, noise)
    model.joint.spread.fill_(spread)
    target.mkdir(parents=True, exist_ok=True)
    router = train_router(goals, noise, seed)
    write_graphs(model, router, target)
    for index, dimension in enumerate(DIMENSIONS):
        ratings = noisy_ratings(truth[..., index].ravel(), noise, rng)
        knots = knots_of(scores.dimensions[..., index].ravel(), ratings, noise)
        card = ExpertCard(description=dimension.description, unit=UNITS[dimension.name], knots=tuple(knots))
        path = target / EXPERTS / f"{dimension.name}.onnx"
        write_expert(model.experts[dimension.name], path, json.dumps(card.model_dump(mode="json")), CARD_KEY)
    manifest = RewardPackage.model_validate(manifest_of(model))
    (target / "model.yaml").write_text(
        yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, width=120, allow_unicode=True)
    )
    return spread


@torch.no_grad()
def verify(model: DoubleLayer, groups: list[Group], target: Path) -> float:
    """Largest difference between the stepped package and torch. Raises ValueError where it is above the tolerance."""
    found = dimension_means(evidence_of(Bench.read(target), groups))
    worst = 0.0
    for group, each in zip(groups, found, strict=True):
        verdict = model(*clips([group]), word_ids([group.goal]).repeat_interleave(SIZE, dim=0))
        assert verdict.dimensions is not None, "the double layer has dimensions"
        worst = max(worst, float(np.abs(verdict.dimensions.mean.numpy() - each).max()))
    if worst > _TOLERANCE:
        raise ValueError(f"{target}: onnxruntime differs from torch by {worst}")
    return worst


app = typer.Typer(add_completion=False)


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="of the training")] = 0,
    noise: Annotated[float, typer.Option(help="share of the labels that are wrong")] = 0.3,
    folder: Annotated[Path, typer.Option(help="where data and results lie")] = DEFAULT_FOLDER,
    target: Annotated[Path, typer.Option(help="package folder")] = DEFAULT_PACKAGE,
) -> None:
    """Writes the package, calibrated on the validation split, and checks it."""
    torch.set_num_threads(1)
    model, groups = read_double(seed, noise, folder), load("validation", folder)
    spread = write(model, load("train", folder), groups, noise, seed, target)
    off = verify(model, groups[:_CHECKED], target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    typer.echo(f"{target}: {size / 1e6:.1f} MB, within {off:.1e} of torch, deviations x {spread:.2f}")


if __name__ == "__main__":
    app()
