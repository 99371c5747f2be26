"""Where output goes: results on stdout, everything about them on stderr."""

import dataclasses
import json
import os
import sys
from datetime import datetime
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.text import Text

from worldtree.cli.child import ServiceFailed
from worldtree.errors import WorldtreeError

UNLIMITED_COLUMNS = 10_000


def _width(stream: TextIO) -> int | None:
    """None: the terminal's own, or COLUMNS. In a file or a pipe nothing is cut to the width of a screen."""
    return None if stream.isatty() or "COLUMNS" in os.environ else UNLIMITED_COLUMNS


# No markup: names, paths and messages may hold [brackets], and mean them.
out = Console(highlight=False, markup=False, width=_width(sys.stdout))
err = Console(stderr=True, highlight=False, markup=False, width=_width(sys.stderr))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout, plain and uncoloured; with `indent` None in one line."""
    print(json.dumps(value, default=_plain, indent=indent, ensure_ascii=False), flush=True)


def print_error(error: WorldtreeError) -> None:
    """One line: what happened, the reason, the remedy; below it the last log lines of a service that failed."""
    message = " ".join(str(error).split())
    err.print(Text.assemble(("worldtree: ", "bold red"), message), soft_wrap=True)
    if isinstance(error, ServiceFailed):
        for line in error.tail:
            err.print(Text(f"  {line}", "dim"), soft_wrap=True)


def print_os_error(error: OSError) -> None:
    """One line: what the system refused, and on which file."""
    err.print(Text.assemble(("worldtree: ", "bold red"), str(error)), soft_wrap=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, WorldtreeError):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
