"""The journal that all replicas share, in Redis. Its rules are in `journal.lua`, which Redis runs in one step."""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError, RedisError
from worldtree_runtime.stores import RedisConnection, StoreUnavailable

from worldtree_video.errors import JournalBehind, JournalCorrupt, JournalLost, SessionMoved
from worldtree_video.journal.entries import (
    FRAMES_BYTES_MAX,
    Adopted,
    Entry,
    Head,
    History,
    pack_frames,
    pack_head,
    pack_step,
    unpack_head,
    unpack_history,
)

_SCRIPT = f"local FRAMES_BYTES_MAX = {FRAMES_BYTES_MAX}\n" + (
    resources.files("worldtree_video.journal").joinpath("journal.lua").read_text()
)
_PREFIX = "worldtree:{journal}:"  # of all keys: an operation may touch two sessions and a replica's list
_ROUND_TRIP_BYTES_MAX = 4 << 20
_ASKED_COUNT_MAX = 500  # sessions of one operation, during which Redis serves nobody else


@dataclass(slots=True)
class _Call:
    arguments: list[Any]
    answer: asyncio.Future[list[Any]]

    @property
    def size_bytes(self) -> int:
        return sum(len(each) for each in self.arguments if isinstance(each, bytes))


class RedisJournal:
    """One Redis 7 or Valkey, a primary with replicas, or a cluster, which keeps all journals on one of its nodes.

    Calls that wait at the same moment share a round trip. `grace_s`: how long a journal outlives its session's lease;
    the clocks of Redis and of all replicas have to agree to within that. Calls are numbered as they are made: one that
    Redis gets on an old connection, when it has done a newer write of that session, changes nothing.
    """

    def __init__(self, url: str, replica: str, *, timeout_s: float = 1.0, grace_s: float = 60.0) -> None:
        if not replica:
            raise ValueError("replica must be a name, got an empty one: that stands for a released session")
        self.replica = replica
        self.timeout_s = timeout_s
        self._connection = RedisConnection(url, timeout_s)
        self._grace_ms = round(grace_s * 1000)
        self._epochs: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._sha = ""
        self._waiting: deque[_Call] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def create(self, head: Head, history: History, lease_end_s: float) -> None:
        epoch = self._epochs.setdefault(head.session, 1)
        await self._write(
            "create",
            head.session,
            pack_head(head),
            _milliseconds(lease_end_s),
            history.snapshot_length,
            history.request_id,
            history.request_chunk_count,
            len(history.steps),
            *(pack_step(step) for step in history.steps),
            *(pack_frames(frames) for frames in history.frames),
            epoch=epoch,
        )

    async def append(
        self, session: str, first: int, entries: Sequence[Entry], *, request_id: str, lease_end_s: float
    ) -> None:
        await self._write(
            "append",
            session,
            first,
            _milliseconds(lease_end_s),
            request_id,
            len(entries),
            *(pack_step(entry.step) for entry in entries),
            *(pack_frames(entry.frames) for entry in entries),
        )

    async def rewind(self, session: str, length: int) -> None:
        await self._write("rewind", session, length)

    async def mark_snapshot(self, session: str, length: int) -> None:
        await self._write("mark", session, length)

    async def fork(self, parent: str, head: Head, length: int, lease_end_s: float) -> None:
        # before there is an answer: a close of the child must reach Redis, where the fork may yet come late
        epoch = self._epochs.setdefault(head.session, 1)
        await self._write("fork", parent, head.session, pack_head(head), length, _milliseconds(lease_end_s), epoch)

    async def touch(self, session: str, lease_end_s: float) -> None:
        await self._write("touch", session, _milliseconds(lease_end_s))

    async def release(self, session: str) -> None:
        await self._write("release", session)
        self._epochs.pop(session, None)

    async def close(self, session: str) -> None:
        with suppress(JournalBehind):  # it's gone, as it should be
            await self._write("close", session)
        self._epochs.pop(session, None)

    async def adopt(self, session: str, *, dead: str | None) -> Adopted | None:
        status, *rest = await self._call("adopt", session, 0, dead or "")
        if status == b"NONE":
            return None
        if status == b"MOVED":
            raise SessionMoved(session, rest[0].decode())
        epoch, lease_ms, head, snapshot_length, request_id, request_chunk_count, steps, frames = rest
        self._epochs[session] = epoch
        if head is None:
            raise JournalCorrupt(session, "it has no head")
        return Adopted(
            unpack_head(session, head),
            unpack_history(
                session,
                steps,
                frames,
                snapshot_length=int(snapshot_length),
                request_id=request_id.decode(),
                request_chunk_count=int(request_chunk_count),
            ),
            int(lease_ms) / 1000,
            epoch,
        )

    async def owned(self) -> list[str]:
        _, names = await self._call("owned", "", 0)
        return sorted(name.decode() for name in names)

    async def missing(self, sessions: Sequence[str]) -> list[str]:
        found: list[str] = []
        for first in range(0, len(sessions), _ASKED_COUNT_MAX):
            asked = sessions[first : first + _ASKED_COUNT_MAX]
            pairs = [(session, self._epochs.get(session, 0)) for session in asked]
            _, names = await self._call("missing", "", 0, *(part for pair in pairs for part in pair))
            found += [name.decode() for name in names]
        return found

    async def aclose(self) -> None:
        if self._sender:
            await asyncio.gather(self._sender, return_exceptions=True)
        await self._connection.close()

    async def _write(self, op: str, session: str, *arguments: Any, epoch: int | None = None) -> None:
        epoch = self._epochs.get(session) if epoch is None else epoch
        if epoch is None:
            raise JournalBehind(session)  # never written, or given up
        status, *rest = await self._call(op, session, epoch, *arguments)
        if status == b"LOST":
            self._epochs.pop(session, None)
            raise JournalLost(session, rest[0].decode())
        if status == b"BEHIND":
            raise JournalBehind(session)

    async def _call(self, op: str, session: str, epoch: int, *arguments: Any) -> list[Any]:
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)  # in the order of the queue
        fixed = [op, self.replica, session, epoch, self._grace_ms, number]
        self._waiting.append(_Call([*fixed, *arguments], answer))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        return await answer

    async def _send_all(self) -> None:
        """Sends what waits, one round trip after another, until nothing does."""
        try:
            while self._waiting:
                calls: list[_Call] = []
                size_bytes = 0
                while self._waiting and (not calls or size_bytes + self._waiting[0].size_bytes < _ROUND_TRIP_BYTES_MAX):
                    call = self._waiting.popleft()
                    if not call.answer.done():  # else its caller has left
                        calls.append(call)
                        size_bytes += call.size_bytes
                if calls:
                    await self._send(calls)
        finally:
            self._sender = None
            for call in self._waiting:
                call.answer.cancel()
            self._waiting.clear()

    async def _send(self, calls: Sequence[_Call]) -> None:
        try:
            answers = await self._connection.call(lambda: self._run(calls))
        except StoreUnavailable as error:
            _fail(calls, error)
            return
        except BaseException as error:
            _fail(calls, StoreUnavailable(f"the journal's round trip ended with {error!r:.200}"))
            raise
        for call, answer in zip(calls, answers, strict=True):
            if call.answer.done():
                continue
            if isinstance(answer, RedisError):
                call.answer.set_exception(StoreUnavailable(f"redis at {self._connection.address}: {answer}"))
            else:
                call.answer.set_result(answer)

    async def _run(self, calls: Sequence[_Call]) -> list[Any]:
        redis = self._connection.redis
        if not self._sha:
            self._sha = await redis.script_load(_SCRIPT)
        answers = await self._pipelined(calls)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # a Redis that was started again has no scripts: it did nothing of this round trip
            self._sha = await redis.script_load(_SCRIPT)
            answers = await self._pipelined(calls)
        return answers

    async def _pipelined(self, calls: Sequence[_Call]) -> list[Any]:
        pipeline = self._connection.redis.pipeline(transaction=False)
        for call in calls:
            # not `evalsha`, which is refused in the pipeline of a cluster; the prefix tells it the node
            pipeline.execute_command("EVALSHA", self._sha, 1, _PREFIX, *call.arguments)
        return list(await pipeline.execute(raise_on_error=False))


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.answer.done():
            call.answer.set_exception(error)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
