"""Tables of the model cards."""

from __future__ import annotations

import re
from collections.abc import Iterable


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def number(value: float | None) -> str:
    """Three places; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.3f}"


def section_of(text: str, heading: str) -> str:
    """A section of a card, from its heading ("## ...") to the next of that rank; empty when there is none."""
    _, found, rest = text.partition(f"{heading}\n")
    return found + re.split(r"^(?=## )", rest, maxsplit=1, flags=re.MULTILINE)[0] if found else ""


def put_section(text: str, section: str, *, before: str) -> str:
    """The card with a section in place of the one of that heading, or where it goes: before the heading `before`."""
    heading = section.partition("\n")[0]
    text = text.replace(section_of(text, heading), "", 1)
    return text.replace(f"{before}\n", f"{section.rstrip()}\n\n{before}\n", 1)
