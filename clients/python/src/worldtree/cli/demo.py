"""`worldtree demo`: serve, steer, fork, rewind, save, restore, imagine, play; pictures and a report of it all."""

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
REPORTED_PACKAGES = ("worldtree", "worldtree-server", "onnxruntime", "grpcio", "protobuf", "numpy", "pillow", "av")


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    model: Annotated[str, typer.Option(help="NAME or NAME/VERSION.", show_default="the first served")] = "",
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
    """Serve a world, steer it, fork three futures, rewind one, save and restore, imagine, play live.

    Writes demo.mp4, world_tree.png and report.json. Starts its own server on free ports unless --address names one.
    Exit code 1 when a check fails.
    """
    begin_s = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)  # what cannot be written to is told now, not after all the work
    asked = connection(context, address)
    with ending_on_sigterm(), _progress() as (bar, task), _server(asked, models, bar, task) as client:
        info = _pick(client.wait_ready(), model)
        story = Story(
            client,
            info,
            start=start or _favourite(info),
            nfe=nfe,
            progress=lambda what: bar.update(task, description=what),
        )
        story.tell()
        bar.update(task, description="drawing")
        film = folder / "demo.mp4"
        save_film(list(story.film.render()), film, FILM_FPS)
        tree = save_picture(_tree(story, info), folder / "world_tree.png")
        bar.update(task, description="stopping the server")
    report = {
        "model": {"name": info.name, "version": info.version, "digest": info.digest},
        "start": start or _favourite(info),
        "checks": story.report.checks,
        "figures": story.report.figures,
        "chunk_count": story.report.chunk_count,
        "elapsed_s": round(time.perf_counter() - begin_s, 2),
        "steps": story.report.steps,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in REPORTED_PACKAGES},
        "files": [str(film), str(tree)],
    }
    _write_report(folder / "report.json", report)
    failed = [name for name, holds in story.report.checks.items() if not holds]
    if as_json:
        print_json(report)
    else:
        _tell(report, folder)
    if failed:
        raise typer.Exit(1)


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


def _pick(served: list[ModelInfo], wanted: str) -> ModelInfo:
    discrete = [model for model in served if model.actions]
    name, _, number = wanted.partition("/")
    for model in discrete:
        if not wanted or (model.name == name and number in ("", model.version)):
            return model
    raise FailedPrecondition(
        f"no model {wanted or 'with discrete actions'} is served",
        reason="MODEL_NOT_FOUND",
        metadata={"served": ", ".join(model.name for model in served)},
    )


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


def _tell(report: dict[str, Any], folder: Path) -> None:
    for name, holds in report["checks"].items():
        mark = ("yes", "green") if holds else ("NO ", "bold red")
        out.print(Text.assemble("  ", mark, f"  {name.replace('_', ' ')}"))
    for name, value in report["figures"].items():
        out.print(f"  {value:>8.2f}  {name.replace('_', ' ')}")
    names = ", ".join(str(folder / name) for name in ("demo.mp4", "world_tree.png", "report.json"))
    out.print(f"{report['chunk_count']} chunks in {report['elapsed_s']:.1f} s; wrote {names}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
