"""The open loop: starts every operation when it is meant to start, whatever became of those before it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from worldtree_loadtest.mix import AnyOperation
from worldtree_loadtest.operations import Operations
from worldtree_loadtest.recorder import Outcome, Recorder
from worldtree_loadtest.scenario import Scenario
from worldtree_loadtest.schedule import Arrival, Plateau, arrivals, plateaus, turns

_GRACE_S = 1.0  # after an interrupt, for what is nearly done
_LOOK_S = 0.2  # an interrupt that comes while the last ones are waited for is noticed within this


@dataclass
class Recording:
    """A run: what was meant, what came of it, how late this process itself was in sending."""

    scenario: Scenario
    plateaus: list[Plateau]
    recorder: Recorder
    interrupted: bool = False
    ran_s: float = 0.0
    send_delay_max_s: float = 0.0  # the generator's own: large ones say that this machine is too small for the load


@dataclass
class Standing:
    """Where a run stands, for whoever watches it."""

    at_s: float = 0.0
    plateau: str = ""
    sent: int = 0
    in_flight: int = 0
    endings: dict[str, int] = field(default_factory=dict)


class Generator:
    """One run of a scenario. `stop` ends it early, with what was measured so far."""

    def __init__(self, scenario: Scenario, operations: Operations, *, on_progress: Callable[[Standing], None]) -> None:
        self._scenario = scenario
        self._operations = operations
        self._on_progress = on_progress
        self._stopping = asyncio.Event()
        self._interrupted = False
        self._standing = Standing()
        self._tasks: set[asyncio.Task[None]] = set()
        self._recording = Recording(scenario, plateaus(scenario), Recorder(scenario.seconds))

    def stop(self) -> None:
        """Ends it early. What is under way has a moment."""
        self._interrupted = True
        self._stopping.set()

    def finish(self) -> None:
        """Sends no more. What is under way goes on to its end."""
        self._stopping.set()

    async def run(self) -> Recording:
        recording, scenario = self._recording, self._scenario
        operations = scenario.operations
        turn = turns([operation.weight for operation in operations])
        begun_s = time.perf_counter()
        for arrival in arrivals(scenario):
            intended_s = begun_s + arrival.at_s
            await self._wait_until(intended_s)
            if self._stopping.is_set():
                break
            operation = operations[next(turn)]
            recording.send_delay_max_s = max(recording.send_delay_max_s, time.perf_counter() - intended_s)
            if len(self._tasks) >= scenario.max_in_flight:
                self._note(arrival, operation.kind, Outcome("unsent", 0.0, reason="MAX_IN_FLIGHT"))
                continue
            task = asyncio.create_task(self._one(arrival, operation, intended_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._tell(arrival)
        await self._wait_until(begun_s + scenario.seconds)
        recording.ran_s = time.perf_counter() - begun_s
        await self._finish()
        recording.interrupted = self._interrupted
        return recording

    async def _one(self, arrival: Arrival, operation: AnyOperation, intended_s: float) -> None:
        try:
            outcome = await self._operations.do(operation, intended_s)
        except asyncio.CancelledError:
            self._note(arrival, operation.kind, Outcome("interrupted", 0.0))
            raise
        self._note(arrival, operation.kind, outcome)

    def _note(self, arrival: Arrival, kind: str, outcome: Outcome) -> None:
        self._recording.recorder.add(arrival.plateau, kind, arrival.at_s, outcome)
        endings = self._standing.endings
        endings[outcome.ending] = endings.get(outcome.ending, 0) + 1

    def _tell(self, arrival: Arrival) -> None:
        self._standing.at_s = arrival.at_s
        self._standing.plateau = self._recording.plateaus[arrival.plateau].name
        self._standing.sent += 1
        self._standing.in_flight = len(self._tasks)
        self._on_progress(self._standing)

    async def _wait_until(self, moment_s: float) -> None:
        """Or until the run is stopped."""
        left_s = moment_s - time.perf_counter()
        if left_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), left_s)

    async def _finish(self) -> None:
        """Waits for what is under way: to its end, or after an interrupt a moment only."""
        until_s: float | None = None
        while self._tasks and (until_s is None or time.perf_counter() < until_s):
            await asyncio.wait(self._tasks, timeout=_LOOK_S)
            if self._interrupted and until_s is None:
                until_s = time.perf_counter() + _GRACE_S
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
