"""Requests to planners: one image and what to do about it, or a sequence of them, which is a robot's episode."""

import time
from collections.abc import Callable

from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree_runtime.errors import Exhausted

from worldtree_gateway import oip_planners
from worldtree_gateway.oip_answer import Answer, Answers, seconds
from worldtree_gateway.oip_calls import Asker, Calls, explained
from worldtree_gateway.oip_models import Model
from worldtree_gateway.oip_requests import InferRequest
from worldtree_gateway.oip_sequences import Sequence
from worldtree_gateway.oip_statistics import Spent
from worldtree_gateway.openpi_episodes import Episodes
from worldtree_gateway.openpi_navigation import Navigation
from worldtree_gateway.openpi_observation import Observation
from worldtree_gateway.openpi_robot import Robot


class Steering:
    """`timeout_s`: for one chunk of actions. `limit`: robots at a time, each of which keeps a call open on a connection
    that they share.
    """

    def __init__(self, calls: Calls, *, timeout_s: float, limit: int) -> None:
        self._calls = calls
        self._timeout_s = timeout_s
        self._limit = limit
        self._robots: set[Robot] = set()
        self._episodes = Episodes(keep_s=0.0, limit=0)  # a sequence's is kept with it, and has no name

    async def alone(self, request: InferRequest, model: Model, asker: Asker) -> Answers:
        """A request of no sequence: what to do about an image that nothing came before."""
        course = oip_planners.course(model, request.inputs, request.outputs)
        robot = self._robot(lambda: asker)
        try:
            async with explained(oip_planners.WORDS):
                chunk = await self._decide(robot, oip_planners.observation(request.inputs, course), asker)
        finally:
            self._end(robot)
        yield _answer(chunk)

    async def in_turn(self, request: InferRequest, model: Model, turn: Sequence, asker: Asker) -> Answers:
        """A request of a sequence, whose turn it is."""
        options, inputs = request.options, request.inputs
        if options.start or not options.end:
            model.check_complete(inputs)
        if options.start:
            course = oip_planners.course(model, inputs, request.outputs)
            self.give_back(turn)  # it is started anew
            turn.robot, turn.course = self._robot(lambda: turn.asker), course
        else:
            oip_planners.check_goes_on(inputs)
        assert turn.robot is not None, "it is open"
        assert turn.course is not None, "it is open"
        chunk: pb.ActionChunk | None = None
        try:
            if "image" in inputs:
                async with explained(oip_planners.WORDS):
                    chunk = await self._decide(turn.robot, oip_planners.observation(inputs, turn.course), asker)
        except Exception:
            if options.start:
                self.give_back(turn)  # what never began well is no sequence
            raise
        if options.end:
            self.give_back(turn)
        yield Answer({}) if chunk is None else _answer(chunk)

    def give_back(self, turn: Sequence) -> None:
        """Ends the navigation of a sequence, if there is one."""
        robot, turn.robot = turn.robot, None
        if robot is not None:
            self._end(robot)

    def _robot(self, asker: Callable[[], Asker]) -> Robot:
        async def begin(start: pb.Start) -> Navigation:
            return await Navigation.begin(self._calls.robots, start, asker().metadata)

        if len(self._robots) >= self._limit:
            raise Exhausted(
                "ROBOTS_FULL",
                f"{self._limit} robots are steered by the inference protocol, the most there may be (setting "
                "gateway.max_connection_streams)",
                retry_after_s=1.0,
                limit=self._limit,
            )
        robot = Robot("", self._episodes, begin, timeout_s=self._timeout_s)
        self._robots.add(robot)
        return robot

    def _end(self, robot: Robot) -> None:
        self._robots.discard(robot)
        robot.close()

    async def _decide(self, robot: Robot, seen: Observation, asker: Asker) -> pb.ActionChunk:
        left_s = None if asker.ends_s is None else max(0.0, asker.ends_s - time.monotonic())
        chunk = await robot.decide(seen, within_s=left_s)
        robot.sent()
        return chunk


def _answer(chunk: pb.ActionChunk) -> Answer:
    timing = chunk.timing
    spent = Spent(
        inference_count=1,
        queue_s=seconds(timing.queue_duration),
        infer_s=seconds(timing.world_model_duration) + seconds(timing.planner_duration),
    )
    return Answer(oip_planners.outputs(chunk), spent)
