"""Tables of the model cards."""

from __future__ import annotations

from collections.abc import Iterable


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def number(value: float | None) -> str:
    """Three places; a dash where nothing was measured."""
    return "-" if value is None else f"{value:.3f}"
