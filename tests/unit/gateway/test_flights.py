"""Whoever rides along gets every message once and in order, whatever the others do, and nothing stays behind."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from worldtree_gateway.flights import Flights, LeftBehind, Source
from worldtree_runtime.errors import DeadlineExceeded
from worldtree_runtime.status import to_status


class Backend:
    """A source that counts its calls. `gate` holds each call back after its first message."""

    def __init__(self, messages: list[bytes], *, gated: bool = False) -> None:
        self.messages = messages
        self.call_count = 0
        self.ended_count = 0
        self.timeouts_s: list[float | None] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.errors: list[Exception] = []  # of the calls to come, in order; each after a first message
        self.raised: Exception | None = None
        self.sent_count = 0
        if not gated:
            self.gate.set()

    async def source(self, timeout_s: float | None) -> AsyncIterator[bytes]:
        self.call_count += 1
        self.timeouts_s.append(timeout_s)
        try:
            for index, message in enumerate(self.messages):
                if index == 1:
                    await self.gate.wait()
                    if self.errors:
                        self.raised = self.errors.pop(0)
                        raise self.raised
                await asyncio.sleep(0)
                self.sent_count += 1
                self.begun.set()
                yield message
        finally:
            self.ended_count += 1


class Log:
    def __init__(self) -> None:
        self.landed: list[tuple[bytes, ...]] = []

    def land(self, messages: tuple[bytes, ...]) -> None:
        self.landed.append(messages)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def flights(
    flight_bytes: int = 10_000, total_bytes: int = 10_000, window_bytes: int = 100, clock: Clock | None = None
) -> Flights:
    return Flights(
        flight_bytes=flight_bytes, total_bytes=total_bytes, window_bytes=window_bytes, clock=clock or Clock()
    )


async def ride(
    sky: Flights, source: Source, log: Log, *, timeout_s: float | None = None, pause_s: float = 0.0
) -> list[bytes]:
    got: list[bytes] = []
    with sky.ride(b"k", source, log.land, timeout_s=timeout_s) as rider:
        try:
            async for message in rider.messages():
                got.append(message)
                if pause_s:
                    await asyncio.sleep(pause_s)
        except LeftBehind as behind:
            rest = [message async for message in source(rider.left_s)]
            got += rest[behind.position :]
    return got


def deadline_exceeded(said: grpc.aio.Metadata | None = None) -> grpc.aio.AioRpcError:
    """`said`: by a backend; None: the transport made it up."""
    trailers = grpc.aio.Metadata() if said is None else said
    return grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), trailers)


async def test_all_who_ask_while_it_flies_share_one_call_and_one_recording() -> None:
    sky, log, backend = flights(), Log(), Backend([b"a", b"b", b"c"])
    answers = await asyncio.gather(*(ride(sky, backend.source, log) for _ in range(10)))
    assert answers == [[b"a", b"b", b"c"]] * 10
    assert backend.call_count == 1
    assert log.landed == [(b"a", b"b", b"c")]
    sky.check_integrity()


async def test_the_last_one_to_leave_ends_the_call_and_nothing_is_recorded() -> None:
    sky, log, backend = flights(), Log(), Backend([b"a", b"b"], gated=True)
    riding = [asyncio.create_task(ride(sky, backend.source, log)) for _ in range(3)]
    await backend.begun.wait()
    for task in riding:
        assert backend.ended_count == 0
        task.cancel()
        await asyncio.wait([task])
    await asyncio.sleep(0.01)
    assert backend.ended_count == 1
    assert log.landed == []
    sky.check_integrity()


async def test_a_failure_reaches_every_rider_and_is_not_kept_for_the_next() -> None:
    sky, log, backend = flights(), Log(), Backend([b"a", b"b"])
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())
    backend.errors = [error]
    ends = await asyncio.gather(*(ride(sky, backend.source, log) for _ in range(3)), return_exceptions=True)
    assert ends == [error] * 3
    assert await ride(sky, backend.source, log) == [b"a", b"b"]
    assert backend.call_count == 2
    sky.check_integrity()


async def test_the_call_has_the_time_of_its_leader_and_goes_on_for_those_with_more() -> None:
    clock = Clock()
    sky, log, backend = flights(clock=clock), Log(), Backend([b"a", b"b", b"c"], gated=True)
    backend.errors = [deadline_exceeded()]
    hurried = asyncio.create_task(ride(sky, backend.source, log, timeout_s=5))
    await backend.begun.wait()
    patient = asyncio.create_task(ride(sky, backend.source, log))
    await asyncio.sleep(0)
    hurried.cancel()
    await asyncio.wait([hurried])
    clock.now_s += 5
    backend.gate.set()
    assert await patient == [b"a", b"b", b"c"]
    assert backend.timeouts_s == [5, None]
    assert log.landed == [(b"a", b"b", b"c")], "no message twice"
    sky.check_integrity()


@pytest.mark.parametrize("timeout_s", [None, 5, 60])
@pytest.mark.parametrize("worded", [False, True])
async def test_a_deadline_that_is_not_the_calls_own_is_a_failure_like_any(
    timeout_s: float | None, worded: bool
) -> None:
    clock = Clock()
    sky, log, backend = flights(clock=clock), Log(), Backend([b"a", b"b"], gated=True)
    status = to_status(DeadlineExceeded("UNREAD", "nothing was read for 300 s"), request_id="r")
    details = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    backend.errors = [deadline_exceeded(details if worded else None)]
    first = asyncio.create_task(ride(sky, backend.source, log, timeout_s=timeout_s))
    await backend.begun.wait()
    patient = asyncio.create_task(ride(sky, backend.source, log))
    await asyncio.sleep(0)
    clock.now_s += 5 if worded else 4
    backend.gate.set()
    assert await asyncio.gather(first, patient, return_exceptions=True) == [backend.raised] * 2
    assert backend.call_count == 1
    sky.check_integrity()


async def test_a_deadline_that_is_everybodys_ends_the_flight() -> None:
    sky, log, backend = flights(), Log(), Backend([b"a", b"b"])
    backend.errors = [deadline_exceeded()]
    with pytest.raises(grpc.aio.AioRpcError):
        await ride(sky, backend.source, log, timeout_s=0.0)
    assert backend.call_count == 1
    sky.check_integrity()


async def test_recordings_together_stay_within_their_room() -> None:
    sky, log = flights(flight_bytes=1000, total_bytes=1500), Log()
    backends = [Backend([b"x" * 400] * 2) for _ in range(3)]

    async def one(number: int) -> int:
        count = 0
        key = b"%d" % number
        with sky.ride(key, backends[number].source, log.land, timeout_s=None) as rider:
            async for _ in rider.messages():
                count += 1
                assert sky.held_bytes <= 1500 + 3 * 400
        return count

    assert await asyncio.gather(*(one(number) for number in range(3))) == [2, 2, 2]
    assert len(log.landed) < 3, "they would have held 2,400 bytes"
    sky.check_integrity()


async def test_nobody_reading_stops_the_call_at_the_window() -> None:
    sky, log = flights(flight_bytes=50, window_bytes=100), Log()
    backend = Backend([b"x" * 10] * 100)
    with sky.ride(b"k", backend.source, log.land, timeout_s=None) as rider:
        await asyncio.sleep(0.05)
        assert backend.sent_count <= 12
        got = [message async for message in rider.messages()]
    assert len(got) == 100
    assert log.landed == []
    sky.check_integrity()


async def test_what_a_slow_rider_has_not_had_takes_room_until_it_leaves() -> None:
    sky, log = flights(flight_bytes=1000, total_bytes=1500), Log()
    slow_backend, late_backend = Backend([b"x" * 400] * 2), Backend([b"x" * 400] * 2)
    with sky.ride(b"slow", slow_backend.source, log.land, timeout_s=None):
        await asyncio.sleep(0.05)
        assert slow_backend.ended_count == 1, "its call is over, and it has read nothing"
        assert sky.held_bytes == 800
        with sky.ride(b"late", late_backend.source, log.land, timeout_s=None) as late:
            assert [message async for message in late.messages()] == [b"x" * 400] * 2
        assert len(log.landed) == 1, "there was no room to record the second"
    sky.check_integrity()


async def test_where_all_room_is_taken_a_flight_holds_one_message() -> None:
    sky, log = flights(flight_bytes=1000, total_bytes=500, window_bytes=1000), Log()
    with sky.ride(b"full", Backend([b"x" * 600]).source, log.land, timeout_s=None):
        await asyncio.sleep(0.01)
        backend = Backend([b"x" * 10] * 20)
        with sky.ride(b"k", backend.source, log.land, timeout_s=None) as rider:
            await asyncio.sleep(0.05)
            assert backend.sent_count == 1
            assert len([message async for message in rider.messages()]) == 20
    sky.check_integrity()


async def test_a_rider_who_was_left_behind_holds_no_call_that_nobody_else_reads() -> None:
    sky, log, backend = flights(flight_bytes=50, window_bytes=30), Log(), Backend([b"x" * 10] * 100)
    with sky.ride(b"k", backend.source, log.land, timeout_s=None) as slow:
        with sky.ride(b"k", backend.source, log.land, timeout_s=None) as fast:
            seen = 0
            async for _ in fast.messages():
                seen += 1
                if seen == 20:
                    break
        with pytest.raises(LeftBehind):
            await anext(slow.messages())
        await asyncio.sleep(0.01)
        assert backend.ended_count == 1
        assert sky.held_bytes == 0
    sky.check_integrity()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("flight_bytes", [60, 100_000])
async def test_riders_of_every_speed_who_come_and_go_get_the_whole_answer_in_order(
    seed: int, flight_bytes: int
) -> None:
    chance = random.Random(seed)
    sky, log = flights(flight_bytes=flight_bytes, total_bytes=100_000, window_bytes=chance.choice([1, 30, 200])), Log()
    messages = [b"%03d" % index * chance.randint(1, 5) for index in range(40)]
    backend = Backend(messages)
    riding: list[asyncio.Task[list[bytes]]] = []
    for _ in range(12):
        pause_s = chance.choice([0.0, 0.0, 0.0005, 0.002])
        riding.append(asyncio.create_task(ride(sky, backend.source, log, pause_s=pause_s)))
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.003]))
        if chance.random() < 0.3:
            chance.choice(riding).cancel()
    ends = await asyncio.gather(*riding, return_exceptions=True)
    for end in ends:
        assert end == messages or isinstance(end, asyncio.CancelledError)
    assert all(landed == tuple(messages) for landed in log.landed)
    await asyncio.sleep(0)
    assert backend.ended_count == backend.call_count
    sky.check_integrity()
