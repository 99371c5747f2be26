"""Runs every benchmark, one after another, and collects their JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from report import Bar
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
BENCHMARKS = (
    "engine",
    "tree",
    "realtime",
    "tiers",
    "formats",
    "multitask",
    "probe_generated",
    "imagine",
    "navigator",
    "gateway",
    "chaos",
    "rolling",
    "floods",
    "capacity",
    "fleet",
)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the JSON files.")] = Path("out/bench"),
    quick: Annotated[bool, typer.Option(help="A look at each, in under a minute.")] = False,
) -> None:
    """Runs all benchmarks; their tables go to the terminal, their figures to OUT/<name>.json.

    Ends with the bars that do not hold, and exit code 1 if there are any (but for a quick look).
    """
    failed = []
    missed: list[tuple[str, Bar]] = []
    for name in BENCHMARKS:
        file = out / f"{name}.json"
        file.unlink(missing_ok=True)  # one that fails must not leave the last one's figures
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(file)]
        if subprocess.run([*command, *(["--quick"] if quick else [])], check=False).returncode:
            failed.append(name)
            continue
        told = json.loads(file.read_text())["bars"]
        bars = [Bar(bar["name"], bar["value"], bar["bar"], bar["better"]) for bar in told]
        missed += [(name, bar) for bar in bars if not bar.holds]
    console = Console()
    if failed or missed:
        table = Table("benchmark", "what does not hold", "value", "bar", title="Bars that do not hold", style="red")
        for name in failed:
            table.add_row(name, "it ended with an error", "", "")
        for name, bar in missed:
            table.add_row(name, bar.name, f"{bar.value:.3g}", bar.limit)
        console.print(table)
    else:
        console.print("[green]all bars hold[/green]")
    if failed or (missed and not quick):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
