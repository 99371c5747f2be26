"""`worldtree merge create`: makes a merge and shows how it goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import err, out, print_json
from worldtree.cli.image_files import IMAGES_HELP, read_learning_images
from worldtree.cli.merge_tables import card
from worldtree.cli.recipe_text import method_of, parse_parameters
from worldtree.multitask_types import MergeProgress, OnMergeProgress

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="A parameter of the method; may be repeated.", metavar="KEY=VALUE"),
]
TaskModelOption = Annotated[
    str | None, typer.Option("--model", help="NAME or NAME/VERSION.", show_default="the only one that is served")
]


def create(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="How to merge; `worldtree merge methods` lists them.")],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="What to call it.", show_default="the method and the digest")
    ] = None,
    settings: SetOption = None,
    image_set: Annotated[
        str | None,
        typer.Option(help="Learn from this set of the model's (worldtree merge tasks).", show_default="calibration"),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", "-i", help=f"Learn from these; may be repeated. {IMAGES_HELP}", exists=True),
    ] = None,
    model: TaskModelOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a merge and show its card. Ctrl-C ends the making, and leaves nothing of it on the server.

    Examples: `worldtree merge create ties --set density=0.2`, `worldtree merge create adamerging --name mine`,
    `worldtree merge create mm_mo --name front` and then `worldtree merge plot front`.
    """
    shown, labels = read_learning_images(images) if images else (None, None)
    with connect(context, address) as client:
        known = client.multitask.tasks(model)
        parameters = parse_parameters(settings or (), method_of(known, method))
        with merge_progress(method) as progress:
            merge = client.multitask.create_merge(
                method,
                name=name,
                images=shown,
                labels=labels,
                image_set=image_set,
                progress=progress,
                model=known,
                **parameters,
            )
    if as_json:
        print_json(merge)
        return
    for table in card(merge):
        out.print(table)


@contextmanager
def merge_progress(method: str) -> Iterator[OnMergeProgress]:
    """What is being done, how far, what is minimised; on stderr, gone when done, nothing where that is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[objective]}"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task(method, total=None, objective="")

        def tell(now: MergeProgress) -> None:
            bar.update(
                task,
                description=f"{method}: {now.phase}" if now.phase else method,
                completed=now.done,
                total=now.total or None,
                objective="" if now.objective is None else f"objective {now.objective:.4g}",
            )

        yield tell
