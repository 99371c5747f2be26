"""`python -m worldtree_video.tools COMMAND`: one JSON document on stdout, for `worldtree models COMMAND` to show.

Exit code 0: done; 1: refused, and the document says why.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from worldtree_runtime.model_package import PackageError

from worldtree_video.tools.archive_file import install, pack
from worldtree_video.tools.bench import bench
from worldtree_video.tools.scaffold import Plan, new
from worldtree_video.tools.validate import validate


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        answer, done = _run(given)
    except PackageError as error:
        answer, done = {"error": {"file": str(error.file), "field": error.field, "expected": error.expected}}, False
    except OSError as error:
        answer, done = {"error": {"file": str(error.filename or ""), "field": "", "expected": str(error)}}, False
    json.dump(answer, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")
    return 0 if done else 1


def _run(given: argparse.Namespace) -> tuple[Any, bool]:
    match given.command:
        case "new":
            plan = Plan(
                name=given.name,
                version=given.version,
                latent=given.latent,
                attention=given.attention,
                actions=tuple(filter(None, given.actions.split(","))),
                vector=given.vector,
                height_px=given.height,
                width_px=given.width,
                frames_per_chunk=given.frames_per_chunk,
                fps=given.fps,
            )
            return {"folder": str(new(plan, given.out)), "files": plan.files}, True
        case "validate":
            report = validate(given.path)
            return dataclasses.asdict(report), report.valid
        case "bench":
            return dataclasses.asdict(bench(given.path, threads=given.threads, repeats=given.repeats)), True
        case "pack":
            packed = pack(given.path, given.out)
        case "install":
            packed = install(given.path, given.models)
    return dataclasses.asdict(packed), packed.path is not None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worldtree_video.tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("new")
    begin.add_argument("name")
    begin.add_argument("--out", type=Path, default=Path())
    begin.add_argument("--version", default="1")
    begin.add_argument("--latent", action="store_true")
    begin.add_argument("--attention", action="store_true")
    begin.add_argument("--actions", default="")
    begin.add_argument("--vector", type=int, default=0)
    begin.add_argument("--height", type=int, default=32)
    begin.add_argument("--width", type=int, default=32)
    begin.add_argument("--frames-per-chunk", type=int, default=1)
    begin.add_argument("--fps", type=float, default=10.0)
    for name in ("validate", "bench", "pack", "install"):
        commands.add_parser(name).add_argument("path", type=Path)
    commands.choices["bench"].add_argument("--threads", type=int, default=1)
    commands.choices["bench"].add_argument("--repeats", type=int, default=15)
    commands.choices["pack"].add_argument("--out", type=Path)
    commands.choices["install"].add_argument("--models", type=Path, default=Path("models"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
