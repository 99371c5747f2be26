"""Merges as pictures: a front of them, and how much of each expert is in each layer. Matplotlib loads on first use."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worldtree.cli.pictures.ink import BRANCH_COLOURS, FAINT, HAIRLINE, INK, PAPER, Colour
from worldtree.errors import MissingExtra
from worldtree.multitask_types import FrontPoint, Merge, ParetoFront

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
CHOSEN = BRANCH_COLOURS[1]
POINTS_MAP = "YlGnBu"  # light to dark: the better, the darker
CELLS_MAP = "RdBu"  # red below nothing of an expert, blue above
LABELLED_TASKS = 12  # with more, their names would run into one another

Scores = npt.NDArray[np.float64]


def draw_front(front: ParetoFront, chosen: FrontPoint, to: Path) -> Path:
    """The points over all tasks, and over the two tasks that they trade most; `chosen` stands out."""
    tasks = [each.task for each in front.points[0].scores]
    scores = np.array([[each.score for each in point.scores] for point in front.points])  # [points, tasks]
    index = front.points.index(chosen)
    figure = _figure(12.5, 5.6)
    across, projection = figure.subplots(1, 2, width_ratios=(max(1.5, len(tasks) / 3), 1))
    colours = _colours(scores.mean(axis=1))
    _draw_across(across, tasks, scores, chosen, index, colours)
    _draw_projection(projection, tasks, scores, index, colours)
    noun = "point" if len(front.points) == 1 else "points"
    _head(
        figure,
        f"The front {front.name}: {len(front.points)} {noun}, hypervolume {front.hypervolume:.3f}",
        f"Each line, and each dot, is a merge that none of the {front.evaluation_count} tried beat on all tasks. "
        f"The darker, the better its mean score. Orange: {chosen.merge}, {_percent(chosen.mean_score)} in the mean.",
    )
    return _save(figure, to)


def draw_coefficients(merge: Merge, to: Path) -> Path:
    """Layers from the input down, experts across; in each cell its coefficient."""
    assert merge.coefficients is not None, f"{merge.name} has no coefficients"
    values = merge.coefficients
    rows, columns = values.shape
    figure = _figure(2.6 + 1.05 * columns, 2.1 + 0.46 * rows)
    axes = figure.add_subplot()
    limit = max(float(np.abs(values).max()), 1e-6)
    cells = axes.imshow(values, cmap=CELLS_MAP, vmin=-limit, vmax=limit, aspect="auto")
    for row in range(rows):
        for column in range(columns):
            value = float(values[row, column])
            dark = abs(value) > 0.55 * limit
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color=_hex(PAPER if dark else INK),
            )
    axes.set_xticks(range(columns), merge.experts, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), merge.layers)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_hex(PAPER), linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer, from the input down")
    _frameless(axes)
    bar = figure.colorbar(cells, ax=axes, pad=0.03, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    _head(
        figure,
        f"{merge.name}: how much of each expert is in each layer",
        f"{merge.recipe.method} on {merge.model}/{merge.version}: {_percent(merge.mean_score)} in the mean, "
        f"{_percent(merge.kept_share)} of what the experts answer right",
    )
    return _save(figure, to)


def traded_most(scores: Scores) -> tuple[int, int]:
    """The two tasks of [points, tasks] that rise at each other's cost the most; the first two where none do."""
    spread = scores - scores.mean(axis=0)
    products = spread.T @ spread  # [tasks, tasks]: below 0 where one rises as the other falls
    pairs = list(combinations(range(scores.shape[1]), 2))
    return min(pairs, key=lambda pair: float(products[pair])) if pairs else (0, 0)


def _draw_across(
    axes: "Axes",
    tasks: Sequence[str],
    scores: Scores,
    chosen: FrontPoint,
    index: int,
    colours: Sequence[Any],
) -> None:
    at = np.arange(len(tasks))
    for row, colour in sorted(zip(scores, colours, strict=True), key=lambda each: float(each[0].mean())):
        axes.plot(at, row, color=colour, linewidth=1.6, solid_capstyle="round")
    axes.plot(
        at,
        scores[index],
        color=_hex(CHOSEN),
        linewidth=3,
        marker="o",
        markersize=7,
        markeredgecolor=_hex(PAPER),
        label=chosen.merge,
        zorder=4,
    )
    experts = [each.expert_score for each in chosen.scores]
    axes.scatter(at, experts, marker="_", s=500, linewidths=2.5, color=_hex(INK), label="the task's expert", zorder=3)
    base = [each.base_score for each in chosen.scores]
    axes.plot(at, base, color=_hex(FAINT), linewidth=1.5, linestyle=(0, (4, 3)), label="the base", zorder=2)
    axes.set_xticks(
        at, tasks if len(tasks) <= LABELLED_TASKS else [str(each) for each in at], rotation=15 if len(tasks) > 8 else 0
    )
    axes.set_xlim(-0.35, len(tasks) - 0.65)
    axes.set_ylabel("answered right of the scoring set")
    _shares(axes.yaxis)
    axes.grid(axis="x", color=_hex(HAIRLINE), linewidth=1)
    axes.set_axisbelow(True)
    _frameless(axes)
    axes.tick_params(length=0)
    # Above the lines: below or beside them it would lie on some, or take their room.
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, frameon=False, fontsize=9.5, borderpad=0)


def _draw_projection(axes: "Axes", tasks: Sequence[str], scores: Scores, index: int, colours: Sequence[Any]) -> None:
    first, second = traded_most(scores)
    axes.scatter(
        scores[:, first], scores[:, second], c=list(colours), s=70, edgecolors=_hex(FAINT), linewidths=0.6, zorder=3
    )
    axes.scatter(
        scores[index, first],
        scores[index, second],
        color=_hex(CHOSEN),
        s=150,
        edgecolors=_hex(PAPER),
        linewidths=1.5,
        zorder=4,
    )
    axes.set_xlabel(tasks[first])
    axes.set_ylabel(tasks[second])
    axes.set_title("the two tasks that they trade most", fontsize=10, color=_hex(FAINT), loc="left")
    for axis in (axes.xaxis, axes.yaxis):
        _shares(axis)
    axes.margins(0.12)
    axes.grid(color=_hex(HAIRLINE), linewidth=0.8)
    axes.set_axisbelow(True)
    _frameless(axes)
    axes.tick_params(length=0)


def _colours(means: npt.NDArray[np.float64]) -> list[Any]:
    from matplotlib import colormaps

    spread = float(np.ptp(means))
    places = (means - means.min()) / spread if spread > 0 else np.ones(len(means))
    # From a quarter on: the palest of the map would not show on paper.
    return [colormaps[POINTS_MAP](0.25 + 0.7 * float(place)) for place in places]


def _figure(width_in: float, height_in: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", extra="cli", purpose="drawing merges") from error
    return Figure(figsize=(width_in, height_in), facecolor=_hex(PAPER), layout="constrained")


def _head(figure: "Figure", title: str, subtitle: str) -> None:
    for axes in figure.axes:
        axes.set_facecolor(_hex(PAPER))
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_hex(INK))
    figure.text(0.012, -0.02, subtitle, ha="left", va="top", fontsize=9.5, color=_hex(FAINT), wrap=True)


def _shares(axis: Any) -> None:
    axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")


def _frameless(axes: "Axes") -> None:
    for side in axes.spines.values():
        side.set_visible(False)


def _save(figure: "Figure", to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=DPI, bbox_inches="tight", pad_inches=0.25)
    return to


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
