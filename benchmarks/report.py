"""What every benchmark prints and writes: one table, one JSON file, bars that hold or do not."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy
import onnxruntime
from rich.console import Console
from rich.table import Table

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that should reach a bar."""

    name: str
    value: float
    bar: float
    better: Literal["higher", "lower"] = "higher"

    @property
    def holds(self) -> bool:
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar

    @property
    def limit(self) -> str:
        return f"{'≥' if self.better == 'higher' else '≤'} {self.bar:.3g}"


def median(values: Sequence[float]) -> float:
    """The median, which a noisy neighbour moves least."""
    return statistics.median(values)


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios round by round: rounds are interleaved, so a slow spell hits both sides of a ratio."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def publish(
    title: str,
    rows: Sequence[Row],
    bars: Sequence[Bar],
    *,
    settings: Mapping[str, Any],
    keys: Mapping[str, float],
    json_file: Path | None,
) -> None:
    """Prints the table and the bars; writes the JSON, with `keys` at its top for scripts."""
    console = Console()
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    console.print(table)
    for bar in bars:
        colour = "green" if bar.holds else "red"
        console.print(f"  [{colour}]{bar.name} = {bar.value:.3g} (bar: {bar.limit})[/{colour}]")
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        document = {
            **keys,
            "machine": machine(),
            "settings": dict(settings),
            "bars": [{**asdict(bar), "holds": bar.holds} for bar in bars],
            "rows": [dict(row) for row in rows],
        }
        json_file.write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, object]:
    """What the figures were made on."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "grpc": grpc.__version__,
        "numpy": numpy.__version__,
    }


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
