"""Tables of the model cards."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def number(value: float | None) -> str:
    """Three places; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.3f}"


def paragraph(*parts: str) -> str:
    """Text in lines of 120 characters."""
    return textwrap.fill(" ".join(parts), 120)


def holds(value: float, sign: str, wanted: float) -> bool:
    """Whether a bar does. `sign`: ">=" or "<="."""
    return value >= wanted if sign == ">=" else value <= wanted


def section_of(text: str, heading: str) -> str:
    """A section of a card, from its heading ("## ...") to the next of that rank; empty when there is none."""
    _, found, rest = text.partition(f"{heading}\n")
    return found + re.split(r"^(?=## )", rest, maxsplit=1, flags=re.MULTILINE)[0] if found else ""


def put_section(text: str, section: str, *, before: str) -> str:
    """The card with a section in place of the one of that heading, or where it goes: before the heading `before`."""
    heading = section.partition("\n")[0]
    text = text.replace(section_of(text, heading), "", 1)
    return text.replace(f"{before}\n", f"{section.rstrip()}\n\n{before}\n", 1)
