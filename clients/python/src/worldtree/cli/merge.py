"""`worldtree merge`: what a server's multi-task model can be asked, and the merges that answer."""

from typing import Annotated

import typer

from worldtree.cli import merge_create, merge_plot, merge_predict
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import err, out, print_json
from worldtree.cli.merge_create import JsonOption, TaskModelOption
from worldtree.cli.merge_tables import card, front_table, image_sets_text, merges_table, methods_table, tasks_table

app = typer.Typer(
    help="Merge experts into one network, and ask it.",
    no_args_is_help=True,
    epilog="Start with `worldtree merge tasks` and `worldtree merge create adamerging --name mine`.",
)
app.command()(merge_create.create)
app.command()(merge_predict.predict)
app.command()(merge_plot.plot)

MergeArgument = Annotated[str, typer.Argument(help="A merge's name.", metavar="NAME")]


@app.command("list")
def list_(
    context: typer.Context,
    points: Annotated[bool, typer.Option("--points", help="The points of fronts, too.")] = False,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the merges that have a name, oldest first."""
    with connect(context, address) as client:
        merges = [merge for merge in client.multitask.merges() if points or not merge.front]
    if as_json:
        print_json(merges)
        return
    if not merges:
        err.print("no merges yet: worldtree merge create METHOD makes one (worldtree merge methods lists the methods)")
        return
    out.print(merges_table(merges))


@app.command()
def show(
    context: typer.Context, name: MergeArgument, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Show a merge's card: its recipe, its scores against the experts and the base, its coefficients."""
    with connect(context, address) as client:
        merge = client.multitask.merge(name)
    if as_json:
        print_json(merge)
        return
    for table in card(merge):
        out.print(table)


@app.command()
def delete(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Names of merges.", metavar="NAME...")],
    address: AddressOption = None,
) -> None:
    """Delete merges; with a front go its points."""
    with connect(context, address) as client:
        for name in names:
            client.multitask.delete_merge(name)
            err.print(f"deleted {name}")


@app.command()
def pareto(
    context: typer.Context, name: MergeArgument, address: AddressOption = None, as_json: JsonOption = False
) -> None:
    """Show the points of a front (method mm_mo), the best mean score first; the best of each task is green."""
    with connect(context, address) as client:
        front = client.multitask.pareto_front(name)
    if as_json:
        print_json(front)
        return
    out.print(front_table(front))


@app.command()
def tasks(
    context: typer.Context,
    model: TaskModelOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what a model can be asked: its tasks, their classes, how good expert and base are."""
    with connect(context, address) as client:
        listed = client.multitask.tasks(model)
    if as_json:
        print_json(listed)
        return
    out.print(tasks_table(listed))
    out.print(image_sets_text(listed))


@app.command()
def methods(
    context: typer.Context,
    model: TaskModelOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the methods that merge experts, with their parameters and defaults."""
    with connect(context, address) as client:
        listed = client.multitask.tasks(model).methods
    if as_json:
        print_json(listed)
        return
    out.print(methods_table(listed))
