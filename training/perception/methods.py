"""Which merges are measured, and what is tuned on validation labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from training.perception.measure import Study
from training.perception.tasks import TASK_NAMES

SCALES = tuple(round(0.05 * k, 2) for k in range(2, 25))
DENSITIES = (0.1, 0.2, 0.5, 1.0)
TIES_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

# Title, method, parameters; all learn without labels.
LABEL_FREE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "AdaMerging, entropy, task-wise",
        "adamerging",
        {"objective": "entropy", "optimizer": "gradient", "granularity": "task"},
    ),
    (
        "AdaMerging, entropy, layer-wise",
        "adamerging",
        {"objective": "entropy", "optimizer": "gradient", "granularity": "layer", "images_per_task": 32},
    ),
    (
        "AdaMerging, InfoMax, layer-wise",
        "adamerging",
        {"objective": "infomax", "optimizer": "gradient", "granularity": "layer", "images_per_task": 32},
    ),
    ("AdaMerging, distillation, task-wise", "adamerging", {"objective": "distill", "granularity": "task"}),
    ("AdaMerging, distillation, layer-wise", "adamerging", {"objective": "distill", "granularity": "layer"}),
    ("FW-Merging", "fw_merging", {}),
)
# In a quick look: those that take seconds.
QUICK = ("AdaMerging, distillation, layer-wise", "FW-Merging")
_QUICK_IMAGES = {"images_per_task": 24}


def _row(study: Study, title: str, name: str, parameters: dict[str, Any], *, pool: bool = False) -> dict[str, Any]:
    started, asked = time.monotonic(), study.package.network.evaluation_count
    merged = study.merge(name, parameters, pool=pool)
    seconds, asked = time.monotonic() - started, study.package.network.evaluation_count - asked
    weights = study.weights(merged, pool=pool)
    scores = study.scores(weights)
    return {
        "kind": "pool" if pool else "merge",
        "title": title,
        "method": name,
        "parameters": parameters,
        "mean": float(scores.mean()),
        "scores": dict(zip(TASK_NAMES, scores.tolist(), strict=True)),
        "validation": float(study.scores(weights, study.validation).mean()),
        "seconds": round(seconds, 2),
        "evaluations": asked,
        "guarded": merged.guarded,
        "coefficients": None if merged.coefficients is None else np.round(merged.coefficients, 4).tolist(),
    }


def _tuned(study: Study, name: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The parameters that do best on validation labels."""
    means = [study.scores(study.weights(study.merge(name, each)), study.validation).mean() for each in tried]
    return tried[int(np.argmax(means))]


def merge_rows(study: Study, *, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Experts, base, and a row a merge; then the pool with strangers."""
    scores, validation = study.expert_scores(), study.expert_scores(study.validation)
    rows = [
        {
            "kind": "merge",
            "title": "experts",
            "mean": float(scores.mean()),
            "scores": dict(zip(TASK_NAMES, scores.tolist(), strict=True)),
            "validation": float(validation.mean()),
        }
    ]
    scales = [{"scale": scale} for scale in SCALES[:: 4 if quick else 1]]
    wanted = [
        ("base", "base", {}),
        ("average", "average", {}),
        ("task arithmetic, 0.3", "task_arithmetic", {"scale": 0.3}),
        ("task arithmetic, tuned", "task_arithmetic", _tuned(study, "task_arithmetic", scales)),
        ("TIES, as published", "ties", {"density": 0.2, "scale": 1.0}),
    ]
    if not quick:
        ties = [{"density": d, "scale": s} for d in DENSITIES for s in TIES_SCALES]
        dare = [{"drop": 0.5, "scale": scale} for scale in SCALES[::2]]
        wanted += [
            ("TIES, tuned", "ties", _tuned(study, "ties", ties)),
            ("DARE, tuned", "dare", _tuned(study, "dare", dare)),
        ]
    less = _QUICK_IMAGES if quick else {}
    wanted += [(title, name, given | less) for title, name, given in LABEL_FREE if not quick or title in QUICK]
    wanted += [("preference map, all alike", "preference", {})]
    for title, name, parameters in wanted:
        rows.append(_row(study, title, name, parameters))
        say(f"{title}: {rows[-1]['mean']:.3f} in {rows[-1]['seconds']} s")
    for title, name, given in (("average", "average", {}), ("FW-Merging", "fw_merging", less)):
        rows.append(_row(study, title, name, given, pool=True))
        say(f"{title} with strangers: {rows[-1]['mean']:.3f}")
    return rows
