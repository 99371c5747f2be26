"""docs/capacity.md: its figures are what the committed costs give, its settings are those of the code."""

import json
import re
from pathlib import Path

import fleet
import pytest
from worldtree_video.config import VideoSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/capacity.md").read_text()
COSTS = ROOT / "benchmarks/capacity_costs.json"
SMALL = fleet.Fleet(sessions=300, replicas=10, lost=1, gateways=4)


@pytest.fixture(scope="module")
def result() -> fleet.Result:
    return fleet.simulate(SMALL, fleet.Costs.read(COSTS), scale_s=0.5)


def test_the_table_of_one_replica_is_what_was_measured() -> None:
    assert fleet.table(fleet.replica_rows(json.loads(COSTS.read_text()))) in TEXT


def test_the_plan_that_needs_no_simulation_is_what_the_costs_give(result: fleet.Result) -> None:
    small = dict(fleet.plan_rows(result))
    chunk = next(name for name in small if name.startswith("a chunk of"))
    assert f"| {chunk} | {small[chunk]} |" in TEXT


def test_its_settings_are_those_of_the_video_service() -> None:
    named = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert named
    assert set(named) <= set(VideoSettings.model_fields)


def test_a_lost_replica_costs_its_sessions_a_moment_and_the_others_nothing(result: fleet.Result) -> None:
    assert result.hit_share("steady") == 1.0
    assert result.hit_share("after") >= 0.99
    assert 0 < len(result.rehomed_s) < SMALL.sessions / 4
    assert result.rehomed_s[-1] < fleet.REHOME_LIMIT_S
    assert result.late_share("steady") < 0.01


def test_sessions_that_were_taken_on_are_promised_where_they_live_now(result: fleet.Result) -> None:
    promised = sum(replica.promised for replica in result.simulation._replicas)
    share = SMALL.fps * result.costs.work_s / result.simulation.speed
    # Those that ended while their replica was down were given back to the one that came after it.
    assert promised == pytest.approx(SMALL.sessions * share, rel=0.05)


def test_the_same_costs_give_the_same_figures(result: fleet.Result) -> None:
    again = fleet.simulate(SMALL, result.costs, scale_s=0.5)
    assert fleet.simulated_rows(again) == fleet.simulated_rows(result)
    assert fleet.plan_rows(again) == fleet.plan_rows(result)
