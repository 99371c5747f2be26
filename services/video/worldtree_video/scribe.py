"""Writes the journal behind the sessions: in order for each, never in the way of the engine.

A session is *protected* while the journal can rebuild it, all but the writes on their way. When the journal does not
answer, its sessions go on unprotected, and each is written anew in full as soon as it answers again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from worldtree_video.journal import Entry, Head, Journal
from worldtree_video.journal.line import AppendWrite, Dump, LineState, Write
from worldtree_video.journal_writer import JournalWriter
from worldtree_video.metrics import VideoMetrics

__all__ = ["Dump", "Scribe"]


class Scribe:
    """For one event loop; every method but `settled`, `verify` and `close` returns at once.

    `dump`: a session as it stands now, None when it is gone; called in the loop. `lost`: told once when another replica
    has adopted a session (`owner` empty: it was released or closed elsewhere); the scribe has forgotten it by then.
    At most `queue_bytes` of one session's and 16 times as much of all sessions' writes wait; a session with more of
    them counts as one whose journal does not answer. Of a session that is written in full, as many bytes of frames go.
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
        self._wait_s = wait_s
        self._queue_bytes = queue_bytes
        self._writer = JournalWriter(journal, metrics, dump=dump, lost=lost, queue_bytes=queue_bytes)

    def open(self, dump: Dump) -> None:
        """Begins the journal of a session that was created or restored."""
        line = self._writer.add(dump.head.session, dump.head.model, LineState.PROTECTED)
        history = dump.history.trimmed(self._queue_bytes)
        size_bytes = sum(map(len, dump.head.start_chunks)) + sum(map(len, history.frames))
        write = Write(
            lambda: self._journal.create(dump.head, history, dump.lease_end_s), size_bytes, len(history.steps)
        )
        self._writer.push(line, write)

    def adopted(self, head: Head) -> None:
        """Goes on with a session that the journal gave this replica."""
        self._writer.add(head.session, head.model, LineState.PROTECTED)

    def append(
        self, session: str, first: int, entries: Sequence[Entry], *, lease_end_s: float, request_id: str = ""
    ) -> None:
        """Generated chunks, the first of which has the index `first`. They are written together or not at all."""
        line = self._writer.get(session)
        if line is None or not line.takes_writes:
            return
        if not request_id and len(entries) == 1 and line.join(first, entries[0], lease_end_s):
            self._writer.grew(line, len(entries[0].frames))
            return
        write = AppendWrite(
            _nothing,
            sum(len(entry.frames) for entry in entries),
            len(entries),
            first=first,
            entries=tuple(entries),
            request_id=request_id,
            lease_end_s=lease_end_s,
        )
        write.run = lambda: self._journal.append(
            session, first, write.entries, request_id=request_id, lease_end_s=write.lease_end_s
        )
        self._writer.push(line, write)

    def rewind(self, session: str, length: int) -> None:
        self._ask(session, lambda: self._journal.rewind(session, length))

    def snapshot(self, session: str, length: int) -> None:
        """The blocks in view at `length` chunks are in the store."""
        self._ask(session, lambda: self._journal.mark_snapshot(session, length))

    def touch(self, session: str, lease_end_s: float) -> None:
        self._ask(session, lambda: self._journal.touch(session, lease_end_s))

    def fork(self, parent: str, head: Head, length: int, lease_end_s: float) -> None:
        """A child of a session with its first `length` chunks; its own writes follow the fork."""
        line = self._writer.get(parent)
        if line is None or not line.takes_writes:
            self._writer.unprotect(self._writer.add(head.session, head.model, LineState.PROTECTED))
            return
        child = self._writer.add(head.session, head.model, LineState.WAITING)
        self._writer.push(line, Write(lambda: self._journal.fork(parent, head, length, lease_end_s), child=child))

    def end(self, session: str) -> None:
        """The session was closed: its journal goes, after what was asked before."""
        self._leave(session, lambda: self._journal.close(session), ended=True)

    def release(self, session: str, parting: Dump) -> None:
        """The session is for whoever adopts it next, after what was asked before (`parting`: all of it, if need be)."""
        self._leave(session, lambda: self._journal.release(session), parting=parting)

    def protected(self, session: str) -> bool:
        line = self._writer.get(session)
        return line is not None and line.protected

    def leaving(self, session: str) -> bool:
        """Whether it was closed or released here, and the journal is yet to be told."""
        line = self._writer.get(session)
        return line is not None and line.leaving is not None

    def behind(self, session: str) -> int:
        """Chunks that the journal does not have yet (0 for a session that is not protected)."""
        line = self._writer.get(session)
        return line.waiting_chunk_count if line and line.protected else 0

    async def settled(self, session: str, *, behind: int = 0) -> bool:
        """Waits until at most so many chunks are unwritten; False, and no wait, for an unprotected session.

        A journal that lets a session wait for longer than `wait_s` counts as one that does not answer.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                while (line := self._writer.get(session)) and line.protected:
                    known = line.state is not LineState.WAITING  # to the journal, which has yet to take the fork
                    if known and line.waiting_chunk_count <= behind and (behind or not line.writes):
                        return True
                    line.changed.clear()
                    await line.changed.wait()
        except TimeoutError:
            line = self._writer.get(session)
            if line and line.protected:
                self._writer.unprotect(line)
        return False

    async def verify(self) -> None:
        """Finds sessions that the journal lost, or that another replica adopted, while they had nothing to write."""
        await self._writer.verify()

    async def close(self, timeout_s: float = 5.0) -> None:
        """Ends after what waits was written, or after `timeout_s`."""
        await self._writer.close(timeout_s)

    def check_integrity(self) -> None:
        """Recounts; for tests."""
        self._writer.check_integrity()

    def _ask(self, session: str, run: Callable[[], Awaitable[None]]) -> None:
        line = self._writer.get(session)
        if line and line.takes_writes:
            self._writer.push(line, Write(run))

    def _leave(
        self, session: str, run: Callable[[], Awaitable[None]], *, ended: bool = False, parting: Dump | None = None
    ) -> None:
        line = self._writer.get(session)
        if line is None or line.leaving:
            return
        line.leaving, line.ended, line.parting = run, ended, parting
        if line.state is not LineState.UNPROTECTED:
            self._writer.push(line, Write(run))


async def _nothing() -> None:
    """Stands in until the write knows itself."""
