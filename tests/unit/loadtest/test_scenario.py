"""Scenario files: those that are shipped can be run, and what is wrong is told by field, value and limit."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from worldtree_loadtest.scenario import ScenarioError, load, parse, shipped
from worldtree_loadtest.schedule import arrivals, plateaus, turns

STEPS: dict[str, Any] = {
    "about": "steps",
    "phases": [{"name": "steady", "seconds": 2, "rate_per_s": 5}],
    "operations": [{"kind": "step"}],
}


def scenario(**fields: Any) -> Any:
    return parse({**STEPS, **fields}, name="mine")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_can_be_run_and_asks_something_of_the_server(name: str) -> None:
    assert load(name).thresholds


def test_the_issue_is_covered_from_steady_to_robots() -> None:
    assert set(shipped()) == {"steady", "ramp", "plays", "spike", "soak", "churn", "cache", "robots"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"operations": [{"kind": "play", "fps": 500}]},
            "mine: operations[0].fps must be 240 or less, got 500",
        ),
        ({"operations": [{"kind": "step", "fsp": 5}]}, "mine: operations[0].fsp is no field of this, got 5"),
        (
            {"operations": [{"kind": "walk"}]},
            "mine: operations[0].kind must be one of 'session', 'step', 'play', 'rollout', 'generate', 'imagine', "
            "'predict', 'robot', got 'walk'",
        ),
        ({"operations": [{"weight": 1}]}, "mine: operations[0].kind is missing"),
        ({"operations": []}, "mine: operations must be 1 or more long, got []"),
        ({"phases": [{"name": "a", "seconds": 0, "rate_per_s": 5}]}, "mine: phases[0].seconds must be above 0, got 0"),
        ({"phases": [{"name": "a", "seconds": 1}]}, "mine: phases[0].rate_per_s is missing"),
        ({"sessions": "many"}, "mine: sessions must be integer"),
        ({"thresholds": [{"metric": "p98_s", "at_most": 1}]}, "mine: thresholds[0].metric must be one of 'p50_s'"),
        ({"thresholds": [{"metric": "p99_s"}]}, "mine: thresholds[0]: a threshold needs at_most or at_least"),
        (
            {"thresholds": [{"metric": "p99_s", "operation": "play", "at_most": 1}]},
            "mine: thresholds[0].operation must be one of step, got 'play'",
        ),
        (
            {"thresholds": [{"metric": "knee_per_s", "at_least": 1}]},
            "mine: thresholds[0].metric knee_per_s needs a phase with plateaus, got none",
        ),
        (
            {"operations": [{"kind": "step"}, {"kind": "step"}]},
            "mine: each kind of operation may stand once, got step twice",
        ),
    ],
)
def test_what_is_wrong_is_told_by_field_value_and_limit(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(**fields)
    assert told in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(sessions=0, seed=-1)
    assert str(caught.value).splitlines() == [
        "mine: sessions must be 1 or more, got 0",
        "mine: seed must be 0 or more, got -1",
    ]


def test_a_file_that_is_not_there_names_those_that_are_shipped() -> None:
    with pytest.raises(ScenarioError, match=r"neither a file .* nor one of cache, churn"):
        load("stedy")


def test_a_file_that_is_no_yaml_says_so(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("about: [")
    with pytest.raises(ScenarioError, match="is no YAML"):
        load(str(file))
    file.write_text("- steps")
    with pytest.raises(ScenarioError, match="must hold the fields of a scenario, got list"):
        load(str(file))


def test_arrivals_come_evenly_at_the_rate_of_their_phase() -> None:
    moments = [arrival.at_s for arrival in arrivals(scenario())]
    assert moments == pytest.approx([index / 5 for index in range(10)])


def test_random_arrivals_have_the_rate_as_their_mean_and_are_the_same_each_time() -> None:
    wild = scenario(poisson=True, phases=[{"name": "a", "seconds": 100, "rate_per_s": 20}])
    moments = [arrival.at_s for arrival in arrivals(wild)]
    assert len(moments) == pytest.approx(2000, rel=0.1)
    assert moments == sorted(moments)
    assert moments == [arrival.at_s for arrival in arrivals(wild)]


def test_a_ramp_is_a_row_of_plateaus() -> None:
    climb = {"name": "up", "seconds": 8, "rate_per_s": 5, "to_rate_per_s": 20, "plateaus": 4}
    found = plateaus(scenario(phases=[climb]))
    assert [each.rate_per_s for each in found] == pytest.approx([5, 10, 15, 20])
    assert [each.name for each in found] == ["up 1", "up 2", "up 3", "up 4"]
    assert (found[0].begin_s, found[-1].end_s) == (0, pytest.approx(8))


def test_each_operation_has_its_turn_as_often_as_its_weight_says() -> None:
    order = list(islice(turns([5, 1, 2]), 16))
    assert [order.count(index) for index in range(3)] == [10, 2, 4]
    assert set(order[:8]) == {0, 1, 2}
    assert order[:3] != [0, 0, 0], "the heavy one does not go first alone"


def test_a_scaled_scenario_sends_at_another_rate_for_another_time() -> None:
    assert len(list(arrivals(scenario().scaled(seconds=3, rate=2)))) == 60
