"""One robot that speaks openpi: the episode that it is in, and the navigation that steers it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from uuid import uuid4

from worldtree.navigator.v1 import navigator_pb2 as pb

from worldtree_gateway.errors import NavigatorTooSlow, ObservationRefused
from worldtree_gateway.openpi_episodes import Episode, Episodes
from worldtree_gateway.openpi_navigation import Navigation
from worldtree_gateway.openpi_observation import Course, Observation

Begin = Callable[[pb.Start], Awaitable[Navigation]]


class Robot:
    """`decide` and then `sent`, in turn; `close` at the end.

    A navigation is begun for the first observation, and again when the robot's episode or course changes, or the
    navigator has ended it. What was seen is the episode's, so it goes on in the next one.
    """

    def __init__(self, owner: str, episodes: Episodes, begin: Begin, *, timeout_s: float) -> None:
        """`owner`: whose episodes it may go on with. `timeout_s`: for one decision."""
        self._owner, self._episodes, self._begin, self._timeout_s = owner, episodes, begin, timeout_s
        self._navigation: Navigation | None = None
        self._episode: Episode | None = None
        self._name = ""  # the episode's, as the robot calls it
        self._course: Course | None = None
        # Of what was executed since the last answer, how much the navigator has booked: an observation may have reached
        # it whose answer never reached us.
        self._booked_count = 0
        self._answered: Episode | None = None  # what the episode is once the answer is sent

    async def decide(self, seen: Observation, *, within_s: float | None = None) -> pb.ActionChunk:
        """What to do. Raises what the navigator says of it, ObservationRefused, or NavigatorTooSlow. `within_s`: where
        its answer is of no use later than that.
        """
        self._turn_to(seen)
        timeout_s = self._timeout_s if within_s is None else min(self._timeout_s, within_s)
        try:
            async with asyncio.timeout(timeout_s):
                chunk = await self._decide(seen)
        except ObservationRefused:
            raise  # the navigation goes on
        except TimeoutError as error:
            self.close()
            raise NavigatorTooSlow(timeout_s) from error
        except BaseException:
            self.close()
            raise
        assert self._episode is not None, "turned to one above"
        actions = tuple(action.id for action in chunk.actions)
        self._answered = replace(self._episode, step=chunk.first_step, chunk=actions)
        return chunk

    @property
    def started(self) -> pb.Started:
        """What the navigator says of the navigation under way."""
        assert self._navigation is not None, "nothing was decided"
        return self._navigation.started

    def sent(self) -> None:
        """The robot has the answer, as far as can be known: only now is its chunk one that may be executed."""
        if self._answered is not None:
            self._keep(self._answered)
            self._answered, self._booked_count = None, 0

    def close(self) -> None:
        """Ends the navigation; the episode is kept. Safe to call again."""
        if self._navigation is not None:
            self._navigation.close()
            self._navigation = None

    async def _decide(self, seen: Observation) -> pb.ActionChunk:
        if self._navigation is not None and self._navigation.ended:
            ended, self._navigation = self._navigation, None
            await ended.check_taken()
        navigation = self._navigation or await self._start(seen.course)
        assert self._episode is not None, "turned to one above"
        executed: Sequence[int | str] = self._episode.chunk if seen.executed is None else seen.executed
        executed = executed[self._booked_count :]
        try:
            return await navigation.observe(seen.image, executed)
        except ObservationRefused as refusal:
            # The navigator takes it for the first one: it was started anew, and knows of nothing that was executed.
            if refusal.field == "observation.executed" and self._episode.chunk:
                return await navigation.observe(seen.image, ())
            if not refusal.field:  # it was seen, and what failed is the planning
                self._booked_count += len(executed)
            raise

    async def _start(self, course: Course) -> Navigation:
        assert self._episode is not None, "turned to one before"
        start = pb.Start(
            goal=course.prompt,
            planner=course.planner,
            chunk_length=course.chunk_length,
            seed=course.seed,
            frames=course.frames,
            episode=self._episode.name,
        )
        self._navigation = await self._begin(start)
        step = self._navigation.started.step
        if self._episode.step is None:
            self._episode = replace(self._episode, step=step)
        self._booked_count = max(0, step - (self._episode.step or 0))
        return self._navigation

    def _turn_to(self, seen: Observation) -> None:
        """To the episode and the course of an observation; a navigation of others ends."""
        episode = self._episode_of(seen)
        if self._episode is None or episode.name != self._episode.name or seen.course != self._course:
            self.close()
            self._booked_count = 0
        self._episode, self._name, self._course = episode, seen.episode, seen.course
        if seen.reset:
            self._keep(episode)

    def _episode_of(self, seen: Observation) -> Episode:
        planner, prompt = seen.course.planner, seen.course.prompt
        known = self._episode if seen.episode == self._name else None
        if seen.episode and (known is None or self._navigation is None):  # another connection may have gone on with it
            known = self._episodes.get(self._owner, seen.episode) or known
        if known is None and not seen.reset:
            return Episode(seen.episode or uuid4().hex, planner, prompt)
        # Without a name, another goal is another episode: nothing else tells that the robot was put elsewhere.
        if known is None or seen.reset or known.planner != planner or (known.prompt != prompt and not seen.episode):
            return Episode(uuid4().hex, planner, prompt)
        return known

    def _keep(self, episode: Episode) -> None:
        self._episode = episode
        if self._name:
            self._episodes.put(self._owner, self._name, episode)
