"""Merges, tasks and answers as tables."""

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from worldtree.multitask_types import Answer, Merge, MethodInfo, ParetoFront, Recipe, TaskModel, TaskScore


def merges_table(merges: list[Merge]) -> Table:
    """One row a merge: who made it, how good it is, what it learned from."""
    width = max((len(merge.name) for merge in merges), default=0)
    table = Table()
    # The name whole, however narrow the terminal: it is what the other commands want to be told.
    table.add_column("merge", no_wrap=True, min_width=width)
    table.add_column("method", no_wrap=True)
    table.add_column("mean score", justify="right")
    table.add_column("of the experts", justify="right")
    for label in ("images", "passes", "made in"):
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("model", no_wrap=True)
    table.add_column("")
    for merge in merges:
        table.add_row(
            merge.name,
            merge.recipe.method,
            share(merge.mean_score),
            share(merge.kept_share),
            str(merge.image_count),
            str(merge.evaluation_count),
            f"{merge.make_s:.2f} s",
            f"{merge.model}/{merge.version}",
            _marks(merge),
        )
    return table


def card(merge: Merge) -> list[Table]:
    """What a merge is, its scores by task, and how much of each expert is in each layer."""
    head = Table(show_header=False, title=merge.name, title_justify="left", title_style="bold")
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")
    front = f"{merge.front_point_count} points (worldtree merge pareto {merge.name})" if merge.front_point_count else ""
    for label, value in (
        ("method", recipe_text(merge.recipe)),
        ("model", f"{merge.model}/{merge.version} ({merge.model_digest[:16]})"),
        ("learned from", f"{merge.image_count} images, {merge.evaluation_count} passes of one through the network"),
        ("made", f"{merge.create_time:%Y-%m-%d %H:%M:%S} UTC in {merge.make_s:.2f} s"),
        ("front", front or (f"a point of {merge.front}" if merge.front else "")),
        ("guard", "stopped it: it was becoming sure of one answer" if merge.guarded else ""),
        ("notes", "\n".join(merge.notes)),
        ("digest", merge.digest),
    ):
        if value:
            head.add_row(label, value)
    tables = [head, scores_table(merge)]
    if merge.coefficients is not None:
        tables.append(_coefficients_table(merge))
    return tables


def scores_table(merge: Merge) -> Table:
    """Shares of the scoring set answered right, by task and in the mean."""
    table = Table(title="answered right of the scoring set", title_justify="left", title_style="dim")
    table.add_column("task", no_wrap=True)
    for label in ("merge", "expert", "base", "of the expert"):
        table.add_column(label, justify="right", no_wrap=True)
    for each in merge.scores:
        table.add_row(each.task, *_score_cells(each))
    if merge.scores:
        mean = TaskScore(
            "mean",
            merge.mean_score,
            sum(each.expert_score for each in merge.scores) / len(merge.scores),
            sum(each.base_score for each in merge.scores) / len(merge.scores),
        )
        table.add_section()
        table.add_row(Text("mean", "bold"), *_score_cells(mean))
    return table


def front_table(front: ParetoFront) -> Table:
    """One row a point, the best mean score first."""
    table = Table(
        title=f"{front.name}: {len(front.points)} points, hypervolume {front.hypervolume:.4f}, "
        f"{front.evaluation_count} merges tried",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("merge", no_wrap=True)
    table.add_column("mean", justify="right")
    tasks = [each.task for each in front.points[0].scores] if front.points else []
    best = {
        task: max(each.score for point in front.points for each in point.scores if each.task == task) for task in tasks
    }
    for task in tasks:
        table.add_column(task, justify="right")
    table.add_column("zeros", justify="right")
    for point in front.points:
        scores = [
            Text(share(each.score), "bold green" if each.score >= best[each.task] else "") for each in point.scores
        ]
        table.add_row(point.merge, share(point.mean_score), *scores, share(point.sparsity))
    return table


def answers_table(answer: Answer, names: list[str]) -> Table:
    """One row an image, one column a task: the most probable class and how probable it is."""
    table = Table()
    table.add_column("image", no_wrap=True)
    for task in answer:
        table.add_column(task, no_wrap=True)
    columns = [list(zip(each.labels, each.confidence.tolist(), strict=True)) for each in answer.values()]
    for index, name in enumerate(names):
        cells = [column[index] for column in columns]
        table.add_row(name, *(Text.assemble(label, (f" {confidence:.0%}", "dim")) for label, confidence in cells))
    return table


def tasks_table(model: TaskModel) -> Table:
    """What can be asked of an image."""
    table = Table(
        title=f"{model.name}/{model.version}: images of {model.width_px} x {model.height_px} px, "
        f"{model.parameter_count / 1e6:.2f} M parameters in {len(model.layers)} layers",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("task", no_wrap=True)
    table.add_column("asks")
    table.add_column("classes")
    table.add_column("expert", justify="right")
    table.add_column("base", justify="right")
    for task in model.tasks:
        table.add_row(
            task.name, task.description, ", ".join(task.classes), share(task.expert_score), share(task.base_score)
        )
    return table


def image_sets_text(model: TaskModel) -> str:
    """What a merge can learn from."""
    return "\n".join(
        f"image set {each.name}: {each.image_count} images{' with labels' if each.labeled else ''}"
        f"{': ' + each.description if each.description else ''}"
        for each in model.image_sets
    )


def methods_table(methods: tuple[MethodInfo, ...]) -> Table:
    """How experts can be merged, with each parameter and its default."""
    table = Table(show_lines=True)
    table.add_column("method", no_wrap=True)
    table.add_column("what it does")
    table.add_column("needs", no_wrap=True)
    table.add_column("parameters (--set key=value)")
    for method in methods:
        name = Text.assemble(method.name, ("\nimmediate", "dim") if method.immediate else "")
        table.add_row(name, method.description, method.needs, _parameters_text(method))
    return table


def recipe_text(recipe: Recipe) -> str:
    told = ", ".join(f"{name}={value}" for name, value in recipe.parameters.items() if value not in (None, [], ""))
    return f"{recipe.method} ({told})" if told else recipe.method


def share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _marks(merge: Merge) -> str:
    marks = [f"front of {merge.front_point_count}"] if merge.front_point_count else []
    marks += [f"point of {merge.front}"] if merge.front else []
    marks += ["guarded"] if merge.guarded else []
    marks += ["worse than the base"] if merge.worse_than_base else []
    return ", ".join(marks)


def _score_cells(each: TaskScore) -> tuple[Any, ...]:
    below = each.score < each.base_score
    kept = share(each.score / each.expert_score) if each.expert_score else ""
    return (
        Text(share(each.score), "red" if below else "bold"),
        share(each.expert_score),
        share(each.base_score),
        kept,
    )


def _coefficients_table(merge: Merge) -> Table:
    table = Table(title="how much of each expert is in each layer", title_justify="left", title_style="dim")
    table.add_column("layer", no_wrap=True)
    for expert in merge.experts:
        table.add_column(expert, justify="right", no_wrap=True)
    assert merge.coefficients is not None
    for layer, row in zip(merge.layers, merge.coefficients.tolist(), strict=True):
        table.add_row(layer, *(f"{value:.3f}" for value in row))
    return table


def _parameters_text(method: MethodInfo) -> Text:
    text = Text()
    for name, schema in method.parameters.get("properties", {}).items():
        default = f" = {json.dumps(schema['default'])}" if "default" in schema else " (required)"
        text.append(f"{name}{default}", "bold")
        if schema.get("description"):
            text.append(f"  {schema['description']}")
        text.append("\n")
    text.rstrip()
    return text
