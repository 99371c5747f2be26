"""What a robot that speaks openpi is taken to have executed, whatever became of its answers and of the navigator."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_gateway.errors import NavigationFailed, NavigatorTooSlow, ObservationRefused
from worldtree_gateway.openpi_episodes import Episodes
from worldtree_gateway.openpi_observation import Course, Observation
from worldtree_gateway.openpi_robot import Robot

IMAGE = np.zeros((1, 1, 3), np.uint8)


class Navigator:
    """Books what it is told; each chunk is the next two numbers. `fail`: what becomes of the next observation."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.told: list[list[int | str]] = []
        self.begun: list[pb.Start] = []
        self.fail: Callable[[], Exception] | None = None
        self.books_what_fails = False

    async def begin(self, start: pb.Start) -> Any:
        self.begun.append(start)
        return Stream(self, start.episode)

    def forget(self) -> None:
        self.steps.clear()


class Stream:
    def __init__(self, navigator: Navigator, episode: str) -> None:
        self.navigator, self.episode = navigator, episode
        self.started = pb.Started(step=navigator.steps.get(episode, 0))
        self.ended = False

    async def observe(self, image: Any, executed: Sequence[int | str]) -> pb.ActionChunk:
        navigator = self.navigator
        if self.episode not in navigator.steps and executed:
            raise ObservationRefused("observation.executed", "INVALID_FIELD", "executed must be 0 to 0")
        if navigator.fail is None or navigator.books_what_fails:
            navigator.told.append(list(executed))
            navigator.steps[self.episode] = navigator.steps.get(self.episode, 0) + len(executed)
        if navigator.fail is not None:
            fail, navigator.fail = navigator.fail, None
            raise fail()
        step = navigator.steps[self.episode]
        return pb.ActionChunk(first_step=step, actions=[video_pb.Action(id=step), video_pb.Action(id=step + 1)])

    def close(self) -> None:
        self.ended = True


@pytest.fixture
def navigator() -> Navigator:
    return Navigator()


@pytest.fixture
def episodes() -> Episodes:
    return Episodes(keep_s=100, limit=10)


def robot_of(navigator: Navigator, episodes: Episodes, timeout_s: float = 5) -> Robot:
    return Robot("me", episodes, navigator.begin, timeout_s=timeout_s)


def seen(executed: tuple[int | str, ...] | None = None, *, episode: str = "one", **course: Any) -> Observation:
    asked = {"prompt": "go", "planner": "", "chunk_length": 2, "seed": 0, "frames": False, **course}
    return Observation(IMAGE, Course(**asked), executed, episode, reset=False)


async def answered(robot: Robot, observation: Observation) -> int:
    """The place of the chunk's first action."""
    chunk = await robot.decide(observation)
    robot.sent()
    return chunk.first_step


async def test_all_of_the_last_chunk_is_executed_where_nothing_else_is_said(
    navigator: Navigator, episodes: Episodes
) -> None:
    robot = robot_of(navigator, episodes)
    steps = [await answered(robot, seen()), await answered(robot, seen()), await answered(robot, seen((2,)))]
    assert navigator.told == [[], [0, 1], [2]]
    assert steps == [0, 2, 3]
    assert len(navigator.begun) == 1


async def test_an_answer_that_was_not_sent_was_not_executed(navigator: Navigator, episodes: Episodes) -> None:
    robot = robot_of(navigator, episodes)
    await answered(robot, seen())
    await robot.decide(seen())  # booked, and the robot is gone
    assert await answered(robot_of(navigator, episodes), seen()) == 2
    assert navigator.told == [[], [0, 1], []]


@pytest.mark.parametrize("booked", [False, True])
async def test_what_a_failed_observation_had_executed_is_booked_once(
    navigator: Navigator, episodes: Episodes, booked: bool
) -> None:
    robot = robot_of(navigator, episodes)
    await answered(robot, seen())
    navigator.fail, navigator.books_what_fails = lambda: NavigationFailed("UNAVAILABLE", "gone"), booked
    with pytest.raises(NavigationFailed):
        await robot.decide(seen())
    assert await answered(robot, seen()) == 2
    assert [each for told in navigator.told for each in told] == [0, 1]
    assert len(navigator.begun) == 2


@pytest.mark.parametrize(("field", "told"), [("observation.frame", [[], [0, 1]]), ("", [[], [0, 1], []])])
async def test_a_refusal_with_a_field_books_nothing_and_one_without_does(
    navigator: Navigator, episodes: Episodes, field: str, told: list[list[int]]
) -> None:
    robot = robot_of(navigator, episodes)
    await answered(robot, seen())
    navigator.fail, navigator.books_what_fails = lambda: ObservationRefused(field, "NO", "no"), not field
    with pytest.raises(ObservationRefused):
        await robot.decide(seen())
    assert await answered(robot, seen()) == 2
    assert navigator.told == told
    assert len(navigator.begun) == 1


@pytest.mark.parametrize("executed", [None, (0, 1)])
async def test_a_navigator_that_was_started_anew_is_told_nothing_of_before(
    navigator: Navigator, episodes: Episodes, executed: tuple[int, ...] | None
) -> None:
    robot = robot_of(navigator, episodes)
    await answered(robot, seen())
    navigator.forget()
    robot.close()
    assert await answered(robot, seen(executed)) == 0
    assert await answered(robot, seen()) == 2
    assert navigator.told == [[], [], [0, 1]]


async def test_a_gateway_that_was_started_anew_takes_the_navigators_word(navigator: Navigator) -> None:
    before = robot_of(navigator, Episodes(keep_s=100, limit=10))
    for _ in range(3):
        await answered(before, seen())
    after = robot_of(navigator, Episodes(keep_s=100, limit=10))
    assert await answered(after, seen((4, 5))) == 6


async def test_another_course_begins_another_navigation_of_the_same_episode(
    navigator: Navigator, episodes: Episodes
) -> None:
    robot = robot_of(navigator, episodes)
    for course in ({}, {"frames": True}, {"prompt": "come"}, {"chunk_length": 1}, {"seed": 1}):
        await answered(robot, seen(**course))
    assert [start.episode for start in navigator.begun] == ["one"] * 5
    assert navigator.steps == {"one": 8}
    await answered(robot, seen(planner="other"))
    assert navigator.begun[-1].episode not in ("", "one")


async def test_a_decision_takes_no_longer_than_its_limit(navigator: Navigator, episodes: Episodes) -> None:
    async def never(start: pb.Start) -> Any:
        await asyncio.Event().wait()

    robot = Robot("me", episodes, never, timeout_s=0.01)
    with pytest.raises(NavigatorTooSlow, match=r"no chunk within 0\.01 s"):
        await robot.decide(seen())
