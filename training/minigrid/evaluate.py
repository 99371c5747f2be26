"""Measures a package against the simulator. `python -m training.minigrid.evaluate --help`.

The *package* is measured (onnxruntime, paged pool, sliding window, the manifest's sampler), on test seeds that no
training or validation episode uses, under a livelier policy than training's (`Temper.lively`). The model is given 8
real frames (the window) and then makes its own: every later frame is generated from its own frames and the actions.

- *determined accuracy* at depth d: of the cells of the d-th generated frame that are determined (see
  `training.minigrid.determined`: visible, known from the real frames by an unbroken chain, state follows from the
  actions; plus the agent's own tile), the share whose nearest codebook tile is the true one. `strict` also asks that
  the agent's pose follows. `copy` is the same for the last real frame held still.
- *real-tile share*: share of all generated tiles that are pictures the simulator can draw: mean absolute error to the
  nearest codebook tile at most 2 of 255. `new` counts only cells that are visible in truth and not determined.
- *legal*: share of frames that MiniGrid could show (see `training.minigrid.legal`).
- *loop closure*: after the real frames, four left turns: share of cells equal to the last real frame's.

What storage formats and KV policies cost is measured on the service's own engine: see `training.minigrid.served`.
"""

from __future__ import annotations

import asyncio
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import typer
from rich.console import Console
from rich.table import Table

from training.minigrid import pose, served, tiles
from training.minigrid.data import FIRST_SEED, Episode, record_many
from training.minigrid.determined import determined_cells
from training.minigrid.legal import legal_views
from training.minigrid.package import Histories, Package, none_actions

START_COUNT = 8
REAL_TOLERANCE = 2.0  # of 255, mean absolute error of a tile
DEPTHS = (1, 4, 8, 16)
LONG_DEPTH = 64
DEFAULT_PACKAGE = Path("models/minigrid/1")
BATCH = 16
app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Generated frames of many episodes, judged tile by tile."""

    ids: npt.NDArray[np.int64]  # [episode, depth, 49] nearest tiles
    real: npt.NDArray[np.bool_]  # [episode, depth, 49]
    frames: npt.NDArray[np.uint8]  # [episode, depth, 56, 56, 3]


def generate(
    package: Package,
    episodes: list[Episode],
    actions: npt.NDArray[np.int64],
    *,
    levels: list[float],
    kind: str,
    seed: int,
) -> Rollouts:
    """Feeds each episode's first START_COUNT frames, then rolls out `actions` [episode, depth]."""
    parts: list[npt.NDArray[np.uint8]] = []
    for first in range(0, len(episodes), BATCH):
        group = episodes[first : first + BATCH]
        history = Histories(package, len(group), seed=seed + first)
        for k in range(START_COUNT):
            frames = tiles.draw_frame(np.stack([e.ids[k] for e in group]))
            led = none_actions(len(group)) if k == 0 else np.array([e.actions[k] for e in group], np.int64)
            history.observe(frames, led)
        steps = actions[first : first + BATCH].T
        made = [history.step(np.ascontiguousarray(a), levels=levels, kind=kind) for a in steps]
        parts.append(np.stack(made, axis=1))
    frames = np.concatenate(parts)
    ids, errors = tiles.nearest_tile(frames)
    return Rollouts(ids, errors <= REAL_TOLERANCE, frames)


