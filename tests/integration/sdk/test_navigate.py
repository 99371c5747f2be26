"""`client.navigator.navigate` of both clients and `worldtree navigate`, in the simulator, by the shipped policy."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import worldtree
import worldtree.aio
from worldtree.cli.stack import Stack, StackOptions
from worldtree.episodes import Tally, play_episode, play_episodes, wilson
from worldtree.simulator import ACTIONS, Simulator

SEED = 1_060_000_003
EASY = "BabyAI-GoToObj-v0"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Stack(StackOptions(port=0, log_level="error"), on_log=lambda _: None) as stack:
        yield stack.grpc_address


def test_a_robot_gets_there_and_the_episode_is_told(address: str) -> None:
    with worldtree.Client(address) as client:
        episode = play_episode(client, EASY, SEED, planner="joint", chunk_length=2)
    assert episode.outcome.success
    assert episode.outcome.shortest is not None
    assert 0 < episode.outcome.spl <= 1
    assert len(episode.latencies_s) == -(-episode.outcome.steps // 2)
    assert set(episode.imagined) == {6}
    assert all(0 < part < whole for part, whole in zip(episode.world_model_s, episode.latencies_s, strict=True))


async def test_the_asyncio_client_gets_the_same(address: str) -> None:
    simulator = Simulator(EASY, SEED)
    with worldtree.Client(address) as client, client.navigator.navigate(simulator.goal, seed=4) as navigation:
        same = navigation.observe(simulator.frame())
    async with worldtree.aio.Client(address) as client, client.navigator.navigate(simulator.goal, seed=4) as course:
        chunk = await course.observe(simulator.frame())
        assert course.info.actions == ACTIONS
        assert course.info.notes == ()
        with pytest.raises(worldtree.ObservationRefused, match=r"observation\.frame") as refused:
            await course.observe(np.zeros((8, 8, 3), np.uint8))
        assert refused.value.observation == 1
        again = await course.observe(simulator.frame())
    assert chunk.actions == same.actions == again.actions


async def test_an_answer_that_was_not_waited_for_is_not_taken_for_the_next(address: str) -> None:
    simulator = Simulator(EASY, SEED)
    async with worldtree.aio.Client(address) as client, client.navigator.navigate(simulator.goal) as course:
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(course.observe(simulator.frame()), 0.001)
        assert (await asyncio.wait_for(course.observe(simulator.frame()), 10)).observation == 3
    with worldtree.Client(address) as client, client.navigator.navigate(simulator.goal) as navigation:
        assert [navigation.send(simulator.frame()) for _ in range(3)] == [0, 1, 2]
        assert navigation.observe(simulator.frame()).observation == 3


def test_a_robot_that_does_not_wait_sends_and_receives_in_threads_of_its_own(address: str) -> None:
    simulator = Simulator(EASY, SEED)
    with (
        worldtree.Client(address) as client,
        client.navigator.navigate(simulator.goal, chunk_length=3, rate_hz=50.0) as navigation,
    ):
        chunks: list[worldtree.ActionChunk] = []
        receiving = threading.Thread(target=lambda: chunks.extend(navigation.receive() for _ in range(3)))
        receiving.start()
        while receiving.is_alive():
            navigation.send(simulator.frame())
            time.sleep(0.02)
    assert chunks[0].first_step == 0
    assert all(each.starts_at_s <= navigation.clock_s for each in chunks[:1])


def test_what_is_no_image_goes_nowhere(address: str) -> None:
    with worldtree.Client(address) as client, client.navigator.navigate("go to the red ball") as navigation:
        with pytest.raises(worldtree.InvalidRequest, match=r"\[height, width, 3\], got \[1, 56, 56, 3\]"):
            navigation.observe(np.zeros((1, 56, 56, 3), np.uint8))
        with pytest.raises(worldtree.InvalidRequest, match="uint8"):
            navigation.observe(np.full((56, 56, 3), np.nan))


def test_a_goal_that_nobody_understands_is_told_at_once(address: str) -> None:
    with (
        worldtree.Client(address) as client,
        pytest.raises(worldtree.InvalidRequest, match="'zeppelin'") as refused,
        client.navigator.navigate("go to the zeppelin"),
    ):
        pass
    assert refused.value.reason == "GOAL_UNKNOWN"


def test_a_plan_of_frames_needs_no_world(address: str) -> None:
    simulator = Simulator(EASY, SEED)
    with worldtree.Client(address) as client:
        plan = client.navigator.plan(simulator.frame()[None], goal=simulator.goal, planner="joint")
        assert (len(plan.actions), plan.score, plan.judgement) == (6, None, None)
        assert plan.frames is not None
        assert plan.frames.shape == (6, 56, 56, 3)


def test_the_command_says_how_often_it_got_there_and_films_it(address: str, tmp_path: Path) -> None:
    film = tmp_path / "nav.mp4"
    command = [sys.executable, "-m", "worldtree.cli", "navigate", "--env", EASY, "--episodes", "4", "--robots", "2"]
    told = subprocess.run(
        [*command, "--record", str(film), "--address", address, "--json"], capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout[: told.stdout.rindex("}") + 1])
    assert (report["env"], report["episodes"]) == (EASY, 4)
    assert report["success"] >= 0.5
    with av.open(str(film)) as opened:
        pictures = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert len(pictures) == pytest.approx(report["steps"] * 4)
    assert pictures[0].shape[1] >= 3 * 224
    refused = subprocess.run([*command, "--record", "film.txt"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "film.txt" in refused.stderr


def test_ctrl_c_ends_the_robots_at_their_next_decision(address: str) -> None:
    command = [sys.executable, "-m", "worldtree.cli", "navigate", "--episodes", "500", "--address", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ})
    time.sleep(6.0)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode in (1, 130)


def test_episodes_end_as_they_end_and_figures_have_intervals(address: str) -> None:
    with worldtree.Client(address) as client:
        done = list(
            play_episodes(
                lambda seed, stop: play_episode(client, EASY, seed, chunk_length=2, stop=stop),
                range(SEED, SEED + 6),
                at_once=3,
            )
        )
    assert sorted(each.seed for each in done) == list(range(SEED, SEED + 6))
    tally = Tally.of(done)
    low, high = tally.success_interval
    assert low <= tally.success <= high
    assert tally.latency_p50_s <= tally.latency_p99_s
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
