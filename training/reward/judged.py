"""Groups judged by a network in training; what is served is judged by `served`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.reward.batches import clips, word_ids
from training.reward.data import DEFAULT_FOLDER, SIZE, Group
from training.reward.measure import Float
from training.reward.places import place_of
from training.reward.train import SHAPES


@dataclass(frozen=True, slots=True)
class Scores:
    """Of all candidates of groups, [groups, SIZE, ...]; a judge without dimensions has none."""

    whole: Float
    whole_deviation: Float
    dimensions: Float | None
    dimension_deviations: Float | None


@torch.no_grad()
def judge(model: nn.Module, groups: list[Group], part: int = 32) -> Scores:
    """Each candidate by its group's category."""
    model.eval()
    kept: dict[str, list[tuple[np.ndarray, Float]]] = {"whole": [], "whole_deviation": [], "mean": [], "deviation": []}
    lengths = np.array([len(group.candidates[0].ids) for group in groups])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for first in range(0, len(rows), part):
            here = rows[first : first + part]
            chosen = [groups[row] for row in here]
            words = word_ids([group.goal for group in chosen]).repeat_interleave(SIZE, dim=0)
            verdict = model(*clips(chosen), words)
            column = torch.tensor([group.category for group in chosen]).repeat_interleave(SIZE).unsqueeze(1)
            for name, value in zip(("whole", "whole_deviation"), verdict.whole, strict=True):
                kept[name].append((here, value.gather(1, column).reshape(-1, SIZE).numpy()))
            if verdict.dimensions is not None:
                for name, value in zip(("mean", "deviation"), verdict.dimensions, strict=True):
                    kept[name].append((here, value.unflatten(0, (-1, SIZE)).numpy()))

    def whole(name: str) -> Float | None:
        if not kept[name]:
            return None
        found = np.empty((len(groups), *kept[name][0][1].shape[1:]), np.float32)
        for here, value in kept[name]:
            found[here] = value
        return found

    a, b = whole("whole"), whole("whole_deviation")
    assert a is not None, "no groups"
    assert b is not None, "no groups"
    return Scores(a, b, whole("mean"), whole("deviation"))


def read(shape: str, noise: float, seed: int, folder: Path = DEFAULT_FOLDER) -> nn.Module:
    """What `training.reward.train` left."""
    model = SHAPES[shape]()
    model.load_state_dict(torch.load(place_of(shape, noise, seed, folder), weights_only=True))
    return model.eval().requires_grad_(False)
