"""The report on the shipped judge, the way of RewardBench 2. `python -m training.reward.evaluate`.

Labels of the held-out splits are clean. Every figure is of the package as it is served, through the service's own
networks; baselines are of the same data, seeds and steps, where they were trained (`training.reward.train --shape`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnx
import typer
import yaml
from rich.console import Console
from rich.table import Table
from worldtree_reward.domain import Evidence, Question
from worldtree_reward.goal import read_goal
from worldtree_runtime.opinion import ranks
from worldtree_runtime.reward_package import CARD_KEY, EXPERTS, RewardPackage

from training.reward.data import DEFAULT_FOLDER, PAIRS, TIE, Group, load, weighted
from training.reward.drift import measure_drift
from training.reward.goals import foreign_goals
from training.reward.measure import (
    best_of,
    by_category,
    calibration_error,
    chances,
    pairwise,
    reliability,
    truths,
)
from training.reward.places import COMPARED, place_of
from training.reward.rubric import CATEGORY_NAMES, DIMENSION_NAMES
from training.reward.served import DEFAULT_PACKAGE, Bench, dimension_means, evidence_of

SEEDS = (0, 1, 2)
SHAPE_NAMES = ("double", "one-expert", "dense", "single")
PICTURE = Path("docs/judge-calibration.png")
_WEIGHTINGS = 40  # random weights of dimensions
_LEFT, _RIGHT = (np.array(side) for side in zip(*PAIRS, strict=True))
Float = npt.NDArray[np.float32]
Bar = tuple[str, float, str, float]  # what, reached, ">=" or "<=", wanted


def rewards_of(bench: Bench, groups: list[Group], evidence: list[list[Evidence]]) -> tuple[Float, Float]:
    """Means and deviations of the rewards [groups, candidates], by the category that the router finds."""
    found = [
        [bench.judged(each, Question(group.goal)).reward for each in own]
        for group, own in zip(groups, evidence, strict=True)
    ]
    means = np.array([[reward.mean for reward in own] for own in found], np.float32)
    return means, np.array([[reward.deviation for reward in own] for own in found], np.float32)


def reweighted(bench: Bench, groups: list[Group], evidence: list[list[Evidence]]) -> float:
    """Best of four under weights of the request, drawn at random, against the truth weighted alike: the mean over
    weightings, of groups whose best leads clearly then, too.
    """
    rng, (truth, _) = np.random.default_rng(17), truths(groups)
    shares = []
    for _ in range(_WEIGHTINGS):
        names = rng.choice(DIMENSION_NAMES, int(rng.integers(2, 5)), replace=False)
        weights = dict(zip(map(str, names), rng.dirichlet(np.ones(len(names))), strict=True))
        total = sum(weights.values())
        wanted = weighted(truth, {name: weight / total for name, weight in weights.items()})
        ordered = np.sort(wanted, axis=1)
        clear = np.flatnonzero(np.nan_to_num(ordered[:, -1] - ordered[:, -2]) > 0.4)
        if not len(clear):
            continue
        right = [
            int(np.argmax([bench.judged(each, Question(groups[row].goal, None, weights)).reward.mean
                           for each in evidence[row]])) == int(wanted[row].argmax())
            for row in clear
        ]  # fmt: skip
        shares.append(float(np.mean(right)))
    return float(np.mean(shares))


def ties_kept(bench: Bench, groups: list[Group], evidence: list[list[Evidence]]) -> tuple[float, float]:
    """Of groups whose two best are equally good: the share in which both stand before all others, and that in which
    they also share the first rank.
    """
    before, shared = [], []
    for group, own in zip(groups, evidence, strict=True):
        rewards = [bench.judged(each, Question(group.goal)).reward for each in own]
        order = ranks(rewards, bench.judge.package.tie_below)
        best = set(np.argsort(group.rewards)[-2:].tolist())
        before.append({index for index, _ in order[:2]} == best)
        shared.append(before[-1] and order[1][1] == 1)
    return float(np.mean(before)), float(np.mean(shared))


def routed(bench: Bench, groups: list[Group]) -> dict[str, float]:
    """Shares: goals put into their category, goals of none recognised, goals of one taken for none."""
    package, nothing = bench.judge.package, _blank(bench)

    def route(goal: str) -> tuple[str, bool]:
        found = bench.judged(nothing, Question(goal)).route
        return found.category, found.unseen

    own = [(route(group.goal), CATEGORY_NAMES[group.category]) for group in groups]
    return {
        "category found": float(np.mean([category == wanted for (category, _), wanted in own])),
        "taken for none": float(np.mean([unseen for (_, unseen), _ in own])),
        "none recognised": float(np.mean([route(goal)[1] for goal in foreign_goals("test")])),
        "unseen from": package.goal.unseen_from,
    }


def _blank(bench: Bench) -> Evidence:
    """Of a clip that says nothing."""
    track = bench.judge.begin(read_goal("", bench.judge.package.goal).words)
    size = bench.judge.package.image
    blank = np.zeros((1, size.height_px, size.width_px, size.channels), np.uint8)
    bench.judge.step([track], blank, np.array([len(bench.judge.package.actions)]))
    return bench.judge.evidence([track])[0]


def heuristics(groups: list[Group]) -> dict[str, Float]:
    """Scores by pixels alone, [groups, candidates]: how sharp frames are, how little and how much they change."""

    def each(measure: Callable[[npt.NDArray[np.float32]], float]) -> Float:
        return np.array(
            [[measure(candidate.frames().astype(np.float32)) for candidate in group.candidates] for group in groups],
            np.float32,
        )

    return {
        "pixels: sharp": each(lambda frames: float(np.abs(np.diff(frames, axis=2)).mean())),
        "pixels: calm": each(lambda frames: -float(np.abs(np.diff(frames, axis=0)).mean())),
        "pixels: lively": each(lambda frames: float(np.abs(np.diff(frames, axis=0)).mean())),
    }


def baseline_rows(groups: list[Group], folder: Path) -> list[dict[str, Any]]:
    """Best of four of each shape, noise and seed that was trained, and of pixels."""
    _, rewards = truths(groups)
    rows: list[dict[str, Any]] = []
    tried = [(shape, noise, seed) for noise in (0.0, 0.3) for shape in SHAPE_NAMES for seed in SEEDS]
    for shape, noise, seed in tried:
        if not place_of(shape, noise, seed, folder).exists():
            continue
        # Only whoever trained has torch.
        from training.reward.judged import judge, read

        model = read(shape, noise, seed, folder)
        right = best_of(judge(model, groups).whole, rewards)
        size = sum(p.numel() for p in model.parameters())
        row = {"shape": shape, "noise": noise, "seed": seed, "parameters": size, "mean": float(right.mean())}
        rows.append(row | by_category(right, groups))
    for name, scores in heuristics(groups).items():
        right = best_of(scores, rewards)
        rows.append({"shape": name, "noise": None, "seed": None, "parameters": 0, "mean": float(right.mean())}
                    | by_category(right, groups))  # fmt: skip
    return rows


def report(bench: Bench, folder: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Every figure of the package."""
    groups = load("test", folder)
    evidence = evidence_of(bench, groups)
    say("test groups judged")
    truth, rewards = truths(groups)
    means, deviations = rewards_of(bench, groups, evidence)
    right, held = best_of(means, rewards), np.array([group.held for group in groups])
    gap = rewards[:, _LEFT] - rewards[:, _RIGHT]
    told = np.abs(gap) > TIE
    bins = reliability(chances(means, deviations)[told], (gap > 0)[told])
    ties = load("ties", folder)
    before, shared = ties_kept(bench, ties, evidence_of(bench, ties))
    say("ties judged")
    drifted = measure_drift(bench)
    say("drifted imaginations judged")
    answers = dimension_means(evidence)[..., : len(DIMENSION_NAMES)]
    return {
        "best of four": {
            "mean": float(np.mean(list(by_category(right, groups).values()))),
            **by_category(right, groups),
            "known flaws": float(right[~held].mean()),
            "flaws of other kinds": float(right[held].mean()),
        },
        "pairwise": pairwise(answers, truth),
        "pairwise, flaws of other kinds": pairwise(answers[held], truth[held]),
        "calibration": {"error": calibration_error(bins), "bins": bins},
        "ties": {"before all others": before, "shared rank": shared},
        "reweighted": reweighted(bench, groups, evidence),
        "router": routed(bench, groups),
        "drift": drifted,
        "groups": len(groups),
    }


