"""Where output goes: results on stdout, everything about them on stderr."""

import dataclasses
import json
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from worldtree.cli.child import ServiceFailed
from worldtree.errors import WorldtreeError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on stdout, plain and uncoloured."""
    print(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def print_error(error: WorldtreeError) -> None:
    """One line: what happened, the reason, the remedy; below it the last log lines of a service that failed."""
    message = " ".join(str(error).split())
    err.print(Text.assemble(("worldtree: ", "bold red"), message), soft_wrap=True)
    if isinstance(error, ServiceFailed):
        for line in error.tail:
            err.print(Text(f"  {line}", "dim"), soft_wrap=True)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
