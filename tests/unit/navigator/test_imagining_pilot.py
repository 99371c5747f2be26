"""What a robot that is steered by imagining remembers between two looks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_navigator import pilots
from worldtree_navigator.domain import Chunk, Edge, Search, Terms
from worldtree_navigator.episodes import Episode
from worldtree_navigator.pilots import ImaginingPilot, Look
from worldtree_navigator.planning import Plan

PLAN = (2, 2, 1, 0)
UNLIMITED = Terms(rounds=0, halving=2.0, keep=1, stop_at=None, chunk_limit=100, time_s=None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each search was asked; it always finds PLAN, its frames named after their places."""
    found: list[dict[str, Any]] = []

    @asynccontextmanager
    async def recalled(peers: Any, past: Any, *_: Any, **__: Any) -> AsyncIterator[Any]:
        found.append({"frames": past.frames.tensor.data, "between": [each.id for each in past.actions]})
        yield SimpleNamespace(max_steps=256)

    async def search(peers: Any, stage: Any, asked: Search, *_: Any, **given: Any) -> Any:
        found[-1].update(given, asked=asked)
        chunks = [Chunk(b"told %d" % place, "") for place in range(len(PLAN))]
        best = Plan(tuple(Edge(each) for each in PLAN), chunks, reward_pb.Judgement(), 0.0)
        spent = SimpleNamespace(imagine_s=0.0, made=0, known=0)
        return SimpleNamespace(best=best, spent=spent, effort=1.0, notes=[], confidence=1.0)

    monkeypatch.setattr(pilots, "recalled", recalled)
    monkeypatch.setattr("worldtree_navigator.mpc.search", search)
    monkeypatch.setattr(pilots, "frames_of", lambda data, _: common.Frames(tensor=common.Tensor(data=data)))
    return found


def steered() -> tuple[ImaginingPilot, Episode]:
    pilot = ImaginingPilot(
        SimpleNamespace(),  # type: ignore[arg-type]
        video_pb.Model(),
        common.ModelRef(),
        reward_pb.Question(goal="go"),
        (),
        asked=Search(10, 16, 2),
        terms=UNLIMITED,
        actions=[0, 1, 2],
        seed=3,
    )
    return pilot, Episode("mine")


def look(pilot: ImaginingPilot, episode: Episode, image: bytes, executed: list[int]) -> None:
    pilot.see(episode, image, executed, field="observation.frame")
    episode.saw(executed)


async def test_what_was_not_looked_at_in_between_was_as_it_was_imagined(asked: list[dict[str, Any]]) -> None:
    pilot, episode = steered()
    look(pilot, episode, b"first ", [])
    decision = await pilot.decide(episode, Look((), 3, None, frames=False))
    assert decision.actions == PLAN[:3]
    look(pilot, episode, b"second", [2, 2, 1])
    await pilot.decide(episode, Look((), 3, None, frames=False))
    assert asked[1]["frames"] == b"first told 0told 1second"
    assert asked[1]["between"] == [2, 2, 1]
    assert asked[1]["before"] == (Edge(0),)


async def test_of_what_it_was_not_told_to_do_nothing_is_remembered(asked: list[dict[str, Any]]) -> None:
    pilot, episode = steered()
    look(pilot, episode, b"first ", [])
    await pilot.decide(episode, Look((), 3, None, frames=False))
    look(pilot, episode, b"second", [2, 0, 1])
    await pilot.decide(episode, Look((), 3, None, frames=False))
    assert (asked[1]["frames"], asked[1]["between"]) == (b"second", [])


async def test_a_plan_has_as_many_actions_as_a_chunk_and_knows_what_was_seen(asked: list[dict[str, Any]]) -> None:
    pilot, episode = steered()
    look(pilot, episode, b"first ", [])
    await pilot.decide(episode, Look((), 3, None, frames=False))
    look(pilot, episode, b"first ", [2, 2, 1])
    await pilot.decide(episode, Look((), 2, None, frames=False))
    assert [each["asked"].least for each in asked] == [3, 2]
    assert asked[1]["seen"] == {hash(b"first "): 2, hash(b"told 0"): 1, hash(b"told 1"): 1}


async def test_an_episode_that_goes_on_in_another_stream_knows_what_was_expected(asked: list[dict[str, Any]]) -> None:
    pilot, episode = steered()
    look(pilot, episode, b"first ", [])
    await pilot.decide(episode, Look((), 3, None, frames=False))
    another, _ = steered()
    look(another, episode, b"second", [2, 2, 1])
    await another.decide(episode, Look((), 3, None, frames=False))
    assert asked[1]["frames"] == b"first told 0told 1second"
    assert asked[1]["before"] == (Edge(0),)
    assert asked[1]["seen"] == {hash(each): 1 for each in (b"first ", b"second", b"told 0", b"told 1")}
