"""`worldtree score` as a user runs it: a process of its own, against a real server and a real judge."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(echo: Any, tmp_path: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "WORLDTREE_ADDRESS": echo.address, "NO_COLOR": "1", "COLUMNS": "160"}
        command = [sys.executable, "-P", "-m", "worldtree.cli", "score", *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def test_futures_come_best_first_with_their_scores_and_a_picture(run: Run, tmp_path: Path, echo: Any) -> None:
    asked = ("echo", "--goal", "a bright clip", "-s", "left*3", "-s", "done*3", "-s", "forward,left", "-o", "f.png")
    done = run(*asked, "--json")
    assert done.returncode == 0, done.stderr
    ranked = json.loads(done.stdout)["ranked"]
    assert {each["index"] for each in ranked} == {0, 1, 2}
    rewards = [each["reward"] for each in ranked]
    assert rewards == sorted(rewards, reverse=True)
    assert [each["category"] for each in ranked] == ["brightness"] * 3
    assert set(ranked[0]["dimensions"]) == {"brightness", "motion"}
    picture = Image.open(tmp_path / "f.png")
    assert picture.width > 500
    assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert echo.servicer.sessions == {}
    table = run(*asked).stdout
    assert "judged as brightness" in table
    assert "left left left" in table


def test_weights_turn_the_order_round(run: Run) -> None:
    def order(weight: str) -> list[int]:
        done = run("echo", "-s", "left*3", "-s", "done*3", "-w", weight, "--json")
        assert done.returncode == 0, done.stderr
        return [each["index"] for each in json.loads(done.stdout)["ranked"]]

    assert order("brightness=1") == order("brightness=-1")[::-1]


def test_a_goal_that_no_judge_knows_is_told(run: Run) -> None:
    done = run("echo", "-g", "cook an egg", "-s", "left", "-s", "done")
    assert done.returncode == 0, done.stderr
    assert "of no category that the judge knows" in done.stdout
    assert "does not know 3 of the goal's words: cook, an, egg" in done.stderr
    report = json.loads(run("echo", "-g", "cook an egg", "-s", "left", "--json").stdout)
    assert report["ranked"][0]["uncertainty"] is None


def test_rubrics_say_what_the_judge_looks_at(run: Run) -> None:
    told = run("--rubrics").stdout
    assert "a moving clip" in told
    assert "mean brightness" in told
    assert json.loads(run("--rubrics", "--json").stdout)["categories"]["motion"] == {"motion": 1.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("echo",), "no future to score"),
        (("echo", "-s", "left", "-w", "motion"), "--weight takes DIMENSION=WEIGHT, got 'motion'"),
        (("echo", "-s", "left", "-w", "motion=much"), "--weight takes DIMENSION=WEIGHT, got 'motion=much'"),
        (("echo", "-s", "left", "-w", "taste=1"), "taste"),
        (("echo", "-s", "left", "--category", "cooking"), "cooking"),
        (("echo", "-s", "left", "-o", "f.gif"), "a picture of futures is a .png, got 'f.gif'"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
