"""Runs every benchmark, one after another, and collects their JSON."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
BENCHMARKS = ("engine", "tree", "realtime", "tiers", "formats")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the JSON files.")] = Path("out/bench"),
    quick: Annotated[bool, typer.Option(help="A look at each, in under a minute.")] = False,
) -> None:
    """Runs all benchmarks; their tables go to the terminal, their figures to OUT/<name>.json."""
    failed = []
    for name in BENCHMARKS:
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(out / f"{name}.json")]
        if subprocess.run([*command, *(["--quick"] if quick else [])], check=False).returncode:
            failed.append(name)
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
