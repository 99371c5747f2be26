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


def quota(*replicas: Replica, limit: int = 2) -> SessionQuota:
    router: Any = SimpleNamespace(backends=replicas)
    metrics = GatewayMetrics(CollectorRegistry())
    return SessionQuota(router, LocalOpenings(), limit, metrics, timeout_s=0.05, clock=lambda: 500.0)


async def let_in(sessions: SessionQuota) -> bool:
    try:
        async with sessions.opening(CREATE, b"", CALLER):
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
