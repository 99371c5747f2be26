"""Few-step distillation, side by side: the table that Salt (Ge et al. 2026) is about, on held-out seeds.

The teacher, plain DMD and SC-DMD are the package's own graph with other parameters (`training/minigrid/weights`); the
blocks that all of them read are written by the same `commit`. The student is the package. One row a model and number of
evaluations, all over the same episodes:

- *real*: real-tile share of all generated tiles, depths 1 to 32; *real, new*: of cells that are visible in truth and
  not determined, depths 1 to 8;
- *determined* at depths 1, 8, 16 and 32;
- *loop*: loop closure after four left turns;
- *diversity*: of the cells that are not determined, depths 1 to 8, one less the total variation distance between the
  tiles that were made and the simulator's;
- *real, 64*: real-tile share over the last 8 of 64 frames of its own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.minigrid import tiles
from training.minigrid.data import Episode
from training.minigrid.package import Package
from training.minigrid.rolling import BATCH, Run, Truth, roll, share

WEIGHTS = Path("training/minigrid/weights")
METHODS: dict[str, tuple[int, ...]] = {"teacher": (1, 2, 4, 16), "dmd": (1, 2), "sc-dmd": (1, 2)}
STUDENT = "salt"
STUDENT_NFES = (1, 2)
SIXTEEN = [round(1 - 0.7 * k / 15, 3) for k in range(16)]  # of the teacher: the levels of its other schedules, closer
COLUMNS = {
    "real": "real",
    "real_new": "real, new",
    "determined_1": "determined, depth 1",
    "determined_8": "depth 8",
    "determined_16": "depth 16",
    "determined_32": "depth 32",
    "loop": "loop",
    "diversity": "diversity",
    "real_64": "real, 64",
}


def diversity(made: npt.NDArray[np.integer], truth: npt.NDArray[np.integer]) -> float:
    """1 less the total variation distance of the tiles of two sets of cells."""
    shares = [np.bincount(ids, minlength=tiles.TILE_COUNT) / len(ids) for ids in (made, truth)]
    return float(1 - 0.5 * np.abs(shares[0] - shares[1]).sum())


def method_row(run: Run, truth: Truth, name: str, nfe: int) -> dict[str, Any]:
    """A row of the table."""
    made = run.made
    right = made.ids == truth.ids
    opens = ~truth.plain[:, :8]
    new = opens & (truth.ids[:, :8] != tiles.DARK)
    determined = {f"determined_{d}": share(right[:, d - 1], truth.plain[:, d - 1]) for d in (1, 8, 16, 32)}
    return {
        "kind": "method",
        "model": name,
        "nfe": nfe,
        "real": float(made.real.mean()),
        "real_new": share(made.real[:, :8], new),
        **determined,
        "loop": run.loop_closure,
        "diversity": diversity(made.ids[:, :8][opens], truth.ids[:, :8][opens]),
        "real_64": float(run.far.real[:, -8:].mean()),
    }


def other_rows(
    folder: Path, episodes: list[Episode], long_count: int, truth: Truth, kept: Path | None
) -> list[dict[str, Any]]:
    """Rows of the models that are not shipped. `kept`: a file of rows by parameters, so that each is measured once."""
    known: dict[str, Any] = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    rows = []
    for name, nfes in METHODS.items():
        parameters = WEIGHTS / f"{name}.npz"
        if not parameters.exists():
            continue
        for nfe in nfes:
            package = Package(folder, block_count=BATCH * 9, parameters=parameters)
            levels = SIXTEEN if nfe == 16 else package.schedule(nfe)
            parts = (parameters.read_bytes(), json.dumps([levels, len(episodes), long_count]).encode())
            key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
            if key not in known:
                run = roll(package, episodes, levels=levels, long_count=long_count)
                known[key] = method_row(run, truth, name, nfe)
                if kept is not None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(known, indent=1) + "\n")
            rows.append(known[key])
    return rows


def method_bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the student is held to, beside the other rows. Differences, in shares."""
    by = {(r["model"], r["nfe"]): r for r in rows if r["kind"] == "method"}

    def bar(name: str, value: float, least: float) -> dict[str, Any]:
        return {
            "name": name,
            "value": value,
            "bar": least,
            "better": "higher",
            "holds": value >= least,
            "difference": True,
        }

    student, teacher = by[STUDENT, 2], by["teacher", 16]
    bars = [
        bar(f"student at 2 less teacher at 16: {title}", student[column] - teacher[column], -0.01)
        for column, title in COLUMNS.items()
    ]
    gained = by[STUDENT, 1]["real_new"] - by["teacher", 1]["real_new"]
    bars.append(bar("student at 1 less teacher at 1: real, new", gained, 0.05))
    for nfe in STUDENT_NFES:
        ahead = by[STUDENT, nfe]["determined_32"] - by["dmd", nfe]["determined_32"]
        bars.append({**bar(f"Salt less DMD at {nfe}: depth 32", ahead, 0.0), "holds": ahead > 0})
    return bars
