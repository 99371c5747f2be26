"""The journal in Redis and in a folder: one promise, two places."""

import asyncio
import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from redis import Redis
from worldtree_runtime.errors import Kind
from worldtree_runtime.stores import StoreUnavailable
from worldtree_video.errors import JournalBehind, JournalCorrupt, JournalFolderInUse, JournalLost, SessionMoved
from worldtree_video.journal import (
    Adopted,
    Entry,
    FolderJournal,
    Head,
    History,
    Journal,
    RedisJournal,
    Step,
    record_file,
    redis_journal,
)
from worldtree_video.journal.entries import FRAMES_BYTES_MAX, pack_frames

SESSION = "0123abcd.replica-a"


def head(session: str = SESSION, **other: Any) -> Head:
    values: dict[str, Any] = {
        "session": session,
        "model": "minigrid",
        "version": "1",
        "digest": "d" * 64,
        "fingerprint": "cpu",
        "seed": 2**53 - 1,
        "nfe": 2,
        "policy": {"kind": "sliding", "window_chunks": 8, "sink_chunks": 0, "storage": "int8"},
        "start_name": "four-rooms",
        "start_actions": (3, (0.5, -1e-9, 0.1)),
        "start_chunks": (bytes(range(256)), b"\xff" * 100, b""),
        "parent": "",
        "tenant": "anonymous",
        "created_s": 1_700_000_000.25,
        "ttl_s": 600.0,
    }
    return Head(**{**values, **other})


def entry(i: int, frames: bytes | None = None) -> Entry:
    action: int | tuple[float, ...] = i % 5 if i % 3 else (0.1 * i, -1.5)
    return Entry(
        Step(action, seed=2**53 - 1 - i, nfe=1 + i % 4), b"frames of %d " % i * 20 if frames is None else frames
    )


def entries(first: int, last: int) -> list[Entry]:
    return [entry(i) for i in range(first, last)]


def lease() -> float:
    return time.time() + 600


@dataclass
class Replicas:
    """Journals of replicas that share a place; in a folder the one before has to die first."""

    open: Callable[[str], Journal]
    opened: list[Journal]
    shared: bool

    async def next(self, name: str) -> Journal:
        if not self.shared and self.opened:
            await self.opened[-1].aclose()
        self.opened.append(self.open(name))
        return self.opened[-1]


@pytest.fixture(params=["folder", "redis", "cluster"])
async def replicas(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Replicas]:
    opened: list[Journal] = []
    if request.param == "folder":
        yield Replicas(lambda name: FolderJournal(tmp_path / "journal", name), opened, shared=False)
    else:
        url = request.getfixturevalue("valkey" if request.param == "redis" else "cluster").url
        yield Replicas(lambda name: RedisJournal(url, name, timeout_s=10.0), opened, shared=True)
    for journal in opened:
        await journal.aclose()


async def append(journal: Journal, first: int, last: int, request_id: str = "", session: str = SESSION) -> None:
    await journal.append(session, first, entries(first, last), request_id=request_id, lease_end_s=lease())


async def adopt(replicas: Replicas, session: str = SESSION) -> Adopted:
    found = await (await replicas.next("replica-b")).adopt(session, dead="replica-a")
    assert found is not None
    return found


def expect(found: History, length: int, *, frames_first: int = 0, snapshot_length: int = 0) -> None:
    assert found.steps == tuple(entry(i).step for i in range(length))
    assert found.frames_first == frames_first
    assert found.frames == tuple(entry(i).frames for i in range(frames_first, length))
    assert found.snapshot_length == snapshot_length


