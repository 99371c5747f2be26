"""The table of few-step distillation and its bars."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.minigrid.compare import COLUMNS, SIXTEEN, diversity, method_bars
from training.minigrid.package import initializers

ROOT = Path(__file__).parents[3]


def row(model: str, nfe: int, value: float, **other: float) -> dict[str, Any]:
    return {"kind": "method", "model": model, "nfe": nfe, **dict.fromkeys(COLUMNS, value), **other}


def test_the_same_tiles_in_any_order_are_as_diverse_and_others_are_not() -> None:
    assert diversity(np.array([0, 1, 1]), np.array([1, 0, 1])) == 1.0
    assert diversity(np.array([0, 0]), np.array([1, 1])) == 0.0
    assert diversity(np.array([0, 0]), np.array([0, 1])) == pytest.approx(0.5)


def test_sixteen_evaluations_begin_at_pure_noise_and_fall() -> None:
    assert len(SIXTEEN) == 16
    assert SIXTEEN[0] == 1.0
    assert all(after < before for before, after in pairwise(SIXTEEN))


def test_every_column_is_held_to_a_point_below_the_teacher() -> None:
    rows = [row("teacher", 1, 0.5), row("teacher", 16, 0.99), row("dmd", 1, 0.8), row("dmd", 2, 0.9)]
    rows += [row("salt", 1, 0.9), row("salt", 2, 0.985, diversity=0.9)]
    bars = method_bars(rows)
    missed = [bar["name"] for bar in bars if not bar["holds"]]
    assert missed == ["student at 2 less teacher at 16: diversity"]
    assert len(bars) == len(COLUMNS) + 3


def test_a_tie_at_depth_32_is_no_lead() -> None:
    rows = [row(model, nfe, 0.9) for model in ("teacher", "dmd", "salt") for nfe in (1, 2, 16)]
    assert [bar["holds"] for bar in method_bars(rows)[-2:]] == [False, False]


@pytest.mark.parametrize("name", ["teacher", "dmd", "sc-dmd"])
def test_the_kept_parameters_are_those_of_the_shipped_graph(name: str) -> None:
    file = ROOT / f"training/minigrid/weights/{name}.npz"
    with np.load(file) as kept:
        names = set(kept.files)
    found = initializers(ROOT / "models/minigrid/1/denoise.onnx", file)
    read = {each.removeprefix("model.").removesuffix(".T") for each in found}
    unread = {"clean_condition", "gate_in.weight", "gate_in.bias", "gate_out.weight", "gate_out.bias"}  # commit's
    assert names - read <= unread
    assert read - names <= {"lot_in.weight", "lot_gain.weight", "lot_gain.bias"} | {
        f"quality_{part}" for part in ("key", "value", "bias")
    }
