"""A locust user: sessions, steps, plays, rollouts and imaginings, as often as their weights say.

locust -f clients/loadtest/locustfile.py --host localhost:7070 --headless --users 20 --spawn-rate 5 --run-time 1m

Locust is a closed loop: a user waits for an answer before it asks again, so a server that is slow is asked less. For
the latencies of an open loop there is `worldtree bench`. Locust's users are greenlets; gRPC's own event engine knows of
them once it is told (`grpc.experimental.gevent`), which has to come before the first channel.
"""

import random
import time
from collections.abc import Callable
from typing import Any

import grpc.experimental.gevent
import worldtree
from locust import User, between, events, task

from worldtree_loadtest.mix import GOAL

grpc.experimental.gevent.init_gevent()

_STEERING = 3  # of a model's actions, the first so many are chosen from
_TTL_S = 300.0


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: Any) -> None:
    parser.add_argument("--model", default="minigrid", env_var="WORLDTREE_MODEL", help="whose worlds are opened")
    parser.add_argument("--api-key", default="", env_var="WORLDTREE_API_KEY", help="shown to the gateway")
    parser.add_argument("--goal", default=GOAL, env_var="WORLDTREE_GOAL", help="of imaginings")
    parser.add_argument("--fps", type=float, default=5.0, env_var="WORLDTREE_FPS", help="of plays")


class WorldtreeUser(User):
    """One client with one world of its own. `--host`: HOST:PORT of a gateway, or of a video service."""

    wait_time = between(0.1, 0.5)
    host = "localhost:7070"

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self._model, self._fps, self._goal = options.model, options.fps, options.goal
        self._client = worldtree.Client(self.host, api_key=options.api_key or None)
        info = self._client.model(self._model)
        self._start = info.starts[0] if info.starts else None
        self._moves = list(info.actions[:_STEERING]) or None
        self._action_count = len(self._moves or [0])
        self._world = self._open()

    def on_stop(self) -> None:
        self._world.close()
        self._client.close()

    @task(10)
    def step(self) -> None:
        self._timed("Step", lambda: self._world.step(self._actions(1)))

    @task(2)
    def session(self) -> None:
        """One that lives for a step."""

        def live() -> None:
            with self._open() as world:
                world.step(self._actions(1))

        self._timed("session", live)

    @task(1)
    def play(self) -> None:
        def watch() -> None:
            with self._open() as world:
                for _ in world.play(self._actions(5), fps=self._fps):
                    pass

        self._timed("Play of 5 chunks", watch)

    @task(1)
    def rollout(self) -> None:
        futures = [self._actions(3) for _ in range(4)]
        self._timed("Rollout of 4 x 3", lambda: self._world.rollout(futures, detail="last"))

    @task(1)
    def imagine(self) -> None:
        def imagine() -> None:
            self._client.navigator.imagine(
                self._world, goal=self._goal, candidates=4, horizon=2, keep=1, actions=self._moves
            )

        self._timed("Imagine 4 x 2", imagine)

    def _open(self) -> worldtree.World:
        return self._client.world(self._model, start=self._start, seed=random.randrange(1 << 40), ttl=_TTL_S)  # noqa: S311

    def _actions(self, count: int) -> list[int]:
        return [random.randrange(self._action_count) for _ in range(count)]  # noqa: S311

    def _timed(self, name: str, call: Callable[[], object]) -> None:
        begun_s, error = time.perf_counter(), None
        try:
            call()
        except worldtree.WorldtreeError as caught:
            error = caught
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - begun_s) * 1000,
            response_length=0,
            exception=error,
            context={},
        )
