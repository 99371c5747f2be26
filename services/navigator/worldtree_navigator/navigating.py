"""One robot's stream: the newest observation is planned from, while the robot executes what was planned before."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace

from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree_runtime.errors import InvalidRequest, Kind, WorldtreeError

from worldtree_navigator import navigate_convert
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.episodes import Episode
from worldtree_navigator.errors import NothingSeen
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.pilots import Look, Pilot
from worldtree_navigator.robot import Robot

# A plan that failed for want of time or of a service: the robot may ask again.
_PASSING = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED})
_MOST_REFUSALS = 64  # that wait to be sent


@dataclass(frozen=True, slots=True)
class _Seen:
    """An observation that waits to be planned from. `arrived_s`: by time.monotonic; `read_s`: what reading it took."""

    index: int
    arrived_s: float
    read_s: float


class Navigation:
    """From the first observation on. `run` it once."""

    def __init__(
        self,
        pilot: Pilot,
        robot: Robot,
        episode: Episode,
        holder: "asyncio.Future[None]",
        settings: NavigatorSettings,
        metrics: NavigatorMetrics,
        *,
        frames: bool,
    ) -> None:
        """`holder`: fails when another stream goes on with the episode."""
        self._pilot, self._robot, self._episode, self._holder = pilot, robot, episode, holder
        self._settings, self._metrics, self._frames = settings, metrics, frames
        self._newest: _Seen | None = None
        self._refusals: deque[pb.Refusal] = deque()
        self._dropped_count = 0
        self._ended = False
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._told = asyncio.Event()  # refusals were sent

    async def run(self, requests: AsyncIterator[pb.NavigateRequest]) -> AsyncGenerator[pb.NavigateResponse]:
        """Chunks and refusals, until the robot has ended its stream and is answered.

        Raises EpisodeTaken, NothingSeen, InvalidRequest for a second Start, and what a pilot raises for good.
        """
        reading = asyncio.create_task(self._read(requests))
        self._holder.add_done_callback(lambda _: self._changed.set())
        try:
            while await self._anything():
                for _ in range(len(self._refusals)):  # no more than these: chunks have their turn
                    yield pb.NavigateResponse(refusal=self._refusals.popleft())
                self._told.set()
                if (seen := self._newest) is not None:
                    self._newest = None
                    yield await self._answer(seen)
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def _anything(self) -> bool:
        """Waits for something to answer. False: the stream has ended."""
        while True:
            if self._holder.done() and not self._holder.cancelled():
                self._holder.result()
            if self._refusals or self._newest is not None:
                return True
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return False
            self._changed.clear()
            await self._changed.wait()

    async def _read(self, requests: AsyncIterator[pb.NavigateRequest]) -> None:
        index, limit_s = 0, self._settings.observation_timeout_s
        try:
            while True:
                try:
                    async with asyncio.timeout(limit_s):
                        request = await anext(requests, None)
                except TimeoutError as error:
                    raise NothingSeen("observation", limit_s) from error
                if request is None or self._holder.done():
                    break
                if request.WhichOneof("event") != "observation":
                    got = request.WhichOneof("event") or "nothing"
                    raise InvalidRequest("event", f"event must be an observation after the start, got {got}")
                self._take(index, request.observation)
                index += 1
                self._changed.set()
                while len(self._refusals) >= _MOST_REFUSALS:  # who does not read is not read
                    self._told.clear()
                    await self._told.wait()
        except Exception as error:  # told by the loop that answers, in its turn
            self._failure = error
        self._ended = True
        self._changed.set()

    def _take(self, index: int, observation: pb.Observation) -> None:
        """Books an observation; planning from it comes later."""
        now_s = time.monotonic()
        try:
            taken_at_s = navigate_convert.to_taken_at(observation)
            self._robot.check_time(taken_at_s, now_s)
            executed = navigate_convert.to_executed(observation, self._pilot.actions, first=not self._episode.begun)
            image = navigate_convert.to_image(
                observation, self._pilot.frame_shape, max_pixels=self._settings.max_image_pixels
            )
            self._pilot.see(self._episode, image, executed, field="observation.frame")
        except InvalidRequest as error:
            self._refuse(index, error.field or "observation", error.reason, error.message)
            return
        self._episode.saw(executed)
        self._robot.observed(taken_at_s, len(executed))
        if self._newest is not None:
            self._dropped_count += 1
            self._metrics.observations.labels("dropped").inc()
        self._newest = _Seen(index, now_s, time.monotonic() - now_s)

    async def _answer(self, seen: _Seen) -> pb.NavigateResponse:
        robot, pilot = self._robot, self._pilot
        begun_s = time.monotonic()
        age_s = robot.age_s(begun_s)
        within_s = robot.time_left_s(age_s)
        slot = robot.slot(age_s + pilot.latency_s(within_s))
        look = Look(slot.executing, slot.count, within_s, self._frames, standing=robot.left_count == 0)
        try:
            decision = await pilot.decide(self._episode, look)
        except WorldtreeError as error:
            if error.kind not in _PASSING:
                raise
            self._metrics.observations.labels("refused").inc()
            refusal = pb.Refusal(observation=seen.index, reason=error.reason, message=error.message)
            return pb.NavigateResponse(refusal=refusal)
        robot.planned(slot, decision.actions)
        decision = replace(
            decision,
            queue_s=decision.queue_s + begun_s - seen.arrived_s - seen.read_s,
            encode_s=decision.encode_s + seen.read_s,
        )
        total_s = time.monotonic() - seen.arrived_s
        self._metrics.observations.labels("planned").inc()
        self._metrics.decision_seconds.labels(pilot.planner).observe(total_s)
        dropped_count, self._dropped_count = self._dropped_count, 0
        chunk = navigate_convert.from_decision(
            decision, slot, pilot.frame_shape, observation=seen.index, dropped_count=dropped_count, total_s=total_s
        )
        return pb.NavigateResponse(chunk=chunk)

    def _refuse(self, index: int, field: str, reason: str, message: str) -> None:
        self._metrics.observations.labels("refused").inc()
        self._refusals.append(pb.Refusal(observation=index, field=field, reason=reason, message=message))
