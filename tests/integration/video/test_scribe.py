"""The scribe: writes behind, in order, whatever the journal does meanwhile; then the journal knows all of it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from worldtree_video.journal import Adopted, Entry, FolderJournal, Head, History, Journal, RedisJournal, Step
from worldtree_video.metrics import VideoMetrics
from worldtree_video.scribe import Dump, Scribe

S = "s.a"


def head(session: str = S) -> Head:
    return Head(
        session, "minigrid", "1", "d", "f", 7, 2, {"kind": "full"}, "start", (), (b"chunk",), "", "t", time.time(), 60.0
    )


def lease() -> float:
    return time.time() + 600


@dataclass
class Owner:
    """Sessions as a replica holds them: what the journal should say in the end."""

    metrics: VideoMetrics
    registry: CollectorRegistry
    histories: dict[str, list[Step]] = field(default_factory=dict)
    lost: list[tuple[str, str]] = field(default_factory=list)
    serial: int = 0
    scribe: Scribe = None  # type: ignore[assignment]  # set by `begin`

    def begin(self, journal: Journal, **settings: Any) -> Scribe:
        self.scribe = Scribe(
            journal, self.metrics, dump=self.dump, lost=lambda name, owner: self.lost.append((name, owner)), **settings
        )
        return self.scribe

    def dump(self, session: str) -> Dump | None:
        steps = self.histories.get(session)
        if steps is None:
            return None
        return Dump(head(session), History(tuple(steps), (), len(steps)), lease())

    def open(self, session: str = S) -> None:
        self.histories[session] = []
        self.scribe.open(Dump(head(session), History(), lease()))

    def append(self, session: str = S, *, request_id: str = "", frames: bytes = b"frames") -> None:
        self.serial += 1
        step = Step(self.serial, self.serial, 1)
        self.scribe.append(
            session,
            len(self.histories[session]),
            [Entry(step, frames)],
            lease_end_s=lease(),
            request_id=request_id,
        )
        self.histories[session].append(step)

    def rewind(self, length: int, session: str = S) -> None:
        del self.histories[session][length:]
        self.scribe.rewind(session, length)

    def fork(self, child: str, length: int, session: str = S) -> None:
        self.histories[child] = self.histories[session][:length]
        self.scribe.fork(session, head(child), length, lease())

    def unprotected(self) -> float | None:
        return self.registry.get_sample_value("worldtree_unprotected_sessions", {"model": "minigrid"})

    async def check(self, journal: Journal) -> None:
        """What another replica finds is what this one holds."""
        self.scribe.check_integrity()
        for session, steps in self.histories.items():
            found = await journal.adopt(session, dead="a")
            assert isinstance(found, Adopted), f"the journal lacks session {session}"
            assert list(found.history.steps) == steps
            assert found.head.session == session


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    registry = CollectorRegistry()
    made = Owner(VideoMetrics(registry), registry)
    yield made
    if made.scribe:
        await made.scribe.close()
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if "JournalWriter" in repr(task.get_coro())]
    assert not left, f"left behind: {left}"


async def eventually(what: Callable[[], bool], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not what():  # noqa: ASYNC110 - polls what a stranger would see
            await asyncio.sleep(0.02)


def redis_journal(valkey: Any, replica: str = "a", timeout_s: float = 5.0) -> RedisJournal:
    return RedisJournal(valkey.url, replica, timeout_s=timeout_s)


@pytest.fixture(params=["folder", "redis"])
async def journals(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Journal]]]:
    """Each call opens the journal for the next replica, after the one before has died where it must."""
    opened: list[Journal] = []

    async def following() -> Journal:
        if request.param == "folder":
            if opened:
                await opened[-1].aclose()
            opened.append(FolderJournal(tmp_path / "journal", "ab"[len(opened)]))
        else:
            opened.append(redis_journal(request.getfixturevalue("valkey"), "ab"[len(opened)], 10.0))
        return opened[-1]

    yield following
    for journal in opened:
        await journal.aclose()


async def test_what_was_asked_in_order_stands_in_the_journal(
    owner: Owner, journals: Callable[[], Awaitable[Journal]]
) -> None:
    owner.begin(await journals())
    owner.open()
    for _ in range(10):
        owner.append()
    owner.rewind(6)
    owner.append(request_id="r")
    owner.fork("child.a", 5)
    owner.append("child.a")
    owner.append(request_id="r")
    owner.fork("grandchild.a", 6, "child.a")
    owner.scribe.snapshot(S, 3)
    owner.open("closed.a")
    owner.append("closed.a")
    owner.scribe.end("closed.a")
    for session in (S, "child.a", "grandchild.a"):
        assert await owner.scribe.settled(session)
        assert owner.scribe.behind(session) == 0
    await eventually(lambda: not owner.scribe.protected("closed.a"))
    await owner.scribe.close()
    del owner.histories["closed.a"]
    other = await journals()
    found = await other.adopt(S, dead="a")
    assert found is not None
    assert (found.history.request_id, found.history.snapshot_length, found.history.frames_first) == ("r", 3, 3)
    assert await other.adopt("closed.a", dead="a") is None
    await owner.check(other)


async def test_the_chunks_of_a_request_stand_there_all_or_none_and_the_last_request_is_known(
    owner: Owner, journals: Callable[[], Awaitable[Journal]]
) -> None:
    owner.begin(await journals())
    owner.open()
    owner.append()
    steps = [Step(100 + i, 1, 1) for i in range(3)]
    for _ in range(3):
        first = len(owner.histories[S])
        owner.scribe.append(
            S, first, [Entry(step, b"f") for step in steps], lease_end_s=lease(), request_id=f"request-{first}"
        )
        owner.histories[S] += steps
    await owner.scribe.close()
    other = await journals()
    found = await other.adopt(S, dead="a")
    assert found is not None
    assert (found.history.request_id, found.history.request_chunk_count) == ("request-7", 3)
    await owner.check(other)


async def test_random_work_on_many_sessions_is_journaled_as_it_was_done(
    owner: Owner, journals: Callable[[], Awaitable[Journal]]
) -> None:
    rng = random.Random(4)
    owner.begin(await journals())
    owner.open()
    for i in range(1500):
        session = rng.choice(list(owner.histories))
        length = len(owner.histories[session])
        match rng.randrange(12):
            case 0:
                owner.rewind(rng.randint(0, length), session)
            case 1 if len(owner.histories) < 30:
                owner.fork(f"{i}.a", rng.randint(0, length), session)
            case 2:
                owner.scribe.snapshot(session, length)
            case 3:
                owner.scribe.touch(session, lease())
            case 4 if len(owner.histories) > 5:
                owner.scribe.end(session)
                del owner.histories[session]
            case 5:
                await asyncio.sleep(0)
            case 6:
                await owner.scribe.settled(session, behind=1)
                assert owner.scribe.behind(session) <= 1
            case _:
                owner.append(session)
        if i % 50 == 0:
            owner.scribe.check_integrity()
    await owner.scribe.close(20)
    assert not owner.lost
    await owner.check(await journals())


async def test_a_chunk_behind_is_let_through_and_more_is_waited_for(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey)
    owner.begin(journal, wait_s=10.0)
    owner.open()
    await owner.scribe.settled(S)
    valkey.pause(600)
    started_s = time.monotonic()
    owner.append()
    assert await owner.scribe.settled(S, behind=1)
    assert time.monotonic() - started_s < 0.3
    owner.append()
    assert owner.scribe.behind(S) == 2
    assert await owner.scribe.settled(S, behind=1)
    assert time.monotonic() - started_s > 0.5
    assert await owner.scribe.settled(S)
    await owner.check(journal)
    await journal.aclose()


async def test_sessions_go_on_while_redis_is_gone_and_are_written_anew_when_it_is_back(
    owner: Owner, valkey: Any
) -> None:
    journal = redis_journal(valkey)
    owner.begin(journal)
    for i in range(20):
        owner.open(f"{i}.a")
        for _ in range(5):
            owner.append(f"{i}.a")
    for session in owner.histories:
        assert await owner.scribe.settled(session)
    assert owner.unprotected() in (None, 0)
    valkey.kill()
    started_s = time.monotonic()
    for i in range(20):
        owner.append(f"{i}.a")
        assert not await owner.scribe.settled(f"{i}.a")
    assert time.monotonic() - started_s < 5.0
    assert owner.unprotected() == 20
    for i in range(20):
        owner.rewind(2, f"{i}.a")
        owner.append(f"{i}.a")
        assert not await owner.scribe.settled(f"{i}.a")
    owner.fork("child.a", 2, "3.a")
    assert owner.unprotected() == 21
    owner.scribe.end("7.a")
    del owner.histories["7.a"]
    owner.scribe.check_integrity()
    valkey.restart()
    await eventually(lambda: owner.unprotected() == 0)
    assert all(owner.scribe.protected(session) for session in owner.histories)
    for i in range(20):
        if i != 7:
            owner.append(f"{i}.a")
            assert await owner.scribe.settled(f"{i}.a")
    other = redis_journal(valkey, "b")
    assert await other.adopt("7.a", dead="a") is None
    await owner.check(other)
    await journal.aclose()
    await other.aclose()


async def test_a_redis_that_comes_back_empty_between_two_writes_is_written_anew(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey)
    owner.begin(journal)
    owner.open()
    owner.append()
    await owner.scribe.settled(S)
    valkey.kill()
    valkey.restart()
    owner.append()
    await owner.scribe.settled(S)
    await eventually(lambda: owner.scribe.protected(S))
    owner.append()
    assert await owner.scribe.settled(S)
    assert not owner.lost
    await owner.check(journal)
    await journal.aclose()


async def test_an_idle_session_that_redis_lost_is_written_anew(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey)
    owner.begin(journal)
    for name in ("idle.a", "moving.a", "leaving.a"):
        owner.open(name)
        owner.append(name)
        assert await owner.scribe.settled(name)
    await owner.scribe.verify()
    assert owner.unprotected() in (None, 0)
    with Redis.from_url(valkey.url) as client:
        client.flushall()
    owner.append("moving.a")
    owner.scribe.end("leaving.a")
    del owner.histories["leaving.a"]
    await owner.scribe.verify()
    await eventually(lambda: all(map(owner.scribe.protected, owner.histories)))
    assert not owner.lost
    other = redis_journal(valkey, "b")
    await owner.check(other)
    assert await other.adopt("leaving.a", dead="a") is None
    await journal.aclose()
    await other.aclose()


async def test_an_idle_session_that_another_adopted_is_given_up(owner: Owner, valkey: Any) -> None:
    journal, other = redis_journal(valkey), redis_journal(valkey, "b")
    owner.begin(journal)
    owner.open()
    assert await owner.scribe.settled(S)
    assert await other.adopt(S, dead="a")
    await owner.scribe.verify()
    await eventually(lambda: owner.lost == [(S, "b")])
    assert not owner.scribe.protected(S)
    valkey.kill()
    await owner.scribe.verify()  # nothing to ask for
    owner.histories.clear()
    await journal.aclose()
    await other.aclose()


async def test_a_redis_that_hangs_costs_one_wait_and_then_none(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey, timeout_s=30.0)
    owner.begin(journal, wait_s=0.3)
    owner.open()
    await owner.scribe.settled(S)
    valkey.pause(1500)
    waits = []
    for _ in range(6):
        owner.append()
        started_s = time.monotonic()
        assert not await owner.scribe.settled(S, behind=0)
        waits.append(time.monotonic() - started_s)
    assert 0.25 < waits[0] < 0.8
    assert sum(waits[1:]) < 0.1
    assert owner.unprotected() == 1
    await eventually(lambda: owner.scribe.protected(S))
    owner.append()
    assert await owner.scribe.settled(S)
    await owner.check(journal)
    await journal.aclose()


async def test_work_goes_on_while_a_session_is_written_anew_again_and_again(owner: Owner, valkey: Any) -> None:
    rng = random.Random(1)
    journal = redis_journal(valkey)
    owner.begin(journal)
    for i in range(6):
        owner.open(f"{i}.a")
    for round_number in range(4):
        for _ in range(150):
            session = rng.choice(list(owner.histories))
            length = len(owner.histories[session])
            if rng.random() < 0.2:
                owner.rewind(rng.randint(0, length), session)
            elif rng.random() < 0.05:
                owner.fork(f"{round_number}-{owner.serial}.a", rng.randint(0, length), session)
            else:
                owner.append(session)
            await asyncio.sleep(0.002)
        valkey.kill()
        await asyncio.sleep(0.1)
        valkey.restart()
    for session in owner.histories:  # a write shows each whether its journal is still there
        owner.append(session)
    await asyncio.gather(*(owner.scribe.settled(session) for session in owner.histories))
    await eventually(lambda: all(owner.scribe.protected(session) for session in owner.histories))
    for session in owner.histories:
        assert await owner.scribe.settled(session)
    assert owner.unprotected() == 0
    assert not owner.lost
    await owner.check(journal)
    await journal.aclose()


async def test_the_owner_is_told_once_of_a_session_that_another_adopted(owner: Owner, valkey: Any) -> None:
    journal, other = redis_journal(valkey), redis_journal(valkey, "b")
    owner.begin(journal)
    owner.open()
    owner.append()
    owner.fork("child.a", 1)
    await owner.scribe.settled(S)
    await owner.scribe.settled("child.a")
    assert await other.adopt(S, dead="a")
    owner.append()
    owner.append()
    assert not await owner.scribe.settled(S)
    owner.append()
    assert owner.lost == [(S, "b")]
    assert not owner.scribe.protected(S)
    owner.append("child.a")
    assert await owner.scribe.settled("child.a")
    found = await other.adopt(S, dead=None)
    assert found is not None
    assert len(found.history.steps) == 1
    await journal.aclose()
    await other.aclose()


async def test_one_adopted_while_redis_was_out_of_reach_is_lost_and_not_overwritten(owner: Owner, valkey: Any) -> None:
    journal, other = redis_journal(valkey, timeout_s=0.2), redis_journal(valkey, "b")
    owner.begin(journal, wait_s=0.2)
    owner.open()
    owner.append()
    assert await owner.scribe.settled(S)
    valkey.pause(700)
    owner.append()
    assert not await owner.scribe.settled(S)
    assert await other.adopt(S, dead="a")
    await eventually(lambda: owner.lost == [(S, "b")])
    assert owner.unprotected() == 0
    assert (await other.owned(), await journal.owned()) == ([S], [])
    await journal.aclose()
    await other.aclose()


async def test_a_released_session_is_the_next_ones_with_all_that_was_asked_before(owner: Owner, valkey: Any) -> None:
    journal, other = redis_journal(valkey), redis_journal(valkey, "b")
    owner.begin(journal)
    owner.open()
    for _ in range(30):
        owner.append()
    owner.scribe.release(S, owner.dump(S))
    await owner.scribe.close()
    found = await other.adopt(S, dead=None)
    assert found is not None
    assert list(found.history.steps) == owner.histories[S]
    assert not owner.lost
    await journal.aclose()
    await other.aclose()


async def test_a_fork_that_waits_behind_a_write_that_fails_is_written_in_full(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey)
    owner.begin(journal, wait_s=0.1)
    owner.open()
    await owner.scribe.settled(S)
    valkey.pause(500)
    owner.append()
    owner.fork("child.a", 1)
    owner.append("child.a")
    owner.fork("grandchild.a", 2, "child.a")
    assert not await owner.scribe.settled(S)
    assert owner.unprotected() == 3
    await eventually(lambda: owner.unprotected() == 0)
    for session in owner.histories:
        owner.append(session)
        assert await owner.scribe.settled(session)
    await owner.check(journal)
    await journal.aclose()


async def test_a_fork_that_was_not_waited_for_does_not_bring_back_a_child_that_was_closed(
    owner: Owner, valkey: Any
) -> None:
    journal, other = redis_journal(valkey), redis_journal(valkey, "b")
    owner.begin(journal, wait_s=0.2)
    owner.open()
    assert await owner.scribe.settled(S)
    valkey.pause(600)
    owner.append()
    owner.fork("child.a", 1)
    assert not await owner.scribe.settled("child.a")  # the parent's append is under way still
    owner.scribe.end("child.a")
    del owner.histories["child.a"]
    await eventually(lambda: owner.scribe.behind(S) == 0)
    owner.append()
    assert await owner.scribe.settled(S)
    assert (owner.unprotected(), owner.scribe.leaving("child.a")) == (0, False)
    assert await other.adopt("child.a", dead="a") is None
    await owner.check(journal)
    await journal.aclose()
    await other.aclose()


async def test_one_released_during_an_outage_is_written_as_it_stands_before_others_may_have_it(
    owner: Owner, valkey: Any
) -> None:
    journal, other = redis_journal(valkey), redis_journal(valkey, "b")
    owner.begin(journal, wait_s=0.1)
    owner.open()
    owner.append()
    await owner.scribe.settled(S)
    valkey.pause(600)
    owner.append()
    assert not await owner.scribe.settled(S)
    owner.append()
    owner.scribe.release(S, owner.dump(S))
    steps = owner.histories.pop(S)  # its replica has it no longer
    assert owner.unprotected() == 1
    await eventually(lambda: owner.unprotected() == 0 and not owner.scribe.protected(S))
    found = await other.adopt(S, dead=None)
    assert found is not None
    assert list(found.history.steps) == steps
    assert len(found.history.steps) == 3
    await journal.aclose()
    await other.aclose()


async def test_a_session_that_cannot_be_dumped_keeps_no_other_from_being_written(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey)
    owner.begin(journal)
    for session in ("broken.a", S):
        owner.open(session)
        await owner.scribe.settled(session)
    valkey.kill()
    for session in ("broken.a", S):
        owner.append(session)
        assert not await owner.scribe.settled(session)
    owner.histories["broken.a"] = 7  # type: ignore[assignment]  # its dump raises
    valkey.restart()
    await eventually(lambda: owner.scribe.protected(S))
    assert owner.unprotected() == 1
    await journal.aclose()


async def test_a_session_that_redis_refuses_keeps_no_other_from_being_written(owner: Owner, valkey: Any) -> None:
    with Redis.from_url(valkey.url) as client:
        client.config_set("proto-max-bulk-len", 1 << 20)
    journal = redis_journal(valkey)
    owner.begin(journal)
    huge = Dump(replace(head("huge.a"), start_chunks=(bytes(2 << 20),)), History(), lease())
    owner.scribe.open(huge)
    owner.scribe._writer._dump = lambda name: huge if name == "huge.a" else owner.dump(name)
    await eventually(lambda: owner.unprotected() == 1)
    for i in range(20):
        owner.open(f"{i}.a")
        owner.scribe._writer.unprotect(owner.scribe._writer._lines[f"{i}.a"])
    await eventually(lambda: all(map(owner.scribe.protected, owner.histories)))
    assert owner.unprotected() == 1
    await owner.scribe.close(0.1)
    other = redis_journal(valkey, "b")
    await owner.check(other)
    await journal.aclose()
    await other.aclose()


async def test_of_a_session_in_full_the_last_frames_go_and_no_more_than_may_wait(owner: Owner, valkey: Any) -> None:
    journal, other = redis_journal(valkey), redis_journal(valkey, "b")
    owner.begin(journal, queue_bytes=2500)
    steps = tuple(Step(number, number, 1) for number in range(6))
    frames = tuple(bytes([number]) * 1000 for number in range(2, 6))
    owner.scribe.open(Dump(head(), History(steps, frames, 2), lease()))
    assert await owner.scribe.settled(S)
    found = await other.adopt(S, dead="a")
    assert found
    assert (found.history.steps, found.history.frames, found.history.frames_first) == (steps, frames[2:], 4)
    await journal.aclose()
    await other.aclose()


async def test_an_adopted_session_is_gone_on_with(owner: Owner, valkey: Any) -> None:
    first, second = redis_journal(valkey), redis_journal(valkey, "b")
    await first.create(head(), History((Step(0, 0, 1),), (), 1), lease())
    found = await second.adopt(S, dead="a")
    assert found is not None
    owner.begin(second)
    owner.histories[S] = list(found.history.steps)
    owner.scribe.adopted(found.head)
    assert owner.scribe.protected(S)
    owner.append()
    assert await owner.scribe.settled(S)
    await owner.check(second)
    await first.aclose()
    await second.aclose()


async def test_more_waiting_bytes_than_allowed_are_dropped_and_the_session_written_anew(
    owner: Owner, valkey: Any
) -> None:
    journal = redis_journal(valkey, timeout_s=30.0)
    owner.begin(journal, queue_bytes=100_000)
    owner.open()
    await owner.scribe.settled(S)
    valkey.pause(800)
    for _ in range(50):
        owner.append(frames=bytes(10_000))
        owner.scribe.check_integrity()
        await asyncio.sleep(0)
    assert not owner.scribe.protected(S)
    await eventually(lambda: owner.scribe.protected(S))
    owner.append()
    assert await owner.scribe.settled(S)
    await owner.check(journal)
    await journal.aclose()


async def test_waiters_that_leave_disturb_nobody(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey, timeout_s=10.0)
    owner.begin(journal, wait_s=10.0)
    owner.open()
    await owner.scribe.settled(S)
    valkey.pause(400)
    owner.append()
    waiters = [asyncio.create_task(owner.scribe.settled(S)) for _ in range(10)]
    await asyncio.sleep(0.05)
    for waiter in waiters[::2]:
        waiter.cancel()
    answers = await asyncio.gather(*waiters, return_exceptions=True)
    assert answers[1::2] == [True] * 5
    await owner.check(journal)
    await journal.aclose()


async def test_an_unknown_session_is_waited_for_by_nobody(owner: Owner, tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    scribe = owner.begin(journal)
    assert not await scribe.settled("never.a")
    assert not scribe.protected("never.a")
    scribe.append("never.a", 0, [Entry(Step(1, 1, 1), b"")], lease_end_s=0.0)
    scribe.rewind("never.a", 0)
    scribe.end("never.a")
    scribe.check_integrity()
    await scribe.close()
    await journal.aclose()


async def test_closing_ends_in_time_though_redis_hangs(owner: Owner, valkey: Any) -> None:
    journal = redis_journal(valkey, timeout_s=30.0)
    owner.begin(journal)
    owner.open()
    await owner.scribe.settled(S)
    valkey.pause(2000)
    owner.append()
    started_s = time.monotonic()
    await owner.scribe.close(0.2)
    assert time.monotonic() - started_s < 1.0
    await asyncio.sleep(max(0.0, 2.1 - (time.monotonic() - started_s)))
    await journal.aclose()