def bars_of(found: dict[str, Any]) -> list[Bar]:
    best = found["best of four"]
    return [
        ("best of four, mean", best["mean"], ">=", 0.90),
        ("best of four, worst category", min(best[name] for name in CATEGORY_NAMES), ">=", 0.80),
        ("pairs in order, worst dimension", min(found["pairwise"].values()), ">=", 0.90),
        ("expected calibration error", found["calibration"]["error"], "<=", 0.05),
        ("best of four under weights of the request", found["reweighted"], ">=", 0.85),
    ]


def print_report(found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    console = Console(width=160)
    for title in ("best of four", "pairwise", "pairwise, flaws of other kinds", "ties", "router", "drift"):
        table = Table(title=title)
        for name in found[title]:
            table.add_column(name, justify="right")
        table.add_row(*(f"{value:.3f}" for value in found[title].values()))
        console.print(table)
    table = Table(title="best of four, by shape")
    for name in ("shape", "label noise", "seed", "parameters", "mean", *CATEGORY_NAMES):
        table.add_column(name, justify="right")
    for row in rows:
        shown = (f"{row[name]:.3f}" for name in ("mean", *CATEGORY_NAMES))
        table.add_row(str(row["shape"]), str(row["noise"]), str(row["seed"]), str(row["parameters"]), *shown)
    console.print(table)
    table = Table(title="bars")
    for name in ("bar", "reached", "wanted", ""):
        table.add_column(name)
    for what, value, sign, wanted in bars_of(found):
        holds = value >= wanted if sign == ">=" else value <= wanted
        table.add_row(what, f"{value:.3f}", f"{sign} {wanted:g}", "holds" if holds else "MISSED")
    console.print(table)


def draw_reliability(bins: list[tuple[float, float, int]], path: Path) -> None:
    """How often what is said with a chance comes true, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (axes, counts) = pyplot.subplots(2, 1, figsize=(5, 6), height_ratios=(3, 1), sharex=True)
    said, held, number = zip(*bins, strict=True)
    axes.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1)
    axes.plot(said, held, marker="o")
    axes.set_ylabel("share that came true")
    axes.set_title("pairs of held-out clips: chance said, share come true")
    counts.bar(said, number, width=0.03)
    counts.set_xlabel("chance said of the side called better")
    counts.set_ylabel("pairs")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def publish(found: dict[str, Any], package: Path) -> None:
    """Writes into the package what ListRubrics tells of it."""
    file = package / "model.yaml"
    manifest = yaml.safe_load(file.read_text())
    for category in manifest["categories"]:
        category["best_of_four"] = round(found["best of four"][category["name"]], 4)
    manifest["calibration_error"] = round(found["calibration"]["error"], 4)
    RewardPackage.model_validate(manifest)
    file.write_text(yaml.safe_dump(manifest, sort_keys=False, width=120, allow_unicode=True))
    for name in DIMENSION_NAMES:
        path = package / EXPERTS / f"{name}.onnx"
        graph = onnx.load(str(path))
        (own,) = [each for each in graph.metadata_props if each.key == CARD_KEY]
        own.value = json.dumps({**json.loads(own.value), "pairwise_accuracy": round(found["pairwise"][name], 4)})
        onnx.save(graph, str(path))


app = typer.Typer(add_completion=False)


@app.command()
def main(
    package: Annotated[Path, typer.Option(help="package folder")] = DEFAULT_PACKAGE,
    folder: Annotated[Path, typer.Option(help="where data and trained baselines lie")] = DEFAULT_FOLDER,
    json_file: Annotated[Path, typer.Option("--json", help="where the figures go")] = DEFAULT_FOLDER / "evaluate.json",
) -> None:
    """Prints the report, draws the calibration, and writes into the package what its rubrics tell of it."""
    found = report(Bench.read(package), folder, say=typer.echo)
    rows = baseline_rows(load("test", folder), folder / COMPARED)
    print_report(found, rows)
    publish(found, package)
    draw_reliability(found["calibration"]["bins"], PICTURE)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps({"report": found, "shapes": rows, "bars": bars_of(found)}, indent=1) + "\n")


if __name__ == "__main__":
    app()