def future_actions(episodes: list[Episode], depth: int) -> npt.NDArray[np.int64]:
    return np.stack([e.actions[START_COUNT : START_COUNT + depth] for e in episodes]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Truth:
    """True futures and which of their cells are determined, [episode, depth, 49]."""

    ids: npt.NDArray[np.uint8]
    plain: npt.NDArray[np.bool_]
    strict: npt.NDArray[np.bool_]
    last: npt.NDArray[np.uint8]  # [episode, 49], the last real frame
    first_actions: npt.NDArray[np.int64]  # [episode, depth]
    env_ids: list[str]


def truth_of(episodes: list[Episode], *, depth: int, window: int) -> Truth:
    total = START_COUNT + depth
    masks = [
        determined_cells(e.ids[:total], e.poses[:total], e.actions[:total], start_count=START_COUNT, window=window)
        for e in episodes
    ]
    return Truth(
        ids=np.stack([e.ids[START_COUNT:total] for e in episodes]),
        plain=np.stack([plain[START_COUNT:] for plain, _ in masks]),
        strict=np.stack([strict[START_COUNT:] for _, strict in masks]),
        last=np.stack([e.ids[START_COUNT - 1] for e in episodes]),
        first_actions=future_actions(episodes, depth),
        env_ids=[e.env_id for e in episodes],
    )


def share(hits: npt.NDArray[np.bool_], where: npt.NDArray[np.bool_]) -> float | None:
    """Share of hits among the cells of `where`; None when there are none."""
    return float(hits[where].mean()) if where.any() else None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def depth_rows(made: Rollouts, truth: Truth, nfe: int) -> list[dict[str, Any]]:
    right = made.ids == truth.ids
    held = truth.last[:, None] == truth.ids
    legal = legal_views(made.ids)
    new = (truth.ids != tiles.DARK) & ~truth.plain
    rows = []
    for depth in (d for d in DEPTHS if d <= truth.ids.shape[1]):
        k = depth - 1
        rows.append(
            {
                "kind": "depth",
                "nfe": nfe,
                "depth": depth,
                "determined_accuracy": share(right[:, k], truth.plain[:, k]),
                "strict_accuracy": share(right[:, k], truth.strict[:, k]),
                "copy_accuracy": share(held[:, k], truth.plain[:, k]),
                "determined_share": float(truth.plain[:, k].mean()),
                "real_share": float(made.real[:, k].mean()),
                "real_share_new": share(made.real[:, k], new[:, k]),
                "legal_share": float(legal[:, k].mean()),
            }
        )
    return rows


def imagination_row(made: Rollouts, truth: Truth, nfe: int) -> dict[str, Any]:
    """Things (all but floor and wall) and seen cells a frame among cells not determined, true and made; depths 1-4."""
    opens = ~truth.plain[:, :4]

    def count(ids: npt.NDArray[Any], *, things: bool) -> float:
        hits = (ids > tiles.WALL) & (ids < tiles.AGENT) if things else ids != tiles.DARK
        return float((hits[:, :4] & opens).sum(-1).mean())

    return {
        "kind": "imagination",
        "nfe": nfe,
        "things_true": count(truth.ids, things=True),
        "things_made": count(made.ids, things=True),
        "seen_true": count(truth.ids, things=False),
        "seen_made": count(made.ids, things=False),
    }


def group_rows(made: Rollouts, truth: Truth, nfe: int) -> list[dict[str, Any]]:
    """By environment and by action, over depths 1 to 8."""
    right = (made.ids == truth.ids)[:, :8]
    where = truth.plain[:, :8]
    rows: list[dict[str, Any]] = []
    for env_id in sorted(set(truth.env_ids)):
        chosen = np.array([e == env_id for e in truth.env_ids])
        rows.append(
            {
                "kind": "environment",
                "nfe": nfe,
                "name": env_id,
                "episodes": int(chosen.sum()),
                "depth_1": share(right[chosen, 0], where[chosen, 0]),
                "depths_1_to_8": share(right[chosen], where[chosen]),
            }
        )
    for action, name in enumerate(pose.ACTION_NAMES):
        taken = (truth.first_actions[:, :8] == action)[..., None]
        first = taken[:, :1] & where[:, :1]
        rows.append(
            {
                "kind": "action",
                "nfe": nfe,
                "name": name,
                "frames": int(taken.sum()),
                "depth_1": share(right[:, :1], first),
                "depths_1_to_8": share(right, taken & where),
            }
        )
    return rows


def measure(
    package: Package, *, episode_count: int, long_count: int, nfes: list[int], split: str = "test"
) -> tuple[list[dict[str, Any]], dict[int, Rollouts], list[Episode]]:
    """All rows, the rollouts by nfe and the episodes they belong to."""
    sampler = package.manifest["sampler"]
    kind, default = sampler["kind"], sampler["default_nfe"]
    depth = max(DEPTHS)
    episodes = record_many(split, episode_count, length=START_COUNT + depth, check_rate=0.02, lively=True)
    long = record_many(split, long_count, length=START_COUNT + LONG_DEPTH, check_rate=0.0, lively=True)
    truth = truth_of(episodes, depth=depth, window=package.window)
    rows: list[dict[str, Any]] = []
    by_nfe: dict[int, Rollouts] = {}
    for nfe in nfes:
        levels = package.schedule(nfe)
        made = generate(package, episodes, future_actions(episodes, depth), levels=levels, kind=kind, seed=1)
        by_nfe[nfe] = made
        rows += depth_rows(made, truth, nfe)
        rows.append(imagination_row(made, truth, nfe))
        turns = np.full((len(episodes), 4), pose.LEFT, np.int64)
        closed = generate(package, episodes, turns, levels=levels, kind=kind, seed=2)
        equal = closed.ids[:, -1] == truth.last
        rows.append({"kind": "loop", "nfe": nfe, "loop_closure": float(equal.mean())})
        far = generate(package, long, future_actions(long, LONG_DEPTH), levels=levels, kind=kind, seed=3)
        rows.append(
            {
                "kind": "long",
                "nfe": nfe,
                "depth": LONG_DEPTH,
                "real_share": float(far.real[:, -1].mean()),
                "legal_share": float(legal_views(far.ids[:, -1]).mean()),
            }
        )
        if nfe == default:
            rows += group_rows(made, truth, nfe)
    return rows, by_nfe, episodes


def bars_of(rows: list[dict[str, Any]], nfe: int) -> list[dict[str, Any]]:
    depth = {r["depth"]: r for r in rows if r["kind"] == "depth" and r["nfe"] == nfe}
    loop = next(r for r in rows if r["kind"] == "loop" and r["nfe"] == nfe)
    real = min(r["real_share"] for r in depth.values())
    wanted = [
        ("determined-tile accuracy, depth 1", depth[1]["determined_accuracy"], 0.95),
        ("determined-tile accuracy, depth 8", depth[8]["determined_accuracy"], 0.85),
        ("real-tile share, lowest of all depths", real, 0.97),
        ("loop closure, four left turns", loop["loop_closure"], 0.90),
    ]
    return [
        {"name": name, "value": value, "bar": bar, "better": "higher", "holds": value >= bar}
        for name, value, bar in wanted
    ]


def storage_rows(folder: Path, count: int, loop_count: int, kept: Path | None) -> list[dict[str, Any]]:
    """A row for each storage format and KV policy."""
    name, repository = folder.resolve().parent.name, folder.resolve().parents[1]
    episodes = record_many("test", count, length=START_COUNT + max(served.DEPTHS), check_rate=0.0, lively=True)
    return asyncio.run(served.measure(repository, name, episodes, served.record_loops("test", loop_count), kept=kept))


def earlier_rows(file: Path, episode_count: int) -> list[dict[str, Any]]:
    """What a whole run measured before. Refuses one of another size."""
    document = json.loads(file.read_text())
    found = document["settings"]["episodes"]
    if found != episode_count:
        raise typer.BadParameter(f"{file} holds figures of {found} episodes, not {episode_count}")
    return [row for row in document["rows"] if row["kind"] != "storage"]


_MEASURES = {
    "determined_accuracy": "determined",
    "strict_accuracy": "determined, strictly",
    "copy_accuracy": "determined, last frame held",
    "real_share": "real tiles",
    "real_share_new": "real tiles, new cells",
    "legal_share": "legal frames",
}


def print_table(bars: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """One table: a measure or a group a row, rollout depths as columns, the bars last."""
    table = Table(title="held-out seeds, lively policy", show_lines=False)
    table.add_column("", no_wrap=True)
    for name in ("nfe", *(f"depth {d}" for d in (*DEPTHS, LONG_DEPTH)), "1 to 8"):
        table.add_column(name, justify="right", no_wrap=True)
    by_nfe: dict[int, dict[int, dict[str, Any]]] = {}
    for r in rows:
        if r["kind"] in ("depth", "long"):
            by_nfe.setdefault(r["nfe"], {})[r["depth"]] = r
    for nfe, depths in by_nfe.items():
        for measure, title in _MEASURES.items():
            values = [depths.get(d, {}).get(measure) for d in (*DEPTHS, LONG_DEPTH)]
            table.add_row(title, str(nfe), *(_text(v) for v in values))
        loop = next(r for r in rows if r["kind"] == "loop" and r["nfe"] == nfe)
        table.add_row("loop closure, four lefts", str(nfe), "", f"{loop['loop_closure']:.3f}")
        made = next(r for r in rows if r["kind"] == "imagination" and r["nfe"] == nfe)
        ratio = made["things_made"] / max(made["things_true"], 1e-9)
        table.add_row("things made up, of true", str(nfe), "", f"{ratio:.2f}", end_section=True)
    for r in rows:
        if r["kind"] in ("environment", "action"):
            shares = [_text(r["depth_1"]), "", "", "", "", _text(r["depths_1_to_8"])]
            table.add_row(f"determined, {r['name']}", str(r["nfe"]), *shares)
    table.add_section()
    for r in rows:
        if r["kind"] == "storage":
            accuracy = ["", _text(r["depth_8"]), "", f"{r['session_bytes'] / 1024:.0f} KiB", _text(r["loop_closure"])]
            table.add_row(f"{r['storage']}, {r['policy']}", str(r["nfe"]), _text(r["depth_1"]), *accuracy)
    table.add_section()
    for bar in bars:
        verdict = "holds" if bar["holds"] else "MISSED"
        table.add_row(bar["name"], "", f"{bar['value']:.3f}", f"bar {bar['bar']:g}", verdict)
    Console(width=120).print(table)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="the package folder")] = DEFAULT_PACKAGE,
    quick: Annotated[bool, typer.Option("--quick", help="a look, in under a minute")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the figures go")] = None,
    strips: Annotated[Path | None, typer.Option(help="folder for PNG strips, truth above, model below")] = None,
    episode_count: Annotated[int, typer.Option("--episodes", help="test episodes")] = 256,
    storage_count: Annotated[
        int, typer.Option("--storage-episodes", help="test episodes for each format, policy")
    ] = 64,
    loop_count: Annotated[int, typer.Option("--loops", help="test loops for each format, policy")] = 96,
    pieces: Annotated[
        Path | None, typer.Option(help="keeps what was measured of formats and policies: a run cut short goes on")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="--json of an earlier run: only formats and policies are measured again")
    ] = None,
    card: Annotated[bool, typer.Option(help="rewrite MODEL_CARD.md with these figures (not when --quick)")] = True,
) -> None:
    """Evaluates the package and prints one table."""
    started = time.monotonic()
    count, long_count = (32, 8) if quick else (episode_count, 32)
    package = Package(folder, block_count=BATCH * 9)
    default = package.manifest["sampler"]["default_nfe"]
    nfes = [n for n in sorted(package.manifest["sampler"]["schedules"]) if n <= 4 or not quick]
    if figures is None:
        rows, by_nfe, episodes = measure(package, episode_count=count, long_count=long_count, nfes=nfes)
    else:
        rows, by_nfe, episodes = earlier_rows(figures, count), {}, []
    rows += storage_rows(folder, *((16, 16) if quick else (storage_count, loop_count)), pieces)
    bars = bars_of(rows, default)
    print_table(bars, rows)
    document = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "onnxruntime": ort.__version__,
        },
        "settings": {
            "window": package.window,
            "episodes": count,
            "first_seed": FIRST_SEED["test"],
            "start_frames": START_COUNT,
            "quick": quick,
            "real_tolerance": REAL_TOLERANCE,
            "default_nfe": default,
            "sampler": package.manifest["sampler"],
            "seconds": round(time.monotonic() - started, 1),
        },
        "bars": bars,
        "rows": rows,
    }
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(document, indent=1) + "\n")
    if strips is not None and default in by_nfe:
        from training.minigrid.strips import save_strips

        save_strips(strips, episodes, by_nfe[default].frames, start_count=START_COUNT)
    if card and not quick:
        from training.minigrid.card import write_card

        write_card(folder, document)


if __name__ == "__main__":
    app()
