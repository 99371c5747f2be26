"""What `worldtree bench` runs: a scenario against a server, its files, its tables and whether its thresholds hold."""

import asyncio
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from worldtree.aio import Client

from worldtree_loadtest.generator import Generator, Recording, Standing
from worldtree_loadtest.operations import Operations
from worldtree_loadtest.page import page
from worldtree_loadtest.scenario import Scenario
from worldtree_loadtest.summary import Summary
from worldtree_loadtest.thresholds import Verdict, judge

INTERRUPTED_CODE = 130


async def measure(
    client: Client, scenario: Scenario, *, on_progress: Callable[[Standing], None] = lambda _: None
) -> Recording:
    """Runs a scenario. The first SIGINT or SIGTERM ends it with what was measured so far, a second one at once."""
    operations = Operations(client, scenario)
    generator = Generator(scenario, operations, on_progress=on_progress)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        generator.stop()
        for each in signals:
            loop.remove_signal_handler(each)

    await operations.open()
    for each in signals:
        loop.add_signal_handler(each, stop)
    try:
        return await generator.run()
    finally:
        for each in signals:
            loop.remove_signal_handler(each)
        await operations.close()


def bench(
    connect: Callable[[], Client], scenario: Scenario, *, out: Path | None, console: Console
) -> tuple[dict[str, Any], int]:
    """Runs a scenario with a bar on the console; its document, and the exit code: 0 all thresholds hold, 1 some do not,
    130 it was interrupted. `out`: a folder for NAME.json and NAME.html.
    """

    async def run() -> Recording:
        async with connect() as client:
            await client.wait_ready()
            with _progress(console) as bar:
                task = bar.add_task(scenario.name, total=scenario.seconds, said="opening sessions")

                def tell(standing: Standing) -> None:
                    bar.update(task, completed=standing.at_s, said=_said(standing))

                return await measure(client, scenario, on_progress=tell)

    recording = asyncio.run(run())
    summary = Summary(recording)
    verdicts = judge(summary)
    document = {**summary.document(), "thresholds": [_plain(verdict) for verdict in verdicts]}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{scenario.name}.json").write_text(json.dumps(document, indent=2) + "\n")
        (out / f"{scenario.name}.html").write_text(page(document, verdicts))
    if recording.interrupted:
        return document, INTERRUPTED_CODE
    return document, 0 if all(verdict.holds for verdict in verdicts) else 1


def print_tables(document: dict[str, Any], console: Console) -> None:
    """What a person wants to know first."""
    if document["interrupted"]:
        console.print(f"interrupted after {document['ran_s']:.1f} s; what had been measured by then:")
    columns = ("good/s", "chunks/s", "count", "good", "refused", "failed", "unsent", "p50 s", "p99 s", "max s")
    table = Table("operation", title=document["scenario"]["name"])
    for column in columns:
        table.add_column(column, justify="right")
    for name, figures in (*document["operations"].items(), ("all", document["all"])):
        latency = figures["latency"]
        rates = (figures["good_per_s"], figures["good_work_per_s"])
        counts = (figures[name] for name in ("count", "good", "refused", "failed", "unsent"))
        times = (latency["p50_s"], latency["p99_s"], latency["max_s"])
        table.add_row(
            name, *(f"{rate:.1f}" for rate in rates), *map(str, counts), *(f"{seconds:.3f}" for seconds in times)
        )
    console.print(table)
    if document["all"]["reasons"]:
        console.print(f"not answered: {', '.join(f'{why} {n}' for why, n in document['all']['reasons'].items())}")
    if document["knee"]:
        knee = document["knee"]
        past = (
            "" if knee["past_share"] is None else f", goodput beyond it at least {knee['past_share']:.2f} of its best"
        )
        console.print(f"knee at {knee['offered_per_s']:.3g} operations a second{past}")
    for threshold in document["thresholds"]:
        word = "holds" if threshold["holds"] else "DOES NOT HOLD"
        console.print(f"{word}: {threshold['name']} = {threshold['text']} (limit {threshold['limit']})")


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.name,
        "value": verdict.value,
        "text": verdict.text,
        "limit": verdict.limit,
        "holds": verdict.holds,
    }


def _said(standing: Standing) -> str:
    endings: Sequence[str] = [f"{ending} {count}" for ending, count in sorted(standing.endings.items())]
    return f"{standing.plateau}: sent {standing.sent}, {', '.join((*endings, f'under way {standing.in_flight}'))}"


def _progress(console: Console) -> Progress:
    """Gone when done; nothing where the console is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
