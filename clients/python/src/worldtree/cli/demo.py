"""`worldtree demo`: serve, steer, fork, rewind, save, restore, imagine, play; pictures and a report of it all."""

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from worldtree.cli.connection import Connection, connection
from worldtree.cli.console import err, out, print_json
from worldtree.cli.generate import NfeOption
from worldtree.cli.pictures.ink import save_picture
from worldtree.cli.pictures.tree import draw_tree
from worldtree.cli.stack import Stack, StackOptions, ending_on_sigterm
from worldtree.cli.story import Story
from worldtree.client import Client
from worldtree.errors import FailedPrecondition
from worldtree.media import save_film
from worldtree.types import ModelInfo

FILM_FPS = 8.0
FIRST = "minigrid"  # the story was written for it
REPORTED_PACKAGES = ("worldtree", "worldtree-server", "onnxruntime", "grpcio", "protobuf", "numpy", "pillow", "av")


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    model: Annotated[
        str, typer.Option(help="NAME or NAME/VERSION.", show_default="every one served, minigrid first")
    ] = "",
    start: Annotated[
        str | None, typer.Option(help="A start scene of the model.", show_default="four-rooms, else its first")
    ] = None,
    nfe: NfeOption = 0,
    models: Annotated[str | None, typer.Option(help="Model repository to serve.", show_default="models")] = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="WORLDTREE_ADDRESS", help="A server that runs.", show_default="starts its own", metavar="HOST:PORT"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Serve worlds; steer each, fork three futures, rewind one, save and restore, imagine, play live, open by words.

    Writes demo.mp4 and world_tree.png of the first, demo-NAME.mp4 and world_tree-NAME.png of each other, and
    report.json. Starts its own server on free ports unless --address names one. Exit code 1 when a check fails.
    """
    begin_s = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)  # what cannot be written to is told now, not after all the work
    asked = connection(context, address)
    with ending_on_sigterm(), _progress() as (bar, task), _server(asked, models, bar, task) as client:
        reports: list[dict[str, Any]] = []
        for info in _pick(client.wait_ready(), model):
            told = partial(_say, bar, task, info)
            suffix = f"-{info.name}" if reports else ""
            reports.append(_tour(client, info, start=start, nfe=nfe, to=folder, suffix=suffix, progress=told))
        bar.update(task, description="stopping the server")
    report = {
        **reports[0],
        "others": reports[1:],
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in REPORTED_PACKAGES},
    }
    _write_report(folder / "report.json", report)
    if as_json:
        print_json(report)
    else:
        for each in reports:
            _tell(each)
        out.print(f"in {time.perf_counter() - begin_s:.1f} s; wrote {folder / 'report.json'}")
    if not all(holds for each in reports for holds in each["checks"].values()):
        raise typer.Exit(1)


def _tour(
    client: Client,
    info: ModelInfo,
    *,
    start: str | None,
    nfe: int,
    to: Path,
    suffix: str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Tells one model's story and draws it; what to report of it."""
    begin_s = time.perf_counter()
    start = start or _favourite(info)
    story = Story(client, info, start=start, nfe=nfe, progress=progress)
    story.tell()
    progress("drawing")
    film = to / f"demo{suffix}.mp4"
    save_film(list(story.film.render()), film, FILM_FPS)
    tree = save_picture(_tree(story, info), to / f"world_tree{suffix}.png")
    return {
        "model": {"name": info.name, "version": info.version, "digest": info.digest},
        "start": start,
        "checks": story.report.checks,
        "figures": story.report.figures,
        "chunk_count": story.report.chunk_count,
        "elapsed_s": round(time.perf_counter() - begin_s, 2),
        "steps": story.report.steps,
        "files": [str(film), str(tree)],
    }


def _say(bar: Progress, task: TaskID, info: ModelInfo, what: str) -> None:
    bar.update(task, description=f"{info.name}: {what}")


@contextmanager
def _progress() -> Iterator[tuple[Progress, TaskID]]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        yield bar, bar.add_task("starting", total=None)


@contextmanager
def _server(asked: Connection, models: str | None, bar: Progress, task: TaskID) -> Iterator[Client]:
    """A client of the server that was named, or of one that lives as long as the demo."""
    if asked.address:
        with asked.open() as client:
            yield client
        return
    options = StackOptions(port=0, models=models, log_level="warning")
    quiet: list[str] = []  # a service that fails brings its own last lines along
    with (
        Stack(options, on_log=quiet.append, on_stage=lambda stage: bar.update(task, description=stage)) as stack,
        replace(asked, address=stack.grpc_address, tls=False, api_key=None).open() as client,
    ):
        yield client


def _pick(served: list[ModelInfo], wanted: str) -> list[ModelInfo]:
    """The models to show, those that have names for their actions."""
    name, _, number = wanted.partition("/")
    shown = [
        model
        for model in served
        if model.actions and (not wanted or (model.name == name and number in ("", model.version)))
    ]
    if not shown:
        raise FailedPrecondition(
            f"no model {wanted or 'with discrete actions'} is served",
            reason="MODEL_NOT_FOUND",
            metadata={"served": ", ".join(model.name for model in served)},
        )
    return sorted(shown, key=lambda model: (model.name != FIRST, model.name))


def _favourite(info: ModelInfo) -> str | None:
    return "four-rooms" if "four-rooms" in info.starts else next(iter(info.starts), None)


def _tree(story: Story, info: ModelInfo) -> Any:
    figures = story.report.figures
    return draw_tree(
        story.root,
        title="A world tree",
        subtitle=(
            f"{info.name}/{info.version}: {story.report.chunk_count} chunks generated, "
            f"{figures['step_ms_per_chunk']:.0f} ms each; three forks in {figures['fork_ms']:.1f} ms. "
            "Each picture is what the world shows after the action on its edge."
        ),
    )


def _write_report(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _tell(report: dict[str, Any]) -> None:
    model = report["model"]
    out.print(Text(f"{model['name']}/{model['version']}", style="bold"))
    for name, holds in report["checks"].items():
        mark = ("yes", "green") if holds else ("NO ", "bold red")
        out.print(Text.assemble("  ", mark, f"  {name.replace('_', ' ')}"))
    for name, value in report["figures"].items():
        out.print(f"  {value:>8.2f}  {name.replace('_', ' ')}")
    out.print(f"  {report['chunk_count']} chunks in {report['elapsed_s']:.1f} s; wrote {', '.join(report['files'])}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
