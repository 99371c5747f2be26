"""What must hold, and the table, from rows of several seeds of training."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from training.perception.methods import LABEL_FREE
from training.perception.tasks import TASK_NAMES

Row = dict[str, Any]
_LABEL_FREE = [title for title, _, _ in LABEL_FREE]


def titles(rows: list[Row], kind: str) -> list[str]:
    """In their order, each once."""
    return list(dict.fromkeys(row["title"] for row in rows if row["kind"] == kind))


def mean_of(rows: list[Row], kind: str, title: str, what: str = "mean") -> float:
    """Over seeds of training."""
    return float(np.mean([row[what] for row in rows if row["kind"] == kind and row["title"] == title]))


def best_label_free(rows: list[Row]) -> str:
    """The adaptive merge without labels that is best on the mean; chosen on validation images, not on test ones."""
    known = [title for title in titles(rows, "merge") if title in _LABEL_FREE]
    return max(known, key=lambda title: mean_of(rows, "merge", title, "validation"))


def merge_table(rows: list[Row]) -> list[list[str]]:
    """A row of text a merge: title, mean over tasks and seeds, share of the experts' mean, score by task."""
    top = mean_of(rows, "merge", "experts")
    cells = []
    for kind, suffix in (("merge", ""), ("pool", ", four strangers in the pool")):
        for title in titles(rows, kind):
            chosen = [row for row in rows if row["kind"] == kind and row["title"] == title]
            mean = mean_of(rows, kind, title)
            by_task = [f"{np.mean([row['scores'][task] for row in chosen]):.3f}" for task in TASK_NAMES]
            guarded = " (guarded)" if any(row.get("guarded") for row in chosen) else ""
            cells.append([f"{title}{suffix}{guarded}", f"{mean:.3f}", f"{mean / top:.3f}", *by_task])
    return cells


def _bar(name: str, value: float, bar: float, *, better: str = "higher") -> Row:
    holds = value >= bar if better == "higher" else value <= bar
    return {"name": name, "value": round(value, 4), "bar": bar, "better": better, "holds": bool(holds)}


def _largest_fall(rows: list[Row]) -> float:
    """Of a task's score from one preference for it to any higher one, on the mean curve over seeds."""
    falls = []
    for task in TASK_NAMES:
        curves = [row["scores"] for row in rows if row["kind"] == "strength" and row["task"] == task]
        curve = np.mean(curves, axis=0)
        falls.append(max(0.0, float(np.max(np.maximum.accumulate(curve) - curve))))
    return max(falls)


def bars_of(rows: list[Row]) -> list[Row]:
    """Those for which there are rows."""
    best = best_label_free(rows)
    order = [
        ("experts", mean_of(rows, "merge", "experts")),
        (best, mean_of(rows, "merge", best)),
        ("task arithmetic, tuned", mean_of(rows, "merge", "task arithmetic, tuned")),
        ("average", mean_of(rows, "merge", "average")),
        ("base", mean_of(rows, "merge", "base")),
    ]
    bars = [_bar(f"{above} over {below}", first - second, 0.02) for (above, first), (below, second) in pairwise(order)]
    bars.append(_bar(f"{best}, share of the experts' mean", order[1][1] / order[0][1], 0.93))
    loss = {title: mean_of(rows, "merge", title) - mean_of(rows, "pool", title) for title in ("FW-Merging", "average")}
    bars.append(_bar("FW-Merging loses by four strangers", loss["FW-Merging"], 0.01, better="lower"))
    bars.append(_bar("average loses by four strangers", loss["average"], 0.05))
    bars.append(_bar("a score falls as its preference rises, at most", _largest_fall(rows), 0.01, better="lower"))
    gains = [row["map"] - row["fixed"] for row in rows if row["kind"] == "preference"]
    if gains:
        bars.append(_bar("preference map over the best fixed merge, random preferences", float(np.mean(gains)), 0.0))
    fronts = titles(rows, "front")
    if fronts:
        covered = {title: mean_of(rows, "front", title, "hypervolume") for title in fronts}
        grid = max(value for title, value in covered.items() if title != "MM-MO")
        bars.append(_bar("MM-MO's hypervolume over the best grid's", covered["MM-MO"] / grid, 1.0))
    return bars
