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
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import typer
from rich.console import Console
from rich.table import Table

from training.minigrid import compare, pose, served, tiles
from training.minigrid.data import FIRST_SEED, Episode, record_many
from training.minigrid.legal import legal_views
from training.minigrid.package import Package
from training.minigrid.rolling import (
    BATCH,
    DEPTHS,
    LONG_DEPTH,
    REAL_TOLERANCE,
    START_COUNT,
    Rollouts,
    Truth,
    future_actions,
    generate,
    roll,
    share,
    truth_of,
)

DEFAULT_PACKAGE = Path("models/minigrid/1")
DEFAULT_METHODS = Path("out/training/minigrid/methods.json")
GROUP_COUNT = 192
app = typer.Typer(add_completion=False)


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


def measure_groups(package: Package, episodes: list[Episode]) -> list[dict[str, Any]]:
    """By environment and by action, with the default number of evaluations: frames 1 to 8 of more episodes."""
    sampler = package.manifest["sampler"]
    nfe, actions = sampler["default_nfe"], future_actions(episodes, 8)
    made = generate(package, episodes, actions, levels=package.schedule(nfe), kind=sampler["kind"], seed=4)
    return group_rows(made, truth_of(episodes, depth=8, window=package.window), nfe)


def measure(
    package: Package,
    *,
    episode_count: int,
    long_count: int,
    nfes: list[int],
    group_count: int = 0,
    methods: Path | None = None,
    split: str = "test",
) -> tuple[list[dict[str, Any]], dict[int, Rollouts], list[Episode]]:
    """All rows, the rollouts by nfe and the episodes they belong to.

    `group_count`: of how many episodes rows by environment and by action are made; `methods`: a file of what was
    measured of models that are not shipped.
    """
    depth = max(DEPTHS)
    how: dict[str, Any] = {"check_rate": 0.02, "lively": True}
    episodes = record_many(split, episode_count, length=START_COUNT + LONG_DEPTH, **how)
    truth = truth_of(episodes, depth=depth, window=package.window)
    rows: list[dict[str, Any]] = []
    by_nfe: dict[int, Rollouts] = {}
    compared: list[dict[str, Any]] = []
    for nfe in nfes:
        run = roll(package, episodes, levels=package.schedule(nfe), long_count=long_count)
        by_nfe[nfe] = run.made
        rows += depth_rows(run.made, truth, nfe)
        rows.append(imagination_row(run.made, truth, nfe))
        rows.append({"kind": "loop", "nfe": nfe, "loop_closure": run.loop_closure})
        rows.append(
            {
                "kind": "long",
                "nfe": nfe,
                "depth": LONG_DEPTH,
                "real_share": float(run.far.real[:, -1].mean()),
                "legal_share": float(legal_views(run.far.ids[:, -1]).mean()),
            }
        )
        if nfe in compare.STUDENT_NFES:
            compared.append(compare.method_row(run, truth, compare.STUDENT, nfe))
    if group_count:
        rows += measure_groups(package, record_many(split, group_count, length=START_COUNT + 8, **how))
    rows += compare.other_rows(package.folder, episodes, long_count, truth, methods) + compared
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
    for r in rows:
        if r["kind"] == "method":
            accuracies = [_text(r[f"determined_{d}"]) for d in DEPTHS]
            table.add_row(f"{r['model']}: determined", str(r["nfe"]), *accuracies)
            others = [_text(r[name]) for name in ("real", "real_new", "loop", "diversity", "real_64")]
            table.add_row("  real; new; loop; diversity; at 64", "", *others)
    table.add_section()
    for bar in bars:
        verdict = "holds" if bar["holds"] else "MISSED"
        table.add_row(bar["name"], "", f"{bar['value']:.3f}", f"bar {bar['bar']:g}", verdict)
    Console(width=140).print(table)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="the package folder")] = DEFAULT_PACKAGE,
    quick: Annotated[bool, typer.Option("--quick", help="a look, in under a minute")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where the figures go")] = None,
    strips: Annotated[Path | None, typer.Option(help="folder for PNG strips, truth above, model below")] = None,
    episode_count: Annotated[int, typer.Option("--episodes", help="test episodes")] = 48,
    storage_count: Annotated[
        int, typer.Option("--storage-episodes", help="test episodes for each format, policy")
    ] = 24,
    loop_count: Annotated[int, typer.Option("--loops", help="test loops for each format, policy")] = 32,
    pieces: Annotated[
        Path | None, typer.Option(help="keeps what was measured of formats and policies: a run cut short goes on")
    ] = None,
    methods: Annotated[
        Path, typer.Option(help="keeps what was measured of models that are not shipped, by their parameters")
    ] = DEFAULT_METHODS,
    figures: Annotated[
        Path | None, typer.Option(help="--json of an earlier run: only formats and policies are measured again")
    ] = None,
    card: Annotated[bool, typer.Option(help="rewrite MODEL_CARD.md with these figures (not when --quick)")] = True,
) -> None:
    """Evaluates the package and prints one table."""
    started = time.monotonic()
    count, long_count = (4, 1) if quick else (episode_count, BATCH // 2)
    package = Package(folder, block_count=BATCH * 9)
    default = package.manifest["sampler"]["default_nfe"]
    nfes = [n for n in sorted(package.manifest["sampler"]["schedules"]) if n <= 2 or not quick]
    if figures is None:
        rows, by_nfe, episodes = measure(
            package,
            episode_count=count,
            long_count=long_count,
            nfes=nfes,
            group_count=0 if quick else GROUP_COUNT,
            methods=methods,
        )
    else:
        rows, by_nfe, episodes = earlier_rows(figures, count), {}, []
    rows += storage_rows(folder, *((2, 1) if quick else (storage_count, loop_count)), pieces)
    bars = bars_of(rows, default) + compare.method_bars(rows)
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
            "long_episodes": long_count,
            "group_episodes": GROUP_COUNT,
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
