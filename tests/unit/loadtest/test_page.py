"""The report: one file that loads nothing, whose pictures are sound."""

import re
from xml.etree import ElementTree

import pytest
from worldtree_loadtest.generator import Recording
from worldtree_loadtest.page import page
from worldtree_loadtest.plot import Axis, Line, chart
from worldtree_loadtest.recorder import Outcome, Recorder
from worldtree_loadtest.scenario import parse
from worldtree_loadtest.schedule import arrivals, plateaus
from worldtree_loadtest.summary import Summary
from worldtree_loadtest.thresholds import judge


def recording(*, interrupted: bool = False) -> Recording:
    """A ramp whose server answers 20 a second and refuses the rest."""
    scenario = parse(
        {
            "about": "a <ramp>",
            "phases": [{"name": "up", "seconds": 8, "rate_per_s": 10, "to_rate_per_s": 40, "plateaus": 4}],
            "operations": [{"kind": "step"}],
            "thresholds": [
                {"metric": "goodput_past_knee", "at_least": 0.9},
                {"metric": "refused_share", "at_most": 0.1},
                {"metric": "p99_s", "at_most": 1},
            ],
        },
        name="ramp",
    )
    recorder = Recorder(scenario.seconds)
    for index, arrival in enumerate(arrivals(scenario)):
        rate = 10 * (arrival.plateau + 1)
        if index % rate < 20:
            outcome = Outcome("ok", 0.05 + 0.001 * (index % 7), good=True, work=1)
        else:
            outcome = Outcome("refused", 0.001, reason="QUEUE_FULL", retry_info=True)
        recorder.add(arrival.plateau, "step", arrival.at_s, outcome)
    return Recording(scenario, plateaus(scenario), recorder, interrupted=interrupted, ran_s=8.0)


def test_thresholds_judge_what_was_measured() -> None:
    verdicts = judge(Summary(recording()))
    assert [verdict.holds for verdict in verdicts] == [True, False, True]
    assert [verdict.limit for verdict in verdicts] == ["≥ 0.9", "≤ 0.1", "≤ 1"]


def test_what_was_not_seen_does_not_hold() -> None:
    empty = recording()
    empty.recorder = Recorder(8)
    verdicts = judge(Summary(empty))
    assert not any(verdict.holds for verdict in verdicts)
    assert {verdict.text for verdict in verdicts} == {"nothing was seen"}


def test_the_page_loads_nothing_and_its_pictures_are_xml() -> None:
    summary = Summary(recording())
    html = page(summary.document(), judge(summary))
    assert not re.search(r"(src|href)=|<script|@import|url\(", html)
    assert "a &lt;ramp&gt;" in html
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert "The knee" in html
    assert "does not hold" in html


def test_the_page_of_an_interrupted_run_says_so() -> None:
    summary = Summary(recording(interrupted=True))
    assert "Interrupted after 8.0 s" in page(summary.document(), judge(summary))


@pytest.mark.parametrize("log", [False, True])
def test_every_point_of_a_chart_lies_within_it(log: bool) -> None:
    points = [(0.5, 0.0001), (20.0, 3.0), (1000.0, 12.0)]
    axis = Axis("seconds", log=log)
    picture = ElementTree.fromstring(chart("t", [Line("a", points, "#000")], x=axis, y=axis))
    (line,) = [each for each in picture.iter() if each.tag.endswith("polyline")]
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert all(0 <= x <= 720 and 0 <= y <= 280 for x, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
