"""One operation from its intended start to its end, through the SDK, as a user's program would do it."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from worldtree.aio import Client, World
from worldtree.errors import DeadlineExceeded, ResourceExhausted, WorldtreeError

from worldtree_loadtest.mix import (
    GenerateOperation,
    ImagineOperation,
    Operation,
    PlayOperation,
    PredictOperation,
    RobotOperation,
    RolloutOperation,
    SessionOperation,
    StepOperation,
)
from worldtree_loadtest.recorder import TIMED_OUT, Outcome
from worldtree_loadtest.scenario import Scenario

_STEERING = 3  # of a model's actions, the first so many are chosen from: left, right, forward
_LATE_MAX = 0.01  # of the chunks of a play that is still a good one
_TTL_MAX_S = 86_400.0  # what servers give at most
_SETTLE_S = 0.25  # after a call was given up the server may hold its session a moment longer


@dataclass(slots=True)
class _Progress:
    """What an operation has brought so far; it stands when the operation fails."""

    work: int = 0
    first_s: float | None = None  # when the answer that counts came
    chunk_count: int = 0
    late_chunk_count: int = 0
    decisions_s: list[float] | None = None


class Operations:
    """Does operations against one server. Open it before the clock begins: sessions are held open then."""

    def __init__(self, client: Client, scenario: Scenario) -> None:
        self._client = client
        self.scenario = scenario
        self._chance = random.Random(scenario.seed)  # noqa: S311 - a load, not a secret
        # Seeds of their own for each run: what an earlier one left in the server's cache is no help.
        self._seeds = itertools.count(random.SystemRandom().randrange(1 << 40))
        self._common_seed = next(self._seeds)
        self._worlds: asyncio.Queue[World] = asyncio.Queue()
        self.held: list[World] = []  # those that are held open
        self._start: str | None = None
        self._action_count = _STEERING
        self._noise = np.random.default_rng(scenario.seed)
        self._image_shape: tuple[int, ...] = ()
        self._moves: list[str] | None = None

    async def open(self) -> None:
        """Learns of the model, and opens the sessions that are held."""
        info = await self._client.model(self.scenario.model)
        self._start = info.starts[0] if info.starts else None
        self._moves = list(info.actions[:_STEERING]) or None
        self._action_count = len(self._moves or [0])
        if any(isinstance(operation, PredictOperation) for operation in self.scenario.operations):
            tasks = await self._client.multitask.tasks()
            self._image_shape = (tasks.height_px, tasks.width_px, 3)
        shared = (StepOperation, RolloutOperation, ImagineOperation)
        if not any(isinstance(operation, shared) for operation in self.scenario.operations):
            return
        gate = asyncio.Semaphore(8)

        async def one() -> None:
            async with gate:
                world = await self._world()
            self.held.append(world)
            self._worlds.put_nowait(world)

        await asyncio.gather(*(one() for _ in range(self.scenario.sessions)))

    async def close(self) -> None:
        """Closes the sessions that are held. What cannot be closed is left to its lease."""
        await asyncio.gather(*(world.close() for world in self.held), return_exceptions=True)

    async def do(self, operation: Operation, intended_s: float) -> Outcome:
        """The operation, and how it ended; raises nothing but a cancellation. `intended_s`: by `time.perf_counter`."""
        progress = _Progress()
        # An answer to a play or a robot's life may take as long as it takes; all else is over at the deadline.
        unbounded = isinstance(operation, (PlayOperation, RobotOperation))
        until_s = intended_s + operation.deadline_s
        try:
            async with asyncio.timeout(None if unbounded else max(0.0, until_s - time.perf_counter())):
                await self._run(operation, progress, until_s)
        except TimeoutError:
            return self._ended("failed", operation, intended_s, progress, reason=TIMED_OUT)
        except ResourceExhausted as error:
            retry_info = error.retry_after_s is not None
            return self._ended("refused", operation, intended_s, progress, reason=error.reason, retry_info=retry_info)
        except DeadlineExceeded:
            return self._ended("failed", operation, intended_s, progress, reason=TIMED_OUT)
        except WorldtreeError as error:
            return self._ended("failed", operation, intended_s, progress, reason=error.reason)
        except Exception as error:  # of our own, or of the SDK: it must be seen, and the load goes on
            return self._ended("failed", operation, intended_s, progress, reason=type(error).__name__)
        return self._ended("ok", operation, intended_s, progress)

    def _ended(
        self,
        ending: str,
        operation: Operation,
        intended_s: float,
        progress: _Progress,
        *,
        reason: str = "",
        retry_info: bool = False,
    ) -> Outcome:
        answered_s = time.perf_counter() if progress.first_s is None else progress.first_s
        latency_s = answered_s - intended_s
        robot = isinstance(operation, RobotOperation)
        late_count = progress.late_chunk_count
        return Outcome(
            ending,  # type: ignore[arg-type]
            latency_s,
            good=ending == "ok"
            and (robot or latency_s <= operation.deadline_s)
            and late_count <= _LATE_MAX * progress.chunk_count,
            reason=reason,
            retry_info=retry_info,
            work=progress.work,
            chunk_count=progress.chunk_count,
            late_chunk_count=late_count,
            decisions_s=tuple(progress.decisions_s or ()),
            period_s=operation.period_s if isinstance(operation, RobotOperation) else 0.0,
        )

    async def _run(self, operation: Operation, progress: _Progress, until_s: float) -> None:
        """Each call says until when its answer is waited for: a server that knows need not make what comes too late."""
        match operation:
            case SessionOperation():
                async with await self._world(_left(until_s)) as world:
                    if operation.action_count:
                        await world.step(self._actions(operation.action_count), timeout=_left(until_s))
                progress.work = operation.action_count
            case StepOperation():
                async with self._held_world() as world:
                    await world.step(self._actions(operation.action_count), timeout=_left(until_s))
                progress.work = operation.action_count
            case PlayOperation():
                await self._play(operation, progress, _left(until_s))
            case RolloutOperation():
                sequences = [self._actions(operation.depth) for _ in range(operation.sequence_count)]
                seeds = [next(self._seeds) for _ in sequences]
                async with self._held_world() as world:
                    await world.rollout(sequences, seeds=seeds, detail="none", timeout=_left(until_s))
                progress.work = operation.sequence_count * operation.depth
            case GenerateOperation():
                await self._generate(operation, _left(until_s))
                progress.work = operation.action_count
            case ImagineOperation():
                async with self._held_world() as world:
                    imagined = await self._client.navigator.imagine(
                        world,
                        candidates=operation.candidates,
                        horizon=operation.horizon,
                        goal=operation.goal,
                        seed=next(self._seeds),
                        keep=1,
                        actions=self._moves,
                        frames=False,
                        timeout=_left(until_s),
                    )
                progress.work = len(imagined) * operation.horizon
            case PredictOperation():
                images = self._noise.integers(256, size=(operation.image_count, *self._image_shape), dtype=np.uint8)
                await self._client.multitask.predict(images, timeout=_left(until_s))
            case RobotOperation():
                await self._robot(operation, progress)

    async def _play(self, operation: PlayOperation, progress: _Progress, timeout_s: float) -> None:
        async with await self._world(timeout_s) as world:
            actions = self._actions(operation.chunk_count)
            async for chunk in world.play(actions, fps=operation.fps):
                if progress.first_s is None:
                    progress.first_s = time.perf_counter()
                progress.chunk_count += 1
                progress.work += 1
                progress.late_chunk_count += chunk.late_s > 0

    async def _generate(self, operation: GenerateOperation, timeout_s: float) -> None:
        seed, actions = next(self._seeds), self._actions(operation.action_count)
        if operation.distinct_count:
            weights = [1 / rank**operation.skew for rank in range(1, operation.distinct_count + 1)]
            number = self._chance.choices(range(operation.distinct_count), weights)[0]
            seed, own = self._common_seed + number, random.Random(number)  # noqa: S311
            actions = [own.randrange(self._action_count) for _ in range(operation.action_count)]
        await self._client.generate(
            self.scenario.model,
            start=self._start,
            actions=actions,
            seed=seed,
            nfe=self.scenario.nfe,
            timeout=timeout_s,
        )

    async def _robot(self, operation: RobotOperation, progress: _Progress) -> None:
        progress.decisions_s = []
        async with await self._world(operation.deadline_s) as world:
            for _ in range(operation.decision_count):
                asked_s = time.perf_counter()
                if operation.planner is None:
                    actions: Sequence[int] = self._actions(1)
                else:
                    plan = await self._client.navigator.plan(
                        world,
                        goal=operation.goal,
                        planner=operation.planner,
                        frames=False,
                        timeout=operation.deadline_s,
                    )
                    actions = [_id(plan.actions[0])]
                await world.step(actions, timeout=operation.deadline_s)
                took_s = time.perf_counter() - asked_s
                progress.decisions_s.append(took_s)
                progress.work += 1
                await asyncio.sleep(max(0.0, operation.period_s - took_s))

    async def _world(self, timeout_s: float | None = None) -> World:
        scenario = self.scenario
        return await self._client.world(
            scenario.model,
            start=self._start,
            seed=next(self._seeds),
            nfe=scenario.nfe,
            ttl=min(scenario.seconds + 120, _TTL_MAX_S),
            timeout=timeout_s,
        )

    @asynccontextmanager
    async def _held_world(self) -> AsyncIterator[World]:
        """A session that nobody else uses meanwhile. Waiting for one counts, as all waiting does."""
        world = await self._worlds.get()
        settle_s = 0.0
        try:
            yield world
        except BaseException as error:
            settle_s = 0.0 if isinstance(error, ResourceExhausted) else _SETTLE_S
            raise
        finally:
            asyncio.get_running_loop().call_later(settle_s, self._worlds.put_nowait, world)

    def _actions(self, count: int) -> list[int]:
        return [self._chance.randrange(self._action_count) for _ in range(count)]


def _left(until_s: float) -> float:
    return max(0.001, until_s - time.perf_counter())


def _id(action: object) -> int:
    return action if isinstance(action, int) else int(getattr(action, "id", 0))
