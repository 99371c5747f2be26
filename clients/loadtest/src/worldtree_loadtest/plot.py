"""Line charts as SVG: axes with round numbers, a legend, hover titles. No library, no script, no font."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 34, 44
COLOURS = ("#2563eb", "#16a34a", "#d97706", "#dc2626", "#7c3aed", "#0891b2")
_TICKS, _MARK_ROWS, _LETTER = 6, 3, 7.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: its points in rising order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands along a side. `log`: each decade as long as the others."""

    label: str
    log: bool = False


def chart(title: str, lines: Sequence[Line], *, x: Axis, y: Axis, marks: Sequence[tuple[float, str]] = ()) -> str:
    """An <svg>. `marks`: upright lines at an x, with a word each. Empty where there is nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points]
    place_x, ticks_x = _scale(xs, x, _LEFT, WIDTH - _RIGHT)
    place_y, ticks_y = _scale(ys, y, HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for value in ticks_y:
        at = place_y(value)
        parts.append(_rule(_LEFT, at, WIDTH - _RIGHT, at, "#e5e7eb"))
        parts.append(_text(_LEFT - 6, at + 4, _number(value), anchor="end"))
    for value in ticks_x:
        at = place_x(value)
        parts.append(_rule(at, HEIGHT - _BOTTOM, at, HEIGHT - _BOTTOM + 4, "#9ca3af"))
        parts.append(_text(at, HEIGHT - _BOTTOM + 17, _number(value), anchor="middle"))
    parts.append(_rule(_LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM, "#9ca3af"))
    free = [float(-WIDTH)] * _MARK_ROWS  # from where each row of words has room
    for value, word in marks:
        at = place_x(value)
        row = next((index for index, begin in enumerate(free) if begin <= at), 0)
        free[row] = at + 8 + _LETTER * len(word)
        parts.append(_rule(at, _TOP, at, HEIGHT - _BOTTOM, "#6b7280", dashed=True))
        parts.append(_text(at + 4, _TOP + 11 + 14 * row, word, anchor="start"))
    for line in lines:
        path = " ".join(f"{place_x(px):.1f},{place_y(py):.1f}" for px, py in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.8"{dash}/>')
        if len(line.points) <= 40:  # beyond that dots are a smear
            for px, py in line.points:
                said = escape(f"{line.name}: {_number(py)} at {_number(px)}")
                parts.append(
                    f'<circle cx="{place_x(px):.1f}" cy="{place_y(py):.1f}" r="2.6" fill="{line.colour}">'
                    f"<title>{said}</title></circle>"
                )
    parts += _legend(lines)
    parts.append(_text(WIDTH - _RIGHT, HEIGHT - 8, x.label, anchor="end"))
    parts.append(_text(_LEFT, 14, y.label, anchor="start"))
    parts.append("</svg>")
    return "\n".join(parts)


def _legend(lines: Sequence[Line]) -> list[str]:
    parts, at = [], float(WIDTH - _RIGHT)
    for line in reversed(lines):
        at -= _LETTER * len(line.name)
        parts.append(_text(at, 14, line.name, anchor="start"))
        parts.append(_rule(at - 20, 10, at - 4, 10, line.colour, dashed=line.dashed, width=2.5))
        at -= 34
    return parts


def _scale(
    values: Sequence[float], axis: Axis, begin: float, end: float
) -> tuple[Callable[[float], float], Sequence[float]]:
    """Where a value lies, and the round values to name."""
    if axis.log:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        high = max(high, low + 1)

        def place_log(value: float) -> float:
            share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
            return begin + share * (end - begin)

        return place_log, [10.0**power for power in range(low, high + 1)]
    least, most = min(0.0, *values), max(values)
    step = _round_step((most - least) / _TICKS)
    top = math.ceil(most / step - 1e-9) * step or step

    def place(value: float) -> float:
        return begin + (value - least) / (top - least) * (end - begin)

    count = round((top - least) / step)
    return place, [least + index * step for index in range(count + 1)]


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, the least that is not below."""
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough - 1e-12)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False, width: float = 1.0) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{dash}/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-family="sans-serif" font-size="12" '
        f'fill="#374151">{escape(text)}</text>'
    )
