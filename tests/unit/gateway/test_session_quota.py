"""What replicas say of a tenant's sessions, and what counts while one of them says nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.errors import SessionQuotaExceeded
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.openings import LocalOpenings
from worldtree_gateway.session_quota import SessionQuota

CREATE = SERVICES[0].methods["/worldtree.video.v1.VideoGenerator/CreateSession"]
CALLER: Any = SimpleNamespace(invocation_metadata=tuple)


class Replica:
    """Lists so many sessions, or answers nobody."""

    connected = True

    def __init__(self, address: str) -> None:
        self.address, self.session_count, self.hangs, self.asked_count = address, 0, False, 0

    def callable(self, _method: Any) -> Callable[..., Awaitable[bytes]]:
        async def listed(_request: bytes, **_: Any) -> bytes:
            self.asked_count += 1
            if self.hangs:
                await asyncio.Event().wait()
            answer = pb.ListResponse(
                sessions=[pb.Session(session=f"{i}.{self.address}") for i in range(self.session_count)]
            )
            for each in answer.sessions:
                each.expire_time.seconds = 1000
            return answer.SerializeToString()

        return listed


def quota(*replicas: Replica, limit: int = 2, clock: Callable[[], float] = lambda: 500.0) -> SessionQuota:
    router: Any = SimpleNamespace(backends=replicas)
    metrics = GatewayMetrics(CollectorRegistry())
    return SessionQuota(router, LocalOpenings(), limit, metrics, timeout_s=0.05, clock=clock)


async def let_in(sessions: SessionQuota, at: Replica | None = None, **asked: Any) -> bool:
    """`at`: where the call opens its session."""
    try:
        async with sessions.opening(CREATE, pb.CreateSessionRequest(**asked).SerializeToString(), CALLER):
            if at is not None:
                at.session_count += 1
            return True
    except SessionQuotaExceeded:
        return False


async def test_a_replica_that_is_late_counts_with_what_it_said_last_and_is_not_waited_for_again() -> None:
    late, other = Replica("a"), Replica("b")
    sessions = quota(late, other)
    late.session_count = 1
    assert await let_in(sessions)
    late.hangs = True
    assert await let_in(sessions)
    other.session_count = 1
    assert not await let_in(sessions)
    assert late.asked_count == 2


async def test_who_comes_later_waits_for_those_before_and_gets_the_room_that_they_left() -> None:
    replica = Replica("a")
    sessions, left = quota(replica, limit=1), asyncio.Event()

    async def first() -> None:
        async with sessions.opening(CREATE, b"", CALLER):
            await left.wait()

    opening = asyncio.create_task(first())
    await asyncio.sleep(0)
    second = asyncio.create_task(let_in(sessions))
    await asyncio.sleep(0.05)
    assert not second.done()
    left.set()
    await opening
    assert await second


async def test_who_repeats_a_call_again_and_again_gains_the_sessions_of_one() -> None:
    one, other = Replica("a"), Replica("b")
    sessions = quota(one, other, limit=3)
    for number in range(3):
        assert await let_in(sessions, one, request_id=f"{number}")
    # none of them is known where they are asked now
    repeated = [await let_in(sessions, other, request_id=f"{number}") for number in (0, 1, 2, 0, 1, 2)]
    assert repeated == [True, False, False, False, False, False]
    other.session_count = 0
    together = await asyncio.gather(*(let_in(sessions, other, request_id=f"{number}") for number in range(3)))
    assert sum(together) == 1


async def test_a_repeat_long_after_is_checked_as_any_other_call() -> None:
    replica, now_s = Replica("a"), 500.0
    sessions = quota(replica, limit=1, clock=lambda: now_s)
    assert await let_in(sessions, replica, request_id="one")
    now_s += 59
    assert await let_in(sessions, request_id="one")
    now_s += 2
    assert not await let_in(sessions, request_id="one")


async def test_another_request_of_the_same_id_is_no_repeat() -> None:
    replica = Replica("a")
    sessions = quota(replica, limit=1)
    assert await let_in(sessions, replica, request_id="one")
    assert not await let_in(sessions, request_id="one", seed=1)
    assert await let_in(sessions, request_id="one")


async def test_a_repeat_waits_for_the_call_that_it_repeats() -> None:
    replica, left = Replica("a"), asyncio.Event()
    sessions = quota(replica, limit=1)

    async def first() -> None:
        async with sessions.opening(CREATE, pb.CreateSessionRequest(request_id="one").SerializeToString(), CALLER):
            replica.session_count += 1
            await left.wait()

    opening = asyncio.create_task(first())
    await asyncio.sleep(0.05)
    repeat = asyncio.create_task(let_in(sessions, request_id="one"))
    await asyncio.sleep(0.05)
    assert not repeat.done()
    left.set()
    await opening
    assert await repeat
