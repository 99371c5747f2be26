"""`worldtree bench`: load a server by a scenario, and see whether it holds."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from worldtree.aio import Client
from worldtree.cli.connection import connection
from worldtree.cli.console import err, out, print_json
from worldtree.errors import FailedPrecondition, InvalidRequest

PACKAGE = "worldtree_loadtest"


def bench(
    context: typer.Context,
    scenario: Annotated[
        str | None,
        typer.Argument(help="A shipped scenario by name, or a YAML file.", show_default="list the shipped ones"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "--address",
            envvar="WORLDTREE_ADDRESS",
            help="The server to load.",
            show_default="localhost:7070",
            metavar="HOST:PORT",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write NAME.json and NAME.html there.", file_okay=False, show_default="no files"
        ),
    ] = None,
    scale_time: Annotated[
        float, typer.Option(help="Run each phase so many times as long: 0.1 for a look.", min=0.001, max=1000)
    ] = 1.0,
    scale_rate: Annotated[
        float, typer.Option(help="Send so many times as often, for a server of another size.", min=0.001, max=1000)
    ] = 1.0,
    show: Annotated[bool, typer.Option("--show", help="Print the scenario's file, to begin your own with.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Load a server by a scenario: each operation is sent when it is meant to be, whatever became of those before.

    Latencies count from that moment, so a stall is charged for all who had to wait behind it. Ctrl-C ends a run with
    what was measured so far.

    Ends with 0 if all thresholds of the scenario hold, with 1 if one does not, with 130 if it was interrupted.

    Try: worldtree bench steady --scale-time 0.2 --out out/load
    """
    scenarios, runner = _package("scenario"), _package("bench")
    if scenario is None:
        _list(scenarios, as_json=as_json)
        return
    try:
        wanted = scenarios.load(scenario)
    except ValueError as error:
        raise InvalidRequest(str(error).replace("\n", "; "), field="scenario") from None
    if show:
        out.print(scenarios.shipped().get(scenario, Path(scenario)).read_text(), end="")
        return
    known = connection(context, target)

    def connect() -> Client:
        return Client(known.address, api_key=known.api_key, tls=known.tls, timeout=known.timeout_s)

    scaled = wanted.scaled(seconds=scale_time, rate=scale_rate)
    document, code = runner.bench(connect, scaled, out=folder, console=err)
    if as_json:
        print_json(document)
    else:
        runner.print_tables(document, out)
    if folder is not None:
        err.print(f"the report: {folder / f'{wanted.name}.html'}")
    raise typer.Exit(code)


def _list(scenarios: Any, *, as_json: bool) -> None:
    known = {name: scenarios.load(name) for name in scenarios.shipped()}
    if as_json:
        print_json({name: {"about": each.about, "seconds": each.seconds} for name, each in known.items()})
        return
    for name, each in known.items():
        out.print(f"{name:8} {each.seconds:5.0f} s  {each.about}", soft_wrap=True)


def _package(room: str) -> Any:
    """Of the load tests, which are an installable of their own. Raises FailedPrecondition where they are absent."""
    if find_spec(PACKAGE) is None:
        raise FailedPrecondition(
            f"{PACKAGE} is not installed: this is the SDK without the load tests",
            reason="LOADTEST_MISSING",
            metadata={"module": PACKAGE},
            remedy="install them with: pip install worldtree-loadtest",
        )
    return import_module(f"{PACKAGE}.{room}")
