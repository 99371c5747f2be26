"""A run as one HTML file: verdicts, tables, charts. It loads nothing, so it can be sent and kept."""

from collections.abc import Sequence
from html import escape
from typing import Any

from worldtree_loadtest.plot import COLOURS, Axis, Line, chart
from worldtree_loadtest.thresholds import Verdict

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111827; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.about { color: #4b5563; margin-top: .25rem; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid #e5e7eb; }
th:first-child, td:first-child { text-align: left; }
.holds { color: #15803d; } .fails { color: #b91c1c; font-weight: 600; }
svg { width: 100%; height: auto; margin: .5rem 0; border: 1px solid #e5e7eb; border-radius: 6px; }
.note { background: #fef3c7; padding: .5rem .75rem; border-radius: 6px; }
"""
_COLUMNS = ("count", "good", "refused", "failed", "unsent", "per_s", "good_per_s", "good_work_per_s")
_LATENCIES = ("p50_s", "p90_s", "p99_s", "p999_s", "max_s")
_SEND_DELAY_S = 0.1  # from here on the client's own delay is worth a word


def page(document: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    """The whole file."""
    scenario = document["scenario"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(scenario['name'])}: load test</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(scenario['name'])}</h1>",
        f'<p class="about">{escape(scenario["about"])}</p>',
        *_notes(document),
        *_verdicts(verdicts),
        "<h2>By operation</h2>",
        _table("operation", [(kind, figures) for kind, figures in document["operations"].items()]),
        *_reasons(document["all"]["reasons"]),
        "<h2>Over time</h2>",
        *_timeline(document),
        *_ramp(document),
        "<h2>Latency from the intended start, by percentile</h2>",
        _percentiles(document),
        "<h2>By phase</h2>",
        _table("phase", [(each["name"], each) for each in document["plateaus"]]),
        f"<p>{escape(_machine(document))}</p>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _notes(document: dict[str, Any]) -> list[str]:
    notes = []
    if document["interrupted"]:
        notes.append(f"Interrupted after {document['ran_s']:.1f} s: the figures are of what had been measured by then.")
    if document["send_delay_max_s"] > _SEND_DELAY_S:
        notes.append(
            f"The generator itself was up to {document['send_delay_max_s'] * 1000:.0f} ms late in sending, and that is "
            "in the latencies: give it a core of its own, or a lower rate."
        )
    return [f'<p class="note">{escape(note)}</p>' for note in notes]


def _verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return ["<p>The scenario has no thresholds.</p>"]
    rows = [
        f"<tr><td>{escape(verdict.name)}</td><td>{escape(verdict.text)}</td><td>{escape(verdict.limit)}</td>"
        f'<td class="{"holds" if verdict.holds else "fails"}">{"holds" if verdict.holds else "does not hold"}</td></tr>'
        for verdict in verdicts
    ]
    head = "<tr><th>threshold</th><th>value</th><th>limit</th><th></th></tr>"
    return ["<h2>Thresholds</h2>", f"<table>{head}{''.join(rows)}</table>"]


def _table(first: str, rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in (first, *_COLUMNS, *_LATENCIES))
    body = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{_cell(figures[column])}</td>" for column in _COLUMNS)
        + "".join(f"<td>{_cell(figures['latency'][column])}</td>" for column in _LATENCIES)
        + "</tr>"
        for name, figures in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _reasons(reasons: dict[str, int]) -> list[str]:
    if not reasons:
        return []
    said = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    return [f"<p>What was not answered, by reason: {escape(said)}.</p>"]


def _timeline(document: dict[str, Any]) -> list[str]:
    slices = document["timeline"]
    rates = [
        _line("offered", slices, "per_s", COLOURS[0], dashed=True),
        _line("good", slices, "good_per_s", COLOURS[1]),
        _line("refused", slices, "refused_per_s", COLOURS[2]),
        _line("failed", slices, "failed_per_s", COLOURS[3]),
    ]
    latencies = [
        Line(
            rank.removesuffix("_s"),
            [(each["at_s"], each["latency"][rank]) for each in slices if each["latency"]["timed"]],
            colour,
        )
        for rank, colour in (("p50_s", COLOURS[1]), ("p99_s", COLOURS[2]), ("max_s", COLOURS[3]))
    ]
    at = Axis("seconds of the run")
    begins, marks = 0.0, []
    for plateau in document["plateaus"]:
        # A ramp has many plateaus: only where a phase begins.
        if plateau["name"].rpartition(" ")[2] in ("1", plateau["name"]):
            marks.append((begins, plateau["name"].removesuffix(" 1")))
        begins += plateau["seconds"]
    return [
        chart("Operations a second", rates, x=at, y=Axis("operations a second"), marks=marks),
        chart("Latency", latencies, x=at, y=Axis("seconds", log=True)),
    ]


def _ramp(document: dict[str, Any]) -> list[str]:
    knee = document["knee"]
    plateaus = [each for each in document["plateaus"] if each["measured"]]
    if knee is None or len(plateaus) < 3:
        return []
    by_offered = sorted(plateaus, key=lambda each: each["per_s"])
    lines = [
        Line("offered", [(each["per_s"], each["per_s"]) for each in by_offered], COLOURS[0], dashed=True),
        Line("good", [(each["per_s"], each["good_per_s"]) for each in by_offered], COLOURS[1]),
    ]
    past = knee["past_share"]
    beyond = "" if past is None else f" Beyond it goodput kept at least {past:.2f} of its best."
    return [
        "<h2>The knee</h2>",
        f"<p>Up to {knee['offered_per_s']:.3g} operations a second were answered.{escape(beyond)}</p>",
        chart(
            "Goodput by offered load",
            lines,
            x=Axis("operations a second offered"),
            y=Axis("operations a second that came back good"),
            marks=[(knee["offered_per_s"], "knee")],
        ),
    ]


def _percentiles(document: dict[str, Any]) -> str:
    lines = []
    for index, (kind, figures) in enumerate(document["operations"].items()):
        # 99.9 lies as far from 99 as 99 from 90: by what is beyond, each ten times rarer.
        points = [(100.0 / (100.0 - rank), seconds) for rank, seconds in figures["curve"] if rank < 100.0]
        if figures["latency"]["timed"]:
            lines.append(Line(kind, points, COLOURS[index % len(COLOURS)]))
    return chart(
        "Latency by percentile",
        lines,
        x=Axis("one in so many took at least as long (10: p90, 100: p99, 1000: p99.9)", log=True),
        y=Axis("seconds", log=True),
    )


def _line(name: str, slices: Sequence[dict[str, Any]], field: str, colour: str, *, dashed: bool = False) -> Line:
    return Line(name, [(each["at_s"], each[field]) for each in slices], colour, dashed)


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    return (
        f"Made by worldtree bench on {machine['cores']} cores ({machine['processor']}), Python {machine['python']}, "
        f"grpc {machine['grpc']}."
    )


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3g}"
