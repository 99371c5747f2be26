"""`worldtree bench` and the locust user against all services, with tiny models."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from whole import Whole

ROOT = Path(__file__).parents[3]
LOADTEST = ROOT / "clients/loadtest"
TIMEOUT_S = 120
GOAL = "a bright clip"  # one that the tiny judge knows
# A busy machine may be slow; it must not make mistakes.
PATIENT_S = 60
EVERYTHING: dict[str, Any] = {
    "about": "a little of everything",
    "model": "tiny",
    "sessions": 3,
    "phases": [
        {"name": "warm", "seconds": 0.5, "rate_per_s": 4, "measured": False},
        {"name": "steady", "seconds": 3, "rate_per_s": 8},
    ],
    "operations": [
        {"kind": "step", "weight": 4, "deadline_s": PATIENT_S},
        {"kind": "session", "deadline_s": PATIENT_S},
        {"kind": "play", "fps": 5, "chunk_count": 2, "deadline_s": PATIENT_S},
        {"kind": "rollout", "sequence_count": 2, "depth": 2, "deadline_s": PATIENT_S},
        {"kind": "generate", "action_count": 2, "distinct_count": 3, "deadline_s": PATIENT_S},
        {"kind": "imagine", "candidates": 2, "horizon": 2, "goal": GOAL, "deadline_s": PATIENT_S},
        {"kind": "predict", "deadline_s": PATIENT_S},
        {"kind": "robot", "decision_count": 2, "period_s": 0.2, "deadline_s": PATIENT_S},
    ],
    "thresholds": [{"metric": "error_share", "at_most": 0}, {"metric": "goodput_per_s", "at_least": 0.1}],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    running = Whole(tmp_path_factory.mktemp("models"))
    yield running
    running.close()


def environ(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(LOADTEST / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "160", **more}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "worldtree.cli", "bench", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environ(), capture_output=True, text=True, timeout=TIMEOUT_S)


def write(folder: Path, **fields: Any) -> Path:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**EVERYTHING, **fields}))
    return file


def test_every_kind_of_operation_is_done_without_an_error_and_reported(whole: Whole, tmp_path: Path) -> None:
    target = ("--target", whole.gateway.server.address)
    done = run(str(write(tmp_path)), *target, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("holds: ") == 2
    told = json.loads((tmp_path / "out/mine.json").read_text())
    assert told["all"]["failed"] == told["all"]["refused"] == 0, told["all"]["reasons"]
    assert {kind for kind, figures in told["operations"].items() if figures["good"]} == {
        operation["kind"] for operation in EVERYTHING["operations"]
    }
    assert "<svg" in (tmp_path / "out/mine.html").read_text()
    # The sessions that were held open are closed again.
    assert whole.servers.run(live_count(whole)) == 0


async def live_count(whole: Whole) -> int:
    return sum(len(served.worlds.live()) for served in whole.worlds)


def test_a_threshold_that_does_not_hold_is_the_exit_code(whole: Whole, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        operations=[{"kind": "step", "deadline_s": PATIENT_S}],
        thresholds=[{"metric": "p50_s", "at_most": 1e-6}],
    )
    done = run(str(file), "--target", whole.gateway.server.address, "--scale-time", "0.3", "--json")
    assert done.returncode == 1, done.stderr
    (threshold,) = json.loads(done.stdout)["thresholds"]
    assert threshold["holds"] is False
    assert threshold["limit"] == "≤ 1e-06"


def test_an_interrupt_ends_it_with_what_was_measured_so_far(whole: Whole, tmp_path: Path) -> None:
    file = write(
        tmp_path,
        phases=[{"name": "long", "seconds": 600, "rate_per_s": 5}],
        operations=[{"kind": "step", "deadline_s": PATIENT_S}],
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(str(file), "--target", whole.gateway.server.address, "--out", str(out)),
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        served = next(iter(whole.worlds)).worlds
        ends_s = time.monotonic() + 60
        # Its sessions are open and have moved: it is under way.
        while not any(session.branch.chunk_index > 0 for session in served.live()):
            assert time.monotonic() < ends_s, "it never began"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "interrupted after" in said
    told = json.loads((out / "mine.json").read_text())
    assert told["interrupted"] is True
    assert told["all"]["ok"] > 0
    assert "Interrupted after" in (out / "mine.html").read_text()


def test_the_shipped_scenarios_are_listed_and_shown() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()][:2] == ["cache", "churn"]
    shown = run("ramp", "--show")
    assert yaml.safe_load(shown.stdout)["operations"][0]["kind"] == "step"


def test_a_scenario_with_a_mistake_is_refused_with_field_value_and_limit(tmp_path: Path) -> None:
    done = run(str(write(tmp_path, sessions=0)))
    assert done.returncode == 1
    assert "mine: sessions must be 1 or more, got 0" in done.stderr


def test_help_says_how_to_begin() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("--target", "--scale-time", "--out", "Ctrl-C", "worldtree bench steady"):
        assert word in done.stdout


def test_locust_users_see_no_failure(whole: Whole, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(LOADTEST / "locustfile.py"), "--headless"),
            *(
                "--host",
                whole.gateway.server.address,
                "--model",
                "tiny",
                "--goal",
                GOAL,
                "--users",
                "4",
                "--spawn-rate",
                "4",
            ),
            *("--run-time", "8s", "--stop-timeout", "60", "--csv", str(tmp_path / "told"), "--only-summary"),
        ],
        env=environ(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (tmp_path / "told_stats.csv").read_text().splitlines()
    head = rows[0].split(",")
    counts = {row.split(",")[1]: row.split(",") for row in rows[1:]}
    total = counts["Aggregated"]
    assert int(total[head.index("Failure Count")]) == 0, done.stdout
    assert int(total[head.index("Request Count")]) > 10
    assert re.search(r"\bStep\b", done.stdout + done.stderr)