async def test_a_session_comes_back_as_it_was(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    ends_s = round(lease(), 3)
    await journal.create(head(), History(), ends_s)
    await append(journal, 0, 3)
    await journal.append(SESSION, 3, entries(3, 5), request_id="step-7", lease_end_s=ends_s)
    found = await adopt(replicas)
    assert found.head == head()
    expect(found.history, 5)
    assert (found.history.request_id, found.history.request_chunk_count) == ("step-7", 2)
    assert found.lease_end_s == pytest.approx(ends_s, abs=0.002)
    assert found.epoch == 2


async def test_a_request_that_cannot_have_made_its_chunks_costs_no_session(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    await journal.create(head(), History((entry(0).step,), (), 1, 0, "r", 3), lease())
    found = (await adopt(replicas)).history
    assert (len(found.steps), found.request_id, found.request_chunk_count) == (1, "", 0)


async def test_frames_that_no_snapshot_makes_needless_are_kept_up_to_a_limit(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(pack_frames(entry(0).frames))
    script = redis_journal._SCRIPT.replace("= 8388608\n", f"= {3 * size + 1}\n")
    assert script != redis_journal._SCRIPT
    monkeypatch.setattr(redis_journal, "_SCRIPT", script)
    monkeypatch.setattr(record_file, "FRAMES_BYTES_MAX", 3 * size + 1)
    assert FRAMES_BYTES_MAX == 8388608
    journal = await replicas.next("replica-a")
    await journal.create(head(), History(), lease())
    for first in range(0, 9, 3):
        await append(journal, first, first + 3)
    await append(journal, 9, 10)
    await journal.rewind(SESSION, 9)
    expect((await adopt(replicas)).history, 9, frames_first=7)


async def test_a_session_written_in_full_comes_back_and_goes_on(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    steps = tuple(entry(i).step for i in range(2500))
    history = History(steps, (entry(2499).frames,), 2499, 2490, "r", 4)
    await append_is_behind(journal)
    await journal.create(head(), history, lease())
    await journal.create(head(), history, lease())  # again: nothing more
    await append(journal, 2500, 2501)
    found = (await adopt(replicas)).history
    expect(found, 2501, frames_first=2499, snapshot_length=2490)
    assert (found.request_id, found.request_chunk_count) == ("", 0)


async def append_is_behind(journal: Journal) -> None:
    with pytest.raises(JournalBehind):
        await append(journal, 0, 1)


async def test_a_repeated_append_changes_nothing_and_one_with_a_gap_is_refused(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    await journal.create(head(), History(), lease())
    await append(journal, 0, 4)
    await append(journal, 2, 4)
    with pytest.raises(JournalBehind):
        await append(journal, 5, 6)
    expect((await adopt(replicas)).history, 4)


@pytest.mark.parametrize(
    ("length", "frames_first", "snapshot"), [(9, 6, 6), (7, 6, 6), (6, 6, 6), (4, 4, 4), (0, 0, 0)]
)
async def test_a_rewind_forgets_and_new_chunks_take_the_place(
    replicas: Replicas, length: int, frames_first: int, snapshot: int
) -> None:
    journal = await replicas.next("replica-a")
    await journal.create(head(), History(), lease())
    await append(journal, 0, 9, "r")
    await journal.mark_snapshot(SESSION, 6)
    await journal.rewind(SESSION, length)
    await append(journal, length, length + 2)
    found = (await adopt(replicas)).history
    expect(found, length + 2, frames_first=frames_first, snapshot_length=snapshot)
    assert found.request_id == ""


async def test_a_rewind_takes_back_the_request_that_made_the_chunks(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    await journal.create(head(), History(), lease())
    await append(journal, 0, 3, "r")
    await journal.rewind(SESSION, 2)
    found = (await adopt(replicas)).history
    assert (found.request_id, found.request_chunk_count) == ("", 0)


async def test_a_snapshot_drops_the_frames_before_it(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    await journal.create(head(), History(), lease())
    await append(journal, 0, 5)
    await journal.mark_snapshot(SESSION, 5)
    await append(journal, 5, 8)
    await journal.mark_snapshot(SESSION, 7)
    with pytest.raises(JournalBehind):
        await journal.mark_snapshot(SESSION, 9)
    expect((await adopt(replicas)).history, 8, frames_first=7, snapshot_length=7)


@pytest.mark.parametrize(
    ("length", "frames_first", "snapshot"), [(6, 4, 4), (5, 4, 4), (4, 4, 4), (2, 2, 2), (0, 0, 0)]
)
async def test_a_fork_has_its_parents_chunks_and_a_life_of_its_own(
    replicas: Replicas, length: int, frames_first: int, snapshot: int
) -> None:
    journal = await replicas.next("replica-a")
    child = head("child.replica-a", parent=SESSION, seed=5)
    await journal.create(head(), History(), lease())
    await append(journal, 0, 6, "r")
    await journal.mark_snapshot(SESSION, 4)
    with pytest.raises(JournalBehind):
        await journal.fork(SESSION, child, 7, lease())
    await journal.fork(SESSION, child, length, lease())
    await journal.fork(SESSION, child, length, lease())
    await append(journal, length, length + 3, session=child.session)
    await journal.close(SESSION)
    assert await journal.owned() == [child.session]
    found = await adopt(replicas, child.session)
    assert found.head == child
    expect(found.history, length + 3, frames_first=frames_first, snapshot_length=snapshot)
    assert found.history.request_id == ""
    assert await replicas.opened[-1].adopt(SESSION, dead="replica-a") is None


async def test_an_unknown_a_closed_and_an_expired_session_are_none(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    await journal.create(head(), History(), lease())
    await journal.create(head("brief.a"), History(), time.time() - 61)
    await journal.close(SESSION)
    await journal.close(SESSION)
    await append_is_behind(journal)
    other = await replicas.next("replica-b")
    for session in (SESSION, "brief.a", "never.a", "../../etc/passwd", "", "x" * 5000):
        assert await other.adopt(session, dead="replica-a") is None
    assert await other.owned() == []


async def test_touch_moves_the_end_of_the_lease(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    await journal.create(head(), History(), lease())
    ends_s = time.time() + 5000
    await journal.touch(SESSION, ends_s)
    assert (await adopt(replicas)).lease_end_s == pytest.approx(ends_s, abs=0.002)


async def test_a_restarted_replica_finds_its_sessions_and_not_those_it_released(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    for name in ("one.a", "two.a", "three.a"):
        await journal.create(head(name), History(), lease())
    await append(journal, 0, 2, session="one.a")
    await journal.release("two.a")
    again = await replicas.next("replica-a")
    assert await again.owned() == ["one.a", "three.a"]
    found = await again.adopt("one.a", dead=None)
    assert found is not None
    expect(found.history, 2)
    await append(again, 2, 3, session="one.a")
    released = await again.adopt("two.a", dead=None)
    assert released is not None
    assert await again.owned() == ["one.a", "three.a", "two.a"]


async def test_a_chunk_after_ten_thousand_costs_no_more_than_one_of_the_first(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    frames = np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes()
    # as long a past as a session gets, in one go, beside a session that begins
    past = History(tuple(entry(j).step for j in range(10_000)), (), 10_000, 10_000)
    await journal.create(head("long.a"), past, lease())
    await journal.create(head("short.a"), History(), lease())
    seconds: dict[str, list[float]] = {"long.a": [], "short.a": []}
    for i in range(500):
        for session, first in (("long.a", 10_000), ("short.a", 0)):  # in turns: a busy machine slows both
            started_s = time.perf_counter()
            await journal.append(session, first + i, [entry(first + i, frames)], request_id="", lease_end_s=lease())
            seconds[session].append(time.perf_counter() - started_s)
    assert np.median(seconds["long.a"]) < 1.5 * np.median(seconds["short.a"])
    found = await adopt(replicas, "long.a")
    assert [step.nfe for step in found.history.steps] == [1 + i % 4 for i in range(10_500)]
    assert found.history.frames == (frames,) * 500


async def test_a_caller_that_leaves_takes_nobody_with_it(replicas: Replicas) -> None:
    journal = await replicas.next("replica-a")
    for i in range(20):
        await journal.create(head(f"{i}.a"), History(), lease())
    calls = [asyncio.create_task(append(journal, 0, 1, session=f"{i}.a")) for i in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answer is None for answer in answers] == [False, True] * 10
    other = await replicas.next("replica-b")
    for i in range(1, 20, 2):
        found = await other.adopt(f"{i}.a", dead="replica-a")
        assert found is not None
        expect(found.history, 1)


# What only Redis has to prove: many replicas.


@pytest.fixture
async def pair(valkey: Any) -> AsyncIterator[tuple[RedisJournal, RedisJournal]]:
    a, b = (RedisJournal(valkey.url, f"replica-{name}", timeout_s=10.0) for name in "ab")
    yield a, b
    await a.aclose()
    await b.aclose()


async def test_a_session_of_another_replica_is_refused_with_its_name(pair: tuple[RedisJournal, RedisJournal]) -> None:
    a, b = pair
    await a.create(head(), History(), lease())
    for dead in (None, "", "replica-c", "replica-b"):
        with pytest.raises(SessionMoved) as caught:
            await b.adopt(SESSION, dead=dead)
        assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "SESSION_MOVED")
        assert caught.value.metadata["replica"] == "replica-a"
    await append(a, 0, 1)  # it still is a's


async def test_every_write_of_an_owner_of_old_is_refused_and_changes_nothing(
    pair: tuple[RedisJournal, RedisJournal],
) -> None:
    a, b = pair
    writes: dict[str, Callable[[str], Awaitable[None]]] = {
        "append.a": lambda name: append(a, 3, 4, session=name),
        "replace.a": lambda name: append(a, 0, 1, session=name),
        "rewind.a": lambda name: a.rewind(name, 0),
        "mark.a": lambda name: a.mark_snapshot(name, 3),
        "fork.a": lambda name: a.fork(name, head("child.a"), 3, lease()),
        "touch.a": lambda name: a.touch(name, 1.0),
        "release.a": lambda name: a.release(name),
        "close.a": lambda name: a.close(name),
        "create.a": lambda name: a.create(head(name, seed=1), History(), lease()),
    }
    for name, write in writes.items():
        await a.create(head(name), History(), lease())
        await append(a, 0, 3, session=name)
        assert await b.adopt(name, dead="replica-a")
        with pytest.raises(JournalLost) as caught:
            await write(name)
        assert caught.value.owner == "replica-b"
        await append(b, 3, 5, session=name)
        found = await b.adopt(name, dead=None)
        assert found is not None
        assert found.head == head(name)
        expect(found.history, 5)
    assert await a.adopt("child.a", dead="replica-b") is None
    assert (await a.owned(), await b.owned()) == ([], sorted(writes))


async def test_a_replica_started_again_fences_off_its_own_former_self(valkey: Any) -> None:
    old, new = (RedisJournal(valkey.url, "replica-a", timeout_s=10.0) for _ in range(2))
    await old.create(head(), History(), lease())
    assert await new.adopt(SESSION, dead=None)
    with pytest.raises(JournalLost):
        await append(old, 0, 1)
    await append(new, 0, 1)
    await old.aclose()
    await new.aclose()


async def test_of_many_that_adopt_at_once_exactly_one_wins(valkey: Any) -> None:
    journals = [RedisJournal(valkey.url, f"replica-{i}", timeout_s=10.0) for i in range(6)]
    for round_number in range(10):
        session = f"{round_number}.replica-0"
        await journals[0].create(head(session), History(), lease())
        answers = await asyncio.gather(
            *(journal.adopt(session, dead="replica-0") for journal in journals[1:]), return_exceptions=True
        )
        won = [i for i, answer in enumerate(answers, 1) if isinstance(answer, Adopted)]
        assert len(won) == 1
        for answer in answers:
            if not isinstance(answer, Adopted):
                assert isinstance(answer, SessionMoved)
                assert answer.replica == f"replica-{won[0]}"
    for journal in journals:
        await journal.aclose()


async def test_an_owner_of_old_cannot_bring_back_what_its_heir_closed(pair: tuple[RedisJournal, RedisJournal]) -> None:
    a, b = pair
    await a.create(head(), History(), lease())
    await b.adopt(SESSION, dead="replica-a")
    await b.close(SESSION)
    with pytest.raises(JournalLost):
        await a.create(head(), History(), lease())
    for journal in pair:
        assert await journal.adopt(SESSION, dead="replica-b") is None


async def test_a_released_session_is_anybodys_once(pair: tuple[RedisJournal, RedisJournal]) -> None:
    a, b = pair
    await a.create(head(), History(), lease())
    await a.release(SESSION)
    assert await a.owned() == []
    assert await b.adopt(SESSION, dead=None)
    with pytest.raises(SessionMoved, match="replica-b"):
        await a.adopt(SESSION, dead=None)


async def test_a_journal_ends_with_the_lease_and_its_grace(valkey: Any) -> None:
    journal = RedisJournal(valkey.url, "replica-a", timeout_s=10.0, grace_s=0.2)
    await journal.create(head(), History(), time.time() + 0.2)
    await append_with_lease(journal, 0.2)
    assert await journal.owned() == [SESSION]
    await asyncio.sleep(0.8)
    assert await journal.owned() == []
    with Redis.from_url(valkey.url) as client:
        assert client.keys("*") == []
    await append_is_behind(journal)
    await journal.aclose()


async def append_with_lease(journal: Journal, seconds: float) -> None:
    await journal.append(SESSION, 0, entries(0, 1), request_id="", lease_end_s=time.time() + seconds)


async def test_a_redis_that_starts_again_empty_is_behind_and_takes_the_session_in_full(valkey: Any) -> None:
    journal = RedisJournal(valkey.url, "replica-a", timeout_s=5.0)
    await journal.create(head(), History(), lease())
    valkey.kill()
    with pytest.raises(StoreUnavailable):
        await append(journal, 0, 1)
    valkey.restart()
    await append_is_behind(journal)
    await journal.create(head(), History(), lease())
    await append(journal, 0, 1)
    found = await journal.adopt(SESSION, dead=None)
    assert found is not None
    expect(found.history, 1)
    await journal.aclose()


async def test_what_the_journal_has_lost_is_missing(
    replicas: Replicas, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    journal = await replicas.next("replica-a")
    names = [f"{number}.a" for number in range(1100)] if replicas.shared else ["0.a", "1.a"]
    for name in names:
        await journal.create(head(name), History(), lease())
    await journal.adopt("0.a", dead=None)  # its epoch is another now
    assert await journal.missing([]) == []
    assert await journal.missing(names) == []
    assert await journal.missing(["0.a", "never.a"]) == ["never.a"]
    if isinstance(journal, RedisJournal):
        await journal._connection.redis.flushall()
    else:
        for path in (tmp_path / "journal").glob("*.journal"):
            path.unlink()
    assert await journal.missing(names) == names


async def test_what_another_adopted_or_closed_is_missing(pair: tuple[RedisJournal, RedisJournal]) -> None:
    a, b = pair
    for name in ("1.a", "2.a", "3.a"):
        await a.create(head(name), History(), lease())
    await b.adopt("2.a", dead="replica-a")
    await b.adopt("3.a", dead="replica-a")
    await b.close("3.a")
    assert await a.missing(["1.a", "2.a", "3.a"]) == ["2.a", "3.a"]
    assert await b.missing(["2.a"]) == []


async def adopted_and_lost(valkey: Any, owner: RedisJournal, heir: RedisJournal) -> None:
    """A session is the heir's, and Redis loses everything."""
    await owner.create(head(), History(), lease())
    await heir.adopt(SESSION, dead="replica-a")
    with Redis.from_url(valkey.url) as client:
        client.flushall()


async def test_an_heir_keeps_its_claim_when_redis_lost_everything(
    valkey: Any, pair: tuple[RedisJournal, RedisJournal]
) -> None:
    a, b = pair
    await adopted_and_lost(valkey, a, b)
    await a.create(head(), History(), lease())  # it was faster, but is of an older epoch
    await b.create(head(), History(), lease())
    with pytest.raises(JournalLost) as caught:
        await append(a, 0, 1)
    assert caught.value.owner == "replica-b"
    assert (await a.owned(), await b.owned()) == ([], [SESSION])


async def test_writes_that_wait_together_share_a_round_trip(valkey: Any) -> None:
    journal = RedisJournal(valkey.url, "replica-a", timeout_s=10.0)
    await asyncio.gather(*(journal.create(head(f"{i}.a"), History(), lease()) for i in range(64)))
    with Redis.from_url(valkey.url) as client:
        before = int(client.info("stats")["total_reads_processed"])
        await asyncio.gather(*(append(journal, 0, 1, session=f"{i}.a") for i in range(64)))
        reads = int(client.info("stats")["total_reads_processed"]) - before
    assert reads < 16, f"64 appends took {reads} reads"
    await journal.aclose()


async def test_corrupt_steps_are_data_loss_and_corrupt_frames_only_missed(valkey: Any) -> None:
    journal = RedisJournal(valkey.url, "replica-a", timeout_s=10.0)
    await journal.create(head(), History(), lease())
    await append(journal, 0, 6)
    with Redis.from_url(valkey.url) as client:
        frames, steps = (f"worldtree:{{journal}}:{SESSION}:{kind}" for kind in ("frames", "steps"))
        client.lset(frames, 3, b"rubbish")
        found = await journal.adopt(SESSION, dead=None)
        assert found is not None
        expect(found.history, 6, frames_first=4)
        packed = client.lindex(steps, 2)
        assert isinstance(packed, bytes)
        client.lset(steps, 2, packed[:-1] + bytes([packed[-1] ^ 1]))
    with pytest.raises(JournalCorrupt) as caught:
        await journal.adopt(SESSION, dead=None)
    assert caught.value.kind is Kind.DATA_LOSS
    await journal.aclose()


# A write that comes late: its sender has given up on the connection, on which its bytes are still under way.


class SlowNetwork:
    """Between a journal and its Redis. `hold` keeps what is sent from then on, until `deliver` lets Redis have it."""

    def __init__(self, redis_url: str) -> None:
        self.url = ""
        self.cut_count = 0  # of answers that are lost with their connections
        self._redis = urlsplit(redis_url)
        self._holding = False
        self._held: list[tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def hold(self, write: Awaitable[None]) -> None:
        self._holding = True
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await write
        self._holding = False
        assert self._held

    async def deliver(self) -> list[bytes]:
        """Redis's answers, which nobody waits for any more."""
        answers = []
        for data, reader, writer in self._held:
            writer.write(data)
            answers.append(await reader.read(1 << 16))
            writer.close()
        self._held.clear()
        return answers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection(self._redis.hostname, self._redis.port)
        while data := await reader.read(1 << 16):
            if self._holding:
                self._held.append((data, from_redis, to_redis))
                continue
            to_redis.write(data)
            answer = await from_redis.read(1 << 16)
            if b"EVALSHA" in data and self.cut_count:
                self.cut_count -= 1
                break
            writer.write(answer)
        writer.close()


@pytest.fixture
async def network(valkey: Any) -> AsyncIterator[SlowNetwork]:
    network = SlowNetwork(valkey.url)
    await network.start()
    yield network
    await network.stop()


@pytest.fixture
async def slow(network: SlowNetwork) -> AsyncIterator[RedisJournal]:
    journal = RedisJournal(network.url, "replica-a", timeout_s=0.5)
    yield journal
    await journal.aclose()


CHILD = head("child.replica-a", parent=SESSION)


@pytest.mark.parametrize("late", ["append", "rewind", "mark", "touch", "release", "close", "create", "fork"])
async def test_a_write_that_comes_after_a_newer_one_changes_nothing(
    valkey: Any, network: SlowNetwork, slow: RedisJournal, late: str
) -> None:
    await slow.create(head(), History(), lease())
    await append(slow, 0, 4)
    await network.hold(
        {
            "append": lambda: append(slow, 1, 2),
            "rewind": lambda: slow.rewind(SESSION, 1),
            "mark": lambda: slow.mark_snapshot(SESSION, 4),
            "touch": lambda: slow.touch(SESSION, time.time() + 1),
            "release": lambda: slow.release(SESSION),
            "close": lambda: slow.close(SESSION),
            "create": lambda: slow.create(head(), History(), lease()),
            "fork": lambda: slow.fork(SESSION, CHILD, 2, lease()),
        }[late]()
    )
    some, ends_s = entries(0, 6), round(lease(), 3)
    history = History(tuple(each.step for each in some), tuple(each.frames for each in some))
    names = [SESSION] if late != "fork" else [CHILD.session, SESSION]
    if late == "fork":
        await slow.create(CHILD, history, ends_s)
    await slow.create(head(), history, ends_s)
    await network.deliver()
    assert await slow.owned() == sorted(names)
    for name in names:
        await slow.mark_snapshot(name, 0)  # it still is ours
    other = RedisJournal(valkey.url, "replica-b", timeout_s=10.0)
    for name in names:
        found = await other.adopt(name, dead="replica-a")
        assert found is not None
        expect(found.history, 6)
        assert found.lease_end_s == pytest.approx(ends_s, abs=0.002)
    await other.aclose()


async def test_a_late_fork_spares_a_child_whose_parent_has_stood_still(
    network: SlowNetwork, slow: RedisJournal
) -> None:
    await slow.create(head(), History(), lease())
    await append(slow, 0, 2)
    await network.hold(slow.fork(SESSION, CHILD, 2, lease()))
    some = entries(0, 2)
    await slow.create(CHILD, History(tuple(e.step for e in some), tuple(e.frames for e in some)), lease())
    await append(slow, 2, 5, session=CHILD.session)
    await network.deliver()
    found = await slow.adopt(CHILD.session, dead=None)
    assert found is not None
    expect(found.history, 5)


@pytest.mark.parametrize("known", [True, False], ids=["once written", "never written"])
async def test_a_closed_session_is_not_brought_back_by_a_late_create(
    network: SlowNetwork, slow: RedisJournal, known: bool
) -> None:
    await slow.create(head("other.a"), History(), lease())
    if known:
        await slow.create(head(), History(), lease())
    await network.hold(slow.create(head(), History(), lease()))
    await slow.close(SESSION)
    await network.deliver()
    assert await slow.owned() == ["other.a"]
    assert await slow.adopt(SESSION, dead=None) is None


async def test_a_closed_child_is_not_brought_back_by_its_late_fork(network: SlowNetwork, slow: RedisJournal) -> None:
    await slow.create(head(), History(), lease())
    await network.hold(slow.fork(SESSION, CHILD, 0, lease()))
    await slow.close(CHILD.session)
    await network.deliver()
    assert await slow.owned() == [SESSION]
    assert await slow.adopt(CHILD.session, dead=None) is None


async def test_a_write_that_is_sent_twice_is_done_once_and_is_no_gap(network: SlowNetwork, slow: RedisJournal) -> None:
    await slow.create(head(), History(), lease())
    await append(slow, 0, 4)
    for write in (
        lambda: slow.create(CHILD, History(), lease()),
        lambda: append(slow, 4, 6),
        lambda: slow.rewind(SESSION, 5),
        lambda: slow.mark_snapshot(SESSION, 3),
        lambda: slow.fork(SESSION, CHILD, 5, lease()),
        lambda: slow.close(SESSION),
    ):
        network.cut_count = 1
        await write()
        assert network.cut_count == 0
    assert await slow.owned() == [CHILD.session]
    found = await slow.adopt(CHILD.session, dead=None)
    assert found is not None
    expect(found.history, 5, frames_first=3, snapshot_length=3)


async def test_a_fork_spares_a_child_that_another_has_adopted(pair: tuple[RedisJournal, RedisJournal]) -> None:
    a, b = pair
    await a.create(head(), History(), lease())
    await append(a, 0, 2)
    await a.fork(SESSION, CHILD, 2, lease())
    await b.adopt(CHILD.session, dead="replica-a")
    await append(b, 2, 4, session=CHILD.session)
    await a.fork(SESSION, CHILD, 2, lease())
    with pytest.raises(JournalLost) as caught:
        await append(a, 2, 3, session=CHILD.session)
    assert caught.value.owner == "replica-b"
    found = await b.adopt(CHILD.session, dead=None)
    assert found is not None
    expect(found.history, 4)


async def test_an_heir_is_behind_where_redis_lost_everything_and_an_owner_of_old_closes(
    valkey: Any, pair: tuple[RedisJournal, RedisJournal]
) -> None:
    a, b = pair
    await adopted_and_lost(valkey, a, b)
    await a.close(SESSION)
    await append_is_behind(b)
    await b.create(head(), History(), lease())
    await append(b, 0, 1)
    assert await b.owned() == [SESSION]


async def test_a_closed_session_leaves_nothing_for_longer_than_the_grace(valkey: Any) -> None:
    journal = RedisJournal(valkey.url, "replica-a", timeout_s=10.0, grace_s=0.2)
    await journal.create(head(), History(), lease())
    await journal.close(SESSION)
    await asyncio.sleep(0.6)
    with Redis.from_url(valkey.url) as client:
        assert client.keys("*") == []
    await journal.aclose()


# What only a folder has to prove: the death of its one writer.


def file_of(folder: Path) -> Path:
    (file,) = folder.glob("*.journal")
    return file


async def test_a_file_cut_anywhere_gives_a_whole_past_and_can_be_gone_on_with(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    await journal.create(head(), History(), lease())
    base_bytes = file_of(tmp_path).stat().st_size
    lengths = {base_bytes: 0}
    for i in range(4):
        await append(journal, i, i + 1)
        lengths[file_of(tmp_path).stat().st_size] = i + 1
    await journal.aclose()
    file = file_of(tmp_path)
    whole = file.read_bytes()
    journal = FolderJournal(tmp_path, "a")
    for cut in range(base_bytes, len(whole) + 1):
        file.write_bytes(whole[:cut])
        found = await journal.adopt(SESSION, dead=None)
        assert found is not None
        expected = max(length for size, length in lengths.items() if size <= cut)
        expect(found.history, expected)
    await append(journal, 4, 5)
    found = await journal.adopt(SESSION, dead=None)
    assert found is not None
    expect(found.history, 5)
    await journal.aclose()


async def test_a_flipped_bit_before_the_last_record_is_data_loss_and_never_another_past(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    await journal.create(head(start_chunks=(b"x",)), History(), lease())
    for i in range(3):
        await journal.append(SESSION, i, [entry(i, b"f")], request_id="", lease_end_s=lease())
    before_last = file_of(tmp_path).stat().st_size
    await journal.append(SESSION, 3, [entry(3, b"f")], request_id="", lease_end_s=lease())
    file = file_of(tmp_path)
    whole = file.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            found = await journal.adopt(SESSION, dead=None)
        except JournalCorrupt:
            continue
        assert bit // 8 >= before_last, f"bit {bit} was not noticed"
        assert found is not None
        assert len(found.history.steps) == 3
    await journal.aclose()


async def test_zeros_at_the_end_of_a_file_are_a_torn_record_and_before_anything_else_they_are_data_loss(
    tmp_path: Path,
) -> None:
    journal = FolderJournal(tmp_path, "a")
    await journal.create(head(), History(), lease())
    await append(journal, 0, 3)
    whole = file_of(tmp_path).read_bytes()
    for end in (bytes(5), bytes(12), bytes(4096)):  # as a file system may leave them after a power cut
        file_of(tmp_path).write_bytes(whole + end)
        found = await journal.adopt(SESSION, dead=None)
        assert found is not None
        expect(found.history, 3)
    file_of(tmp_path).write_bytes(whole + bytes(4096) + b"x")
    with pytest.raises(JournalCorrupt, match="damaged front"):
        await journal.adopt(SESSION, dead=None)
    await journal.aclose()


async def test_a_file_of_four_times_the_records_takes_about_four_times_as_long_to_read(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    await journal.create(head(), History(), lease())
    base = file_of(tmp_path).read_bytes()
    await journal.append(SESSION, 0, [entry(0, b"f" * 500)], request_id="", lease_end_s=lease())
    record = file_of(tmp_path).read_bytes()[len(base) :]
    await journal.rewind(SESSION, 0)
    rewind = file_of(tmp_path).read_bytes()[len(base) + len(record) :]
    await journal.aclose()
    seconds = []
    for count in (2000, 8000):
        file_of(tmp_path).write_bytes(base + (record + rewind) * count)
        times = []
        for _ in range(3):
            started_s = time.perf_counter()
            assert record_file.read(file_of(tmp_path), SESSION) is not None
            times.append(time.perf_counter() - started_s)
        seconds.append(min(times))
    assert seconds[1] < 8 * seconds[0]


async def test_one_process_at_a_time_has_the_folder(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    with pytest.raises(JournalFolderInUse, match=str(tmp_path)):
        FolderJournal(tmp_path, "b")
    await journal.aclose()
    await FolderJournal(tmp_path, "b").aclose()


async def test_a_file_does_not_grow_with_what_is_forgotten(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    await journal.create(head(), History(), lease())
    for i in range(0, 400, 8):
        noise = os.urandom(20_000)
        some = [entry(j, noise) for j in range(i, i + 8)]
        await journal.append(SESSION, i, some, request_id="", lease_end_s=lease())
        await journal.mark_snapshot(SESSION, i + 8)
    assert file_of(tmp_path).stat().st_size < 2_000_000  # 8 MB went in
    found = await journal.adopt(SESSION, dead=None)
    assert found is not None
    expect(found.history, 400, frames_first=400, snapshot_length=400)
    await journal.aclose()


async def test_a_folder_that_was_emptied_is_behind(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    await journal.create(head(), History(), lease())
    file_of(tmp_path).unlink()
    await append_is_behind(journal)
    await journal.aclose()


WRITER = """
import asyncio, sys, time
from pathlib import Path
from worldtree_video.journal import Entry, FolderJournal, Head, History, Step

async def write():
    journal = FolderJournal(Path(sys.argv[1]), "a")
    head = Head("s.a", "m", "1", "d", "f", 1, 1, {}, "", (), (b"x",), "", "t", 0.0, 600.0)
    await journal.create(head, History(), time.time() + 600)
    for i in range(1_000_000):
        entry = Entry(Step(i, i, 1), b"%d;" % i * 5_000)
        await journal.append("s.a", i, [entry], request_id="", lease_end_s=time.time() + 600)
        print(i + 1, flush=True)

asyncio.run(write())
"""


def start_writer(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)


async def test_a_writer_killed_in_the_middle_leaves_all_it_was_told_was_written(tmp_path: Path) -> None:
    for round_number in range(5):
        folder = tmp_path / str(round_number)
        writer = start_writer(folder)
        assert writer.stdout is not None
        for _ in range(20):
            writer.stdout.readline()
        with pytest.raises(JournalFolderInUse):
            FolderJournal(folder, "b")
        await asyncio.sleep(secrets.randbelow(50) / 1000)
        writer.kill()
        told = [line for line in writer.communicate()[0].splitlines() if line]
        written = int(told[-1]) if told else 20
        journal = FolderJournal(folder, "b")  # the lock died with its process
        found = await journal.adopt("s.a", dead=None)
        assert found is not None
        length = len(found.history.steps)
        assert length >= written
        assert [step.action for step in found.history.steps] == list(range(length))
        assert found.history.frames == tuple(b"%d;" % i * 5_000 for i in range(length))
        await journal.append("s.a", length, [entry(0)], request_id="", lease_end_s=lease())
        await journal.aclose()


async def test_a_full_disk_is_unavailable_and_spoils_nothing(tmp_path: Path) -> None:
    journal = FolderJournal(tmp_path, "a")
    await journal.create(head(), History(), lease())
    await append(journal, 0, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_of(tmp_path).stat().st_size + 20, hard))
    try:
        with pytest.raises(StoreUnavailable, match=r"20 of \d+ bytes could be written"):
            await append(journal, 2, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await append(journal, 2, 4)
    found = await journal.adopt(SESSION, dead=None)
    assert found is not None
    expect(found.history, 4)
    await journal.aclose()


def test_a_history_whose_frames_do_not_end_it_is_refused() -> None:
    with pytest.raises(ValueError, match="do not end"):
        replace(History(tuple(e.step for e in entries(0, 3)), (), 3), frames_first=1)
