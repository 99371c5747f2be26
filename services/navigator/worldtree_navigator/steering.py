"""Streams of robots: who steers each, and the episode that it goes on with."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree_runtime.errors import InvalidRequest, NotFound
from worldtree_runtime.messages import TENANT_KEY, from_stored
from worldtree_runtime.places import Places

from worldtree_navigator import navigate_convert
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.convert import to_allowed
from worldtree_navigator.domain import Search
from worldtree_navigator.episodes import Episodes
from worldtree_navigator.errors import NothingSeen, TooManyNavigations
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.navigate_convert import Course
from worldtree_navigator.navigating import Navigation
from worldtree_navigator.peers import Metadata, Peers
from worldtree_navigator.pilots import ImaginingPilot, Pilot, PolicyPilot
from worldtree_navigator.planning import MPC
from worldtree_navigator.policies import Policies
from worldtree_navigator.robot import Robot

_IMAGINED_WITH = ("budget", "world", "judge", "actions", "weights")  # fields of a Start that only "mpc" heeds
_SEARCH = Search(horizon=10, candidates=16, iterations=2)  # where a robot waits for it


class Steering:
    """All navigations of this process."""

    def __init__(
        self, peers: Peers, policies: Policies, settings: NavigatorSettings, metrics: NavigatorMetrics
    ) -> None:
        self._peers, self._policies, self._settings, self._metrics = peers, policies, settings, metrics
        self._episodes = Episodes(keep_s=settings.episode_ttl_s, limit=settings.max_episodes)
        self._places = Places(settings.max_navigations, metrics.navigations, TooManyNavigations)

    async def navigate(
        self, requests: AsyncIterator[pb.NavigateRequest], metadata: Metadata
    ) -> AsyncGenerator[pb.NavigateResponse]:
        """The answers of one stream."""
        with self._places.taken():
            start = await self._start(requests)
            course = navigate_convert.to_course(start, self._settings)
            pilot = await self.pilot(start, course, metadata)
            chunk_length = navigate_convert.to_chunk_length(course.chunk_length, pilot.horizon)
            tenant = dict(metadata).get(TENANT_KEY, "")
            episode, holder = self._episodes.take(tenant, pilot.key, course.episode, time.monotonic())
            try:
                robot = Robot(chunk_length, pilot.horizon, course.rate_hz, time.monotonic(), step=episode.step)
                heeds_all = isinstance(pilot, ImaginingPilot)
                notes = [] if heeds_all else navigate_convert.unheeded(start, pilot.planner, _IMAGINED_WITH)
                yield _started(pilot, chunk_length, episode.name, episode.step, notes)
                navigation = Navigation(
                    pilot, robot, episode, holder, self._settings, self._metrics, frames=start.frames
                )
                async with aclosing(navigation.run(requests)) as answers:
                    async for answer in answers:
                        yield answer
            finally:
                self._episodes.leave(tenant, pilot.key, holder, episode, time.monotonic())

    async def pilot(self, start: pb.Start, course: Course, metadata: Metadata) -> Pilot:
        """Raises NotFound, and InvalidRequest for a goal that the planner does not understand."""
        known = [*self._policies.names(), MPC.name]
        planner = start.planner or known[0]
        if planner != MPC.name:
            if planner not in known and not start.model.name:
                raise NotFound("planner", planner, known=known)
            model = start.model
            spec, served = self._policies.find(start.planner, model.name, model.version, model.digest)
            words = navigate_convert.to_words("start.goal", start.goal, served.package.goal)
            return PolicyPilot(served, spec, words, seed=course.seed)
        world = start.world
        if not world.name:
            world.name = self._settings.world
        imagined = await self._peers.model(world, metadata)
        if imagined.frames_per_chunk != 1:
            raise InvalidRequest(
                "start.world",
                f"start.world must make one frame a chunk, as a robot shows one an observation; {imagined.ref.name} "
                f"makes {imagined.frames_per_chunk}",
                limit=1,
            )
        return ImaginingPilot(
            self._peers,
            imagined,
            start.judge,
            reward_pb.Question(goal=start.goal, weights=start.weights),
            metadata,
            asked=_SEARCH,
            terms=course.terms,
            actions=to_allowed(start.actions, tuple(imagined.action_space.discrete.names), "start.actions"),
            seed=course.seed,
        )

    async def _start(self, requests: AsyncIterator[pb.NavigateRequest]) -> pb.Start:
        limit_s = self._settings.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                first = await anext(requests, None)
        except TimeoutError as error:
            raise NothingSeen("start", limit_s) from error
        if first is None or first.WhichOneof("event") != "start":
            got = (first and first.WhichOneof("event")) or "nothing"
            raise InvalidRequest("event", f"event of the first message must be start, got {got}")
        return first.start


def _started(pilot: Pilot, chunk_length: int, episode: str, step: int, notes: list[str]) -> pb.NavigateResponse:
    model = from_stored(pilot.served.stored) if isinstance(pilot, PolicyPilot) else None
    started = pb.Started(
        planner=pilot.planner,
        model=model,
        chunk_length=chunk_length,
        episode=episode,
        step=step,
        actions=pilot.actions,
        notes=notes,
    )
    return pb.NavigateResponse(started=started)
