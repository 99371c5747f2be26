"""One call at a backend for all callers who ask the same thing at the same time.

The call belongs to none of them: it runs in a task of its own that ends early only when the last caller has left. So
a caller who cancels takes nothing from the others, and a failure reaches all of them as it is.

What is held, and for how long:

    messages [0 .. first)      dropped: only once the flight is too large to be cached, and a rider has had them
    messages [first .. last]   held until the last rider has left: all of them while recording, else at most
                               `window_bytes`, or one where all flights together have no room left
    rider.position             the next message that rider reads; below `first` it was left behind, and goes on with
                               a call of its own (the answer is a pure function of the request)
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import grpc
import grpc.aio
from worldtree_runtime.tracing import current_trace

from worldtree_gateway.verdicts import status_of

# Opens the call with so many seconds to live (None: no limit) and yields its messages.
Source = Callable[[float | None], AsyncIterator[bytes]]
# Gets the messages of a flight that was recorded to its end.
Landed = Callable[[tuple[bytes, ...]], None]

_TIME_LEFT_MIN_S = 0.005  # less isn't worth another call, and is none


class LeftBehind(Exception):  # noqa: N818 - not a failure
    """The messages this rider needs next are gone. `position` says how many it has had."""

    def __init__(self, position: int) -> None:
        super().__init__(f"message {position} was dropped")
        self.position = position


class Rider:
    """One caller on a flight."""

    def __init__(self, flight: "Flight", *, leads: bool, timeout_s: float | None, clock: Callable[[], float]) -> None:
        self.flight = flight
        self.leads = leads
        self.position = 0
        self._clock = clock
        self._deadline_s = None if timeout_s is None else clock() + timeout_s

    @property
    def left_s(self) -> float | None:
        """Until this caller's deadline. None: it has none."""
        return None if self._deadline_s is None else self._deadline_s - self._clock()

    async def messages(self) -> AsyncIterator[bytes]:
        """Raises what the flight's call raised, or LeftBehind."""
        try:
            while (message := await self.flight.read(self.position)) is not None:
                self.position += 1
                yield message
                self.flight.was_read()
        except LeftBehind:
            self.flight.leave(self)  # a call that only this one was waiting for would wait for it in turn
            raise


