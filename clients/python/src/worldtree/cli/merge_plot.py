"""`worldtree merge plot`: a front, or how much of each expert is in each layer, as a picture."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import out
from worldtree.cli.recipe_text import parse_preference
from worldtree.errors import FailedPrecondition, InvalidRequest
from worldtree.multitask_types import FrontPoint, Merge, ParetoFront


class Picture(StrEnum):
    FRONT = "front"
    COEFFICIENTS = "coefficients"


def plot(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A merge's name.", metavar="NAME")],
    to: Annotated[Path | None, typer.Option("--out", "-o", help="Where to: .png.", show_default="NAME.png")] = None,
    what: Annotated[
        Picture | None,
        typer.Option(help="What to draw.", show_default="the front of a front, else the coefficients"),
    ] = None,
    preference: Annotated[
        str | None,
        typer.Option(
            "--preference",
            "-p",
            help="Of a front, mark the point that is best for TASK=WEIGHT,TASK=WEIGHT.",
            show_default="the best mean score",
        ),
    ] = None,
    address: AddressOption = None,
) -> None:
    """Draw a front over all tasks, or a merge's coefficients as a map of layers and experts."""
    path = to or Path(f"{name}.png")
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"a picture of a merge is a .png, got {path.name!r}", field="out")
    weights = None if preference is None else parse_preference(preference)
    from worldtree.cli.pictures.merges import draw_coefficients, draw_front

    with connect(context, address) as client:
        merge = client.multitask.merge(name)
        if what is Picture.COEFFICIENTS or (what is None and not merge.front_point_count):
            draw_coefficients(_additive(merge), path)
        else:
            front = client.multitask.pareto_front(name)
            draw_front(front, best_point(front, weights), path)
    out.print(f"wrote {path}")


def best_point(front: ParetoFront, weights: dict[str, float] | list[float] | None) -> FrontPoint:
    """The point with the best weighted score; without weights, with the best mean score."""
    if weights is None:
        return front.points[0]
    tasks = [each.task for each in front.points[0].scores]
    if isinstance(weights, list):
        if len(weights) != len(tasks):
            raise InvalidRequest(
                f"--preference must have one weight for each of {', '.join(tasks)}, got {len(weights)}",
                field="preference",
            )
        weights = dict(zip(tasks, weights, strict=True))
    strangers = sorted(set(weights) - set(tasks))
    if strangers:
        raise InvalidRequest(
            f"--preference names {', '.join(strangers)}; the tasks are {', '.join(tasks)}", field="preference"
        )
    wanted = weights
    return max(front.points, key=lambda point: sum(wanted.get(each.task, 0.0) * each.score for each in point.scores))


def _additive(merge: Merge) -> Merge:
    if merge.coefficients is None:
        raise FailedPrecondition(
            f"merge {merge.name} has no coefficients: method {merge.recipe.method} does more than to add experts",
            reason="NOT_ADDITIVE",
            metadata={"merge": merge.name, "method": merge.recipe.method},
            remedy="draw a merge of another method, for example average, task_arithmetic or adamerging",
        )
    return merge
