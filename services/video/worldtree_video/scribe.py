"""Writes the journal behind the sessions: in order for each, never in the way of the engine.

A session is *protected* while the journal can rebuild it, all but the writes on their way. When the journal does not
answer, its sessions go on unprotected, and each is written anew in full as soon as it answers again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from worldtree_runtime.stores import StoreUnavailable

from worldtree_video.errors import JournalBehind, JournalLost
from worldtree_video.journal import Entry, Head, History, Journal
from worldtree_video.metrics import VideoMetrics

log = logging.getLogger(__name__)

_RETRY_S = 0.5  # between tries while the journal is down
_JOINED_COUNT_MAX = 64  # chunks of one write
_WRITE_COUNT_MAX = 1024  # of one session that wait
_ANEW_AT_ONCE = 8  # sessions written in full at the same time


@dataclass(frozen=True, slots=True)
class Dump:
    """A session as it stands, to be written in full."""

    head: Head
    history: History
    lease_end_s: float


class _State(Enum):
    PROTECTED = auto()
    WAITING = auto()  # a fork whose parent's line has yet to write it: its own writes wait
    ANEW = auto()  # being written in full; what comes meanwhile waits
    UNPROTECTED = auto()  # to be written in full; what comes meanwhile will be part of that


@dataclass(slots=True, eq=False)
class _Write:
    """One write that waits. An append of one or more chunks has `entries`, so that neighbours can be joined."""

    run: Callable[[], Awaitable[None]]
    size_bytes: int = 0
    chunk_count: int = 0
    first: int = 0
    entries: tuple[Entry, ...] = ()
    request_id: str = ""
    lease_end_s: float = 0.0
    child: "_Line | None" = None


@dataclass(slots=True, eq=False)
class _Line:
    """The writes of one session, in order."""

    session: str
    model: str
    state: _State
    writes: deque[_Write] = field(default_factory=deque)
    behind: int = 0  # chunks of the writes that wait
    waiting_bytes: int = 0
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: Callable[[], Awaitable[None]] | None = None  # how it will be closed or released, once that was asked


class Scribe:
    """For one event loop; every method but `settled` and `close` returns at once.

    `dump`: a session as it stands now, None when it is gone; called in the loop. `lost`: told once when another replica
    has adopted a session (`owner` empty: it was released or closed elsewhere); the scribe has forgotten it by then.
    At most `queue_bytes` of one session's and 16 times as much of all sessions' writes wait; a session with more of
    them counts as one whose journal does not answer.
    """

    def __init__(
        self,
        journal: Journal,
        metrics: VideoMetrics,
        *,
        dump: Callable[[str], Dump | None],
        lost: Callable[[str, str], None],
        wait_s: float = 1.0,
        queue_bytes: int = 8 << 20,
    ) -> None:
        self._journal = journal
        self._metrics = metrics
        self._dump = dump
        self._lost = lost
        self._wait_s = wait_s
        self._queue_bytes = queue_bytes
        self._waiting_bytes = 0
        self._lines: dict[str, _Line] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._closed = False

    def open(self, dump: Dump) -> None:
        """Begins the journal of a session that was created or restored."""
        line = self._add(dump.head.session, dump.head.model, _State.PROTECTED)
        size_bytes = sum(map(len, dump.head.start_chunks)) + sum(map(len, dump.history.frames))
        self._push(
            line,
            _Write(
                lambda: self._journal.create(dump.head, dump.history, dump.lease_end_s),
                size_bytes,
                len(dump.history.steps),
            ),
        )

    def adopted(self, head: Head) -> None:
        """Goes on with a session that the journal gave this replica."""
        self._add(head.session, head.model, _State.PROTECTED)

    def append(self, session: str, first: int, entry: Entry, *, lease_end_s: float, request_id: str = "") -> None:
        """A generated chunk with the index `first`. Neighbours of one request are written together."""
        line = self._lines.get(session)
        if line is None or line.state is _State.UNPROTECTED or line.leaving:
            return
        last = line.writes[-1] if line.writes else None
        joins = (
            last is not None
            and last.entries
            and not (len(line.writes) == 1 and line.task)  # it may be under way
            and len(last.entries) < _JOINED_COUNT_MAX
            and last.request_id == request_id
            and last.first + len(last.entries) == first
        )
        if joins and last:
            last.entries = (*last.entries, entry)
            last.lease_end_s = lease_end_s
            last.size_bytes += len(entry.frames)
            last.chunk_count += 1
            self._grow(line, len(entry.frames), 1)
            return
        write = _Write(_nothing, len(entry.frames), 1, first, (entry,), request_id, lease_end_s)
        write.run = lambda: self._journal.append(
            session, write.first, write.entries, request_id=request_id, lease_end_s=write.lease_end_s
        )
        self._push(line, write)

    def rewind(self, session: str, length: int) -> None:
        self._ask(session, lambda: self._journal.rewind(session, length))

    def snapshot(self, session: str, length: int) -> None:
        """The blocks in view at `length` chunks are in the store."""
        self._ask(session, lambda: self._journal.mark_snapshot(session, length))

    def touch(self, session: str, lease_end_s: float) -> None:
        self._ask(session, lambda: self._journal.touch(session, lease_end_s))

    def fork(self, parent: str, head: Head, length: int, lease_end_s: float) -> None:
        """A child of a session with its first `length` chunks; its own writes follow the fork."""
        line = self._lines.get(parent)
        if line is None or line.state is _State.UNPROTECTED or line.leaving:
            self._unprotect(self._add(head.session, head.model, _State.PROTECTED))
            return
        child = self._add(head.session, head.model, _State.WAITING)
        self._push(line, _Write(lambda: self._journal.fork(parent, head, length, lease_end_s), child=child))

    def end(self, session: str) -> None:
        """The session was closed: its journal goes, after what was asked before."""
        self._leave(session, lambda: self._journal.close(session))

    def release(self, session: str) -> None:
        """The session is for whoever adopts it next, after what was asked before."""
        self._leave(session, lambda: self._journal.release(session))

    def protected(self, session: str) -> bool:
        line = self._lines.get(session)
        return line is not None and line.state in (_State.PROTECTED, _State.WAITING)

    def behind(self, session: str) -> int:
        """Chunks that the journal does not have yet (0 for a session that is not protected)."""
        line = self._lines.get(session)
        return line.behind if line and self.protected(session) else 0

    async def settled(self, session: str, *, behind: int = 0) -> bool:
        """Waits until at most so many chunks are unwritten; False, and no wait, for an unprotected session.

        A journal that lets a session wait for longer than `wait_s` counts as one that does not answer.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                while (line := self._lines.get(session)) and self.protected(session):
                    if line.behind <= behind and (behind or not line.writes):
                        return True
                    line.changed.clear()
                    await line.changed.wait()
        except TimeoutError:
            line = self._lines.get(session)
            if line and self.protected(session):
                self._unprotect(line)
        return False

    async def close(self, timeout_s: float = 5.0) -> None:
        """Ends after what waits was written, or after `timeout_s`."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        while tasks := [line.task for line in self._lines.values() if line.task]:
            if loop.time() >= ends_s:
                break
            await asyncio.wait(tasks, timeout=ends_s - loop.time())
        self._closed = True
        tasks = [line.task for line in self._lines.values() if line.task] + ([self._recovery] if self._recovery else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        models = {line.model for line in self._lines.values()}
        for line in self._lines.values():
            line.changed.set()
        self._lines.clear()
        for model in models:
            self._count(model)

    def check_integrity(self) -> None:
        """Recounts; for tests."""
        lines = self._lines.values()
        counted = sum(write.size_bytes for line in lines for write in line.writes)
        booked = sum(line.waiting_bytes for line in lines)
        assert counted == booked == self._waiting_bytes, f"counted {counted}, booked {booked}, {self._waiting_bytes}"
        for line in lines:
            behind = sum(write.chunk_count for write in line.writes)
            assert behind == line.behind, f"{line.session}: counted {behind} chunks, booked {line.behind}"
        idle = [line.session for line in lines if line.writes and not line.task and line.state is _State.PROTECTED]
        assert not idle, f"nobody writes what waits of {idle}"

    def _add(self, session: str, model: str, state: _State) -> _Line:
        old = self._lines.pop(session, None)
        if old:
            self._forget(old)
        line = self._lines[session] = _Line(session, model, state)
        return line

    def _ask(self, session: str, run: Callable[[], Awaitable[None]]) -> None:
        line = self._lines.get(session)
        if line and line.state is not _State.UNPROTECTED and not line.leaving:
            self._push(line, _Write(run))

    def _leave(self, session: str, run: Callable[[], Awaitable[None]]) -> None:
        line = self._lines.get(session)
        if line is None or line.leaving:
            return
        line.leaving = run
        if line.state is not _State.UNPROTECTED:
            self._push(line, _Write(run))

    def _push(self, line: _Line, write: _Write) -> None:
        line.writes.append(write)
        self._grow(line, write.size_bytes, write.chunk_count)
        if line.state is _State.PROTECTED:
            self._start(line)

    def _start(self, line: _Line) -> None:
        if line.writes and line.task is None and not self._closed:
            line.task = asyncio.create_task(self._drain(line))

    def _grow(self, line: _Line, size_bytes: int, chunk_count: int) -> None:
        line.behind += chunk_count
        line.waiting_bytes += size_bytes
        self._waiting_bytes += size_bytes
        too_many = line.waiting_bytes > self._queue_bytes or self._waiting_bytes > 16 * self._queue_bytes
        if len(line.writes) > (1 if too_many else _WRITE_COUNT_MAX):
            log.warning(
                "session %s: %d writes of %d bytes wait for the journal",
                line.session,
                len(line.writes),
                line.waiting_bytes,
            )
            self._unprotect(line)

    async def _drain(self, line: _Line) -> None:
        """Writes what waits of one session. The write at the front stays there until it is done."""
        try:
            while line.writes and line.state is _State.PROTECTED:
                write = line.writes[0]
                try:
                    await write.run()
                except JournalLost as error:
                    if self._lines.get(line.session) is line:
                        self._drop(line)
                        if not line.leaving:
                            self._lost(line.session, error.owner)
                    return
                except (StoreUnavailable, JournalBehind) as error:
                    log.warning("session %s: %s", line.session, error)
                    self._unprotect(line)
                    return
                if line.state is not _State.PROTECTED or not line.writes or line.writes[0] is not write:
                    return  # given up meanwhile
                line.writes.popleft()
                self._waiting_bytes -= write.size_bytes
                line.waiting_bytes -= write.size_bytes
                line.behind -= write.chunk_count
                if write.child and write.child.state is _State.WAITING:
                    write.child.state = _State.PROTECTED
                    self._start(write.child)
                if line.leaving and not line.writes:
                    self._drop(line)
                line.changed.set()
        except Exception:  # a bug: the session goes on, and is written anew
            log.exception("the journal of session %s", line.session)
            self._unprotect(line)
        finally:
            line.task = None
            if line.state is _State.PROTECTED and self._lines.get(line.session) is line:
                self._start(line)  # it was given up and written anew while this task waited for its last write

    def _unprotect(self, line: _Line) -> None:
        if self._lines.get(line.session) is not line:
            return
        line.state = _State.UNPROTECTED
        self._forget(line)
        self._count(line.model)
        if self._recovery is None and not self._closed:
            self._recovery = asyncio.create_task(self._recover())

    def _drop(self, line: _Line) -> None:
        if self._lines.get(line.session) is line:
            del self._lines[line.session]
        self._forget(line)
        self._count(line.model)

    def _forget(self, line: _Line) -> None:
        """Forgets what waits; forks among it have to be written in full."""
        writes = list(line.writes)
        line.writes.clear()
        self._waiting_bytes -= line.waiting_bytes
        line.behind = line.waiting_bytes = 0
        line.changed.set()
        for write in writes:
            if write.child and write.child.state is _State.WAITING:
                self._unprotect(write.child)

    def _count(self, model: str) -> None:
        unprotected = (_State.UNPROTECTED, _State.ANEW)
        count = sum(1 for line in self._lines.values() if line.model == model and line.state in unprotected)
        self._metrics.unprotected_sessions.labels(model).set(count)

    async def _recover(self) -> None:
        """Writes unprotected sessions in full until there is none."""
        try:
            while lines := [line for line in self._lines.values() if line.state is _State.UNPROTECTED]:
                done = [await self._write_anew(lines[0])]  # one asks whether it is up again; the others needn't
                for first in range(1, len(lines) if all(done) else 0, _ANEW_AT_ONCE):
                    some = lines[first : first + _ANEW_AT_ONCE]
                    done += await asyncio.gather(*(self._write_anew(line) for line in some))
                if not all(done):
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._recovery = None

    async def _write_anew(self, line: _Line) -> bool:
        """Whether the journal answered."""
        if self._lines.get(line.session) is not line or line.state is not _State.UNPROTECTED:
            return True
        line.state = _State.ANEW
        try:
            dump = None if line.leaving else self._dump(line.session)
            if line.leaving or dump is None:
                await (line.leaving or (lambda: self._journal.close(line.session)))()
                self._drop(line)
                return True
            await self._journal.create(dump.head, dump.history, dump.lease_end_s)
        except JournalLost as error:
            if self._lines.get(line.session) is line:
                self._drop(line)
                if not line.leaving:
                    self._lost(line.session, error.owner)
            return True
        except JournalBehind:  # a release of what was never written
            self._drop(line)
            return True
        except StoreUnavailable:
            self._unprotect(line)
            return False
        except Exception:  # a bug in this session must not keep the others from being written
            log.exception("session %s cannot be written anew", line.session)
            self._unprotect(line)
            return False
        if line.state is _State.ANEW:
            line.state = _State.PROTECTED
            self._count(line.model)
            self._start(line)
        return True


async def _nothing() -> None:
    """Stands in until the write knows itself."""
