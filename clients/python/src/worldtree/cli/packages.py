"""`worldtree models new, validate, bench, pack, install`: for those who bring a model. The server does the work."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from worldtree.cli.child import module_of
from worldtree.cli.console import err, out, print_json
from worldtree.cli.gauges import size_text
from worldtree.errors import FailedPrecondition, InvalidRequest

STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PackageArgument = Annotated[
    Path, typer.Argument(help="A package: a folder NAME/VERSION with a model.yaml.", metavar="NAME/VERSION")
]


def new(
    name: Annotated[str, typer.Argument(help="The model's name: lower case, digits, dashes.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write the folder NAME.")] = Path(),
    version: Annotated[str, typer.Option(help="Its first version.")] = "1",
    latent: Annotated[
        bool, typer.Option("--latent/--pixels", help="Denoise latents, with an encoder and a decoder; or pixels.")
    ] = False,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention/--recurrent", help="Blocks hold keys and values of a window; or one recurrent state."
        ),
    ] = False,
    actions: Annotated[
        str, typer.Option(help="Named actions, with commas between.", show_default="left,right,forward")
    ] = "",
    vector: Annotated[
        int, typer.Option(help="Actions are vectors of so many numbers from -1 to 1, not names.", show_default="names")
    ] = 0,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of a frame in pixels, multiples of 4.")] = "32x32",
    frames_per_chunk: Annotated[int, typer.Option(help="Frames that one action makes.", min=1)] = 1,
    fps: Annotated[float, typer.Option(help="Frames a second of its own pace.")] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Begin a package: a model.yaml, an export.py in PyTorch with a small model in it, a start scene.

    After `python export.py` it validates and serves; then put your model in the place of that one.
    """
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise typer.BadParameter(f"must be HEIGHTxWIDTH, for example 48x64, got {size!r}", param_hint="--size")
    options = {
        "--out": folder,
        "--version": version,
        "--actions": actions,
        "--vector": vector,
        "--height": height,
        "--width": width,
        "--frames-per-chunk": frames_per_chunk,
        "--fps": fps,
    }
    flags = [f"{flag}={value}" for flag, value in options.items()]
    flags += [flag for flag, chosen in (("--latent", latent), ("--attention", attention)) if chosen]
    answer = _answer("new", name, *flags)
    if as_json:
        print_json(answer)
        return
    out.print(f"wrote {answer['folder']}: its export writes {', '.join(answer['files'])}")
    out.print(f"next: cd {answer['folder']} && python export.py && worldtree models validate {version}")


def validate(package: PackageArgument, as_json: JsonOption = False) -> None:
    """Check a package whole: manifest, graphs, a dry run of them in batches, starts, storage, papers.

    Exit code 1 when something is bad; notes are fine.
    """
    answer = _answer("validate", package)
    if as_json:
        print_json(answer)
    else:
        _print_report(answer)
    if not _is_valid(answer):
        raise typer.Exit(1)


def bench(
    package: PackageArgument,
    threads: Annotated[int, typer.Option(help="Threads of one tick.", min=1)] = 1,
    repeats: Annotated[int, typer.Option(help="Runs of which the median counts.", min=1)] = 15,
    as_json: JsonOption = False,
) -> None:
    """Time a package here: ticks by size, a commit, a chunk and its fps by nfe, and what a session's blocks take."""
    answer = _answer("bench", package, f"--threads={threads}", f"--repeats={repeats}")
    if as_json:
        print_json(answer)
        return
    for table in (_ticks(answer), _chunks(answer), _blocks(answer)):
        out.print(table)


def pack(
    package: PackageArgument,
    zipped: Annotated[Path | None, typer.Option("--out", help="The file.", show_default="NAME-VERSION.zip")] = None,
    as_json: JsonOption = False,
) -> None:
    """Zip a valid package; the same package gives the same bytes. Unzipped in a repository, it is installed."""
    _placed("pack", package, *([f"--out={zipped}"] if zipped else []), said="packed", as_json=as_json)


def install(
    source: Annotated[Path, typer.Argument(help="What `pack` wrote, or a folder NAME/VERSION.", metavar="ZIP")],
    models: Annotated[Path, typer.Option(help="The repository.")] = Path("models"),
    as_json: JsonOption = False,
) -> None:
    """Put a package into a model repository, whole or not at all. A server on it serves the new version in seconds."""
    _placed("install", source, f"--models={models}", said="installed", as_json=as_json)


