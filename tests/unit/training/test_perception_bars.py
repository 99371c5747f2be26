"""Bars and tables from rows of figures."""

from __future__ import annotations

from typing import Any

import pytest

from training.perception.bars import bars_of, best_label_free, merge_table
from training.perception.tasks import TASK_NAMES

GOOD = {
    "experts": 0.95,
    "AdaMerging, distillation, layer-wise": 0.91,
    "AdaMerging, entropy, layer-wise": 0.60,
    "FW-Merging": 0.90,
    "task arithmetic, tuned": 0.86,
    "average": 0.80,
    "base": 0.70,
}


def rows_of(
    means: dict[str, float],
    *,
    pool: dict[str, float] | None = None,
    curve: tuple[float, ...] = (0.6, 0.8, 0.95),
    seed: int = 0,
    validation: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "seed": seed,
            "kind": kind,
            "title": title,
            "mean": mean,
            "validation": (validation or {}).get(title, mean),
            "scores": dict.fromkeys(TASK_NAMES, mean),
        }
        for kind, known in (("merge", means), ("pool", pool or {"average": 0.70, "FW-Merging": 0.895}))
        for title, mean in known.items()
    ]
    rows += [{"seed": seed, "kind": "strength", "task": task, "scores": list(curve)} for task in TASK_NAMES]
    rows.append({"seed": seed, "kind": "preference", "map": 0.92, "fixed": 0.91})
    for title, covered in (("MM-MO", 0.5), ("one scale", 0.4), ("a scale a task", 0.45)):
        rows.append({"seed": seed, "kind": "front", "title": title, "hypervolume": covered})
    return rows


def held(rows: list[dict[str, Any]]) -> dict[str, bool]:
    return {bar["name"]: bar["holds"] for bar in bars_of(rows)}


def test_all_bars_hold_where_each_step_is_wide_enough() -> None:
    assert all(held(rows_of(GOOD)).values())
    assert len(held(rows_of(GOOD))) == 10


@pytest.mark.parametrize(
    ("title", "mean", "missed"),
    [
        ("base", 0.79, "average over base"),
        ("average", 0.85, "task arithmetic, tuned over average"),
        ("experts", 0.92, "experts over AdaMerging, distillation, layer-wise"),
    ],
)
def test_a_step_that_is_too_short_is_missed(title: str, mean: float, missed: str) -> None:
    names = [name for name, holds in held(rows_of({**GOOD, title: mean})).items() if not holds]
    assert [name.startswith(missed) for name in names] == [True]


def test_the_best_merge_without_labels_is_chosen_on_validation_images_not_on_test_ones() -> None:
    rows = rows_of({**GOOD, "FW-Merging": 0.94}, validation={"FW-Merging": 0.5})
    assert best_label_free(rows) == "AdaMerging, distillation, layer-wise"


def test_a_merge_with_labels_is_never_the_best_without() -> None:
    assert best_label_free(rows_of({**GOOD, "task arithmetic, tuned": 0.99})) == "AdaMerging, distillation, layer-wise"


def test_a_fall_of_the_score_as_its_preference_rises_is_missed_wherever_it_is_on_the_curve() -> None:
    name = "a score falls as its preference rises, at most"
    assert held(rows_of(GOOD, curve=(0.60, 0.595, 0.9)))[name]
    assert not held(rows_of(GOOD, curve=(0.60, 0.93, 0.925, 0.918)))[name]


def test_bars_are_of_the_mean_over_seeds() -> None:
    narrow, wide = rows_of({**GOOD, "base": 0.79}), rows_of({**GOOD, "base": 0.70}, seed=1)
    assert held(narrow + wide)["average over base"]


def test_a_quick_look_has_no_bars_for_what_it_did_not_measure() -> None:
    rows = [row for row in rows_of(GOOD) if row["kind"] not in ("preference", "front")]
    assert len(bars_of(rows)) == 8


def test_the_table_tells_what_share_of_the_experts_is_kept_and_where_a_guard_stepped_in() -> None:
    rows = rows_of(GOOD)
    rows[2]["guarded"] = True
    cells = {row[0]: row[1:] for row in merge_table(rows)}
    assert cells["FW-Merging"] == ["0.900", "0.947", *["0.900"] * 6]
    assert "AdaMerging, entropy, layer-wise (guarded)" in cells
    assert "average, four strangers in the pool" in cells