class Flight:
    """One call, its recording so far, and those who listen."""

    def __init__(
        self, flights: "Flights", key: bytes, source: Source, landed: Landed, clock: Callable[[], float]
    ) -> None:
        self.recording = True
        self.trace = current_trace()  # of who was first
        self._flights = flights
        self._key = key
        self._source = source
        self._on_landed = landed
        self._clock = clock
        self._messages: deque[bytes] = deque()
        self._first = 0
        self._held_bytes = 0
        self._riders: set[Rider] = set()
        self._changed = asyncio.Event()
        self._was_read = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def board(self, rider: Rider) -> None:
        self._riders.add(rider)
        if self._task is None:
            self._task = asyncio.create_task(self._fly(), name="flight")
            self._task.add_done_callback(self._landed)

    def leave(self, rider: Rider) -> None:
        self._riders.discard(rider)
        if not self._riders and self._task is not None:
            self._flights.unlist(self._key, self)  # at once, so that nobody boards what is about to end
            self._task.cancel()
            self._release()
        self.was_read()

    async def read(self, position: int) -> bytes | None:
        """Message `position`, once it is there. None: the call ended OK before it."""
        while True:
            index = position - self._first
            if index < 0:
                raise LeftBehind(position)
            if index < len(self._messages):
                return self._messages[index]
            assert self._task is not None
            if self._task.done():
                self._task.result()
                return None
            await self._changed.wait()

    def was_read(self) -> None:
        if not self.recording:
            self._was_read.set()

    async def _fly(self) -> None:
        try:
            await self._record()
            if self.recording:
                self._on_landed(tuple(self._messages))
        finally:
            self._flights.unlist(self._key, self)

    def _landed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # it is raised to the riders; where none is left, nobody needs it
        self._wake()

    async def _record(self) -> None:
        skip_count = 0
        while True:
            timeout_s = self._timeout_s()
            ends_s = None if timeout_s is None else self._clock() + timeout_s
            try:
                async for message in self._source(timeout_s):
                    if skip_count:
                        skip_count -= 1
                        continue
                    self._hold(message)
                    self._wake()
                    await self._keep_in_bounds()
                return
            except grpc.aio.AioRpcError as error:
                # the call had the time of those who were there at its start; others may have more
                if ends_s is None or not _ran_out(error, ends_s - self._clock()) or not self._has_time():
                    raise
                skip_count = self._first + len(self._messages)

    def _hold(self, message: bytes) -> None:
        self._messages.append(message)
        self._held_bytes += len(message)
        self._flights.held_bytes += len(message)

    def _release(self) -> None:
        """Not when the call has ended: a slow rider still holds what it has not had yet."""
        # the task and what it raised refer to this flight in a circle, which may live on for a while
        self._messages.clear()
        self._flights.held_bytes -= self._held_bytes
        self._held_bytes = 0

    async def _keep_in_bounds(self) -> None:
        if self.recording and self._flights.fits(self._held_bytes):
            return
        self.recording = False
        self._flights.unlist(self._key, self)  # whoever comes now couldn't have the beginning
        while self._held_bytes > self._flights.window_bytes:
            if any(rider.position > self._first for rider in self._riders):
                dropped = len(self._messages.popleft())
                self._first += 1
                self._held_bytes -= dropped
                self._flights.held_bytes -= dropped
            else:
                self._was_read.clear()
                await self._was_read.wait()  # nobody keeps up: neither shall the backend

    def _timeout_s(self) -> float | None:
        left_s = [rider.left_s for rider in self._riders]
        finite = [each for each in left_s if each is not None]
        return max(finite) if finite and len(finite) == len(left_s) else None

    def _has_time(self) -> bool:
        return any(rider.left_s is None or rider.left_s > _TIME_LEFT_MIN_S for rider in self._riders)

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()


class Flights:
    """The calls under way, by key. Recordings take `flight_bytes` each and `total_bytes` together, at most."""

    def __init__(
        self,
        *,
        flight_bytes: int,
        total_bytes: int,
        window_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.held_bytes = 0
        self._window_bytes = window_bytes
        self._flight_bytes = flight_bytes
        self._total_bytes = total_bytes
        self._clock = clock
        self._flights: dict[bytes, Flight] = {}

    @contextmanager
    def ride(
        self,
        key: bytes,
        source: Source,
        landed: Landed,
        *,
        timeout_s: float | None,
        join: bool = True,
    ) -> Iterator[Rider]:
        """A seat on the flight for `key`: on the one under way (unless `join` is false), else on a new one."""
        flight = self._flights.get(key) if join else None
        leads = flight is None
        if flight is None:
            flight = Flight(self, key, source, landed, self._clock)
            self._flights.setdefault(key, flight)
        rider = Rider(flight, leads=leads, timeout_s=timeout_s, clock=self._clock)
        flight.board(rider)
        try:
            yield rider
        finally:
            flight.leave(rider)

    def under_way(self, key: bytes) -> bool:
        return key in self._flights

    @property
    def window_bytes(self) -> int:
        """What a flight that is too large to be recorded may hold beyond the message that is being read."""
        return self._window_bytes if self.held_bytes <= self._total_bytes else 0

    def fits(self, flight_bytes: int) -> bool:
        """Whether a flight that holds so much may go on recording."""
        return flight_bytes <= self._flight_bytes and self.held_bytes <= self._total_bytes

    def unlist(self, key: bytes, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def check_integrity(self) -> None:
        """For the end of a test, when every caller has left."""
        assert not self._flights, f"{len(self._flights)} flights are still listed"
        assert self.held_bytes == 0, f"{self.held_bytes} bytes are still held"


def _ran_out(error: grpc.aio.AioRpcError, left_s: float) -> bool:
    """Whether a call had no more time of its own. A deadline that a backend speaks of in words is not ours."""
    is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and left_s <= _TIME_LEFT_MIN_S
    return is_late and not status_of(error).details