def _placed(command: str, subject: Path, *flags: str, said: str, as_json: bool) -> None:
    answer = _answer(command, subject, *flags)
    report = answer["report"]
    if as_json:
        print_json(answer)
    elif not _is_valid(report):
        _print_report(report)
    else:
        out.print(f"{said} {answer['path']}: {size_text(answer['size_bytes'])}, digest {report['digest'][:16]}")
    if not _is_valid(report):
        raise typer.Exit(1)


def _answer(command: str, subject: str | Path, *flags: str) -> Any:
    """What the server's tool says. Raises FailedPrecondition without a server, InvalidRequest for what it refuses."""
    module_of("video")
    if find_spec("onnxruntime") is None:
        raise FailedPrecondition(
            "onnxruntime is not installed", reason="SERVER_MISSING", remedy="pip install 'worldtree-server[cpu]'"
        )
    done = subprocess.run(  # noqa: S603 - our own interpreter, no shell
        # A name that begins with a dash is a name all the same.
        [sys.executable, "-P", "-m", "worldtree_video.tools", command, *flags, "--", str(subject)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise FailedPrecondition(
            f"worldtree_video.tools {command} ended with code {done.returncode} and no answer", reason="TOOL_FAILED"
        ) from error
    refused = answer.get("error")
    if refused:
        where = ": ".join(filter(None, (refused["file"], refused["field"])))
        raise InvalidRequest(": ".join(filter(None, (where, refused["expected"]))), reason="PACKAGE_REFUSED")
    return answer


def _is_valid(report: Any) -> bool:
    return all(finding["verdict"] != "bad" for finding in report["findings"])


def _print_report(report: Any) -> None:
    table = Table("", "file", "field", "found", title=report["package"], title_justify="left", title_style="bold")
    for finding in report["findings"]:
        verdict = Text(finding["verdict"], STYLES[finding["verdict"]])
        table.add_row(verdict, finding["file"], finding["field"], finding["found"])
    out.print(table)
    bad_count = sum(finding["verdict"] == "bad" for finding in report["findings"])
    if bad_count:
        err.print(f"{report['package']} cannot be served: {bad_count} of {len(report['findings'])} findings are bad")
    else:
        out.print(f"{report['package']} can be served, digest {report['digest'][:16]}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _ticks(answer: Any) -> Table:
    table = _table(f"{answer['package']}: ticks over a full window", "members", "ms a tick", "ms a member")
    for tick in answer["ticks"]:
        best = " (best)" if tick["batch"] == answer["best_batch"] else ""
        table.add_row(f"{tick['batch']}{best}", f"{tick['tick_ms']:.2f}", f"{tick['member_ms']:.2f}")
    table.add_row("commit", "", f"{answer['commit_ms']:.2f}")
    for part in ("encode", "decode"):
        if answer[f"{part}_ms"] is not None:
            table.add_row(f"of which {part}", "", f"{answer[f'{part}_ms']:.2f}")
    if answer["scene_ms"] is not None:
        table.add_row("scene from words", "", f"{answer['scene_ms']:.2f}")
    return table


def _chunks(answer: Any) -> Table:
    title = f"chunks of {answer['frames_per_chunk']} frames; its own pace is {answer['fps_wanted']:g} fps"
    table = _table(title, "nfe", "ms a chunk", "fps of one", "fps of all", "sessions at its pace")
    for chunk in answer["chunks"]:
        table.add_row(
            str(chunk["nfe"]),
            f"{chunk['chunk_ms']:.1f}",
            f"{chunk['fps']:.1f}",
            f"{chunk['total_fps']:.1f}",
            str(chunk["realtime_sessions"]),
        )
    return table


def _blocks(answer: Any) -> Table:
    table = _table("memory, nothing shared", "storage", "a block", "its frames", "a session", "sessions per GiB")
    for block in answer["blocks"]:
        table.add_row(
            block["storage"],
            size_text(block["block_bytes"]),
            size_text(block["frames_bytes"]),
            size_text(block["session_bytes"]),
            str(block["sessions_per_gib"]),
        )
    return table
