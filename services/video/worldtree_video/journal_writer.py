"""The writing of all lines to the journal: in order for each, and in full where the journal lacks what comes before."""

import asyncio
import logging
from collections.abc import Callable

from worldtree_runtime.stores import StoreUnavailable

from worldtree_video.errors import JournalBehind, JournalLost
from worldtree_video.journal import Journal
from worldtree_video.journal.line import Dump, Line, LineState, Write
from worldtree_video.metrics import VideoMetrics

log = logging.getLogger(__name__)

_RETRY_S = 0.5  # between tries while the journal is down
_WRITE_COUNT_MAX = 1024  # of one session that wait
_ANEW_AT_ONCE = 8  # sessions written in full at the same time


class JournalWriter:
    """A task for each line that has something to write, and one that writes in full what is unprotected.

    What the arguments mean is said by Scribe, which decides what is written.
    """

    def __init__(
        self,
        journal: Journal,
        metrics: VideoMetrics,
        *,
        dump: Callable[[str], Dump | None],
        lost: Callable[[str, str], None],
        queue_bytes: int,
    ) -> None:
        self._journal = journal
        self._metrics = metrics
        self._dump = dump
        self._lost = lost
        self._queue_bytes = queue_bytes
        self._waiting_bytes = 0
        self._lines: dict[str, Line] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._closed = False

    def get(self, session: str) -> Line | None:
        return self._lines.get(session)

    def add(self, session: str, model: str, state: LineState) -> Line:
        """A new line, in the place of one that its session had."""
        old = self._lines.pop(session, None)
        if old:
            self._forget(old)
        line = self._lines[session] = Line(session, model, state)
        return line

    def push(self, line: Line, write: Write) -> None:
        """Writes this after all that waits."""
        line.push(write)
        self.grew(line, write.size_bytes)
        if line.state is LineState.PROTECTED:
            self._start(line)

    def grew(self, line: Line, size_bytes: int) -> None:
        """So many bytes more wait; more than may do so are given up."""
        self._waiting_bytes += size_bytes
        too_many = line.waiting_bytes > self._queue_bytes or self._waiting_bytes > 16 * self._queue_bytes
        if len(line.writes) > (1 if too_many else _WRITE_COUNT_MAX):
            log.warning(
                "session %s: %d writes of %d bytes wait for the journal",
                line.session,
                len(line.writes),
                line.waiting_bytes,
            )
            self.unprotect(line)

    def unprotect(self, line: Line) -> None:
        """Forgets what waits of a line, and writes its session in full as soon as the journal answers."""
        if self._lines.get(line.session) is not line:
            return
        line.state = LineState.UNPROTECTED
        self._forget(line)
        self._count(line.model)
        if self._recovery is None and not self._closed:
            self._recovery = asyncio.create_task(self._recover())

    async def verify(self) -> None:
        """Asks the journal for the sessions that have nothing to write, and so would never learn that it lost them.

        Those are written anew. A journal that does not answer is asked again the next time.
        """
        idle = [line for line in self._lines.values() if line.state is LineState.PROTECTED and not line.writes]
        if not idle:
            return
        try:
            missing = set(await self._journal.missing([line.session for line in idle]))
        except StoreUnavailable as error:
            log.warning("the journal cannot say what it has: %s", error)
            return
        for line in idle:
            if line.session in missing and line.state is LineState.PROTECTED and not line.leaving:
                log.warning("the journal has lost session %s, which is written anew", line.session)
                self.unprotect(line)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Ends after what waits was written, or after `timeout_s`."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        while (tasks := self._tasks()) and loop.time() < ends_s:
            await asyncio.wait(tasks, timeout=ends_s - loop.time())
        self._closed = True
        for task in (tasks := self._tasks()):
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
        for line in self._lines.values():
            line.check_integrity()
        counted = sum(line.waiting_bytes for line in self._lines.values())
        assert counted == self._waiting_bytes, f"counted {counted} bytes, booked {self._waiting_bytes}"

    def _tasks(self) -> list[asyncio.Task[None]]:
        """All that are writing; while the journal is down, who tries again: what is released may yet be saved."""
        return [task for task in (*(line.task for line in self._lines.values()), self._recovery) if task]

    def _start(self, line: Line) -> None:
        if line.writes and line.task is None and not self._closed:
            line.task = asyncio.create_task(self._drain(line))

    async def _drain(self, line: Line) -> None:
        """Writes what waits of one session. The write at the front stays there until it is done."""
        try:
            while line.writes and line.state is LineState.PROTECTED:
                write = line.writes[0]
                child = write.child
                if child and (child.state is not LineState.WAITING or self._lines.get(child.session) is not child):
                    # It was closed, or is written in full: the fork would bring it back, or back to where it began.
                    self._waiting_bytes -= line.pop().size_bytes
                    continue
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
                    self.unprotect(line)
                    return
                if line.state is not LineState.PROTECTED or not line.writes or line.writes[0] is not write:
                    return  # given up meanwhile
                self._waiting_bytes -= line.pop().size_bytes
                if child and child.state is LineState.WAITING:
                    child.state = LineState.PROTECTED
                    child.changed.set()
                    self._start(child)
                if line.leaving and not line.writes:
                    self._drop(line)
        except Exception:  # a bug: the session goes on, and is written anew
            log.exception("the journal of session %s", line.session)
            self.unprotect(line)
        finally:
            line.task = None
            if line.state is LineState.PROTECTED and self._lines.get(line.session) is line:
                self._start(line)  # it was given up and written anew while this task waited for its last write

    def _drop(self, line: Line) -> None:
        if self._lines.get(line.session) is line:
            del self._lines[line.session]
        self._forget(line)
        self._count(line.model)

    def _forget(self, line: Line) -> None:
        """Forgets what waits; forks among it have to be written in full."""
        self._waiting_bytes -= line.waiting_bytes
        for write in line.clear():
            if write.child and write.child.state is LineState.WAITING:
                self.unprotect(write.child)

    def _count(self, model: str) -> None:
        unprotected = (LineState.UNPROTECTED, LineState.ANEW)
        count = sum(1 for line in self._lines.values() if line.model == model and line.state in unprotected)
        self._metrics.unprotected_sessions.labels(model).set(count)

    async def _recover(self) -> None:
        """Writes unprotected sessions in full until there is none."""
        round_count = 0
        try:
            while lines := [line for line in self._lines.values() if line.state is LineState.UNPROTECTED]:
                # One asks whether it is up again; the others needn't. Each time another one: a session that the journal
                # never takes must not stand before the others.
                place = round_count % len(lines)
                lines = lines[place:] + lines[:place]
                round_count += 1
                done = [await self._write_anew(lines[0])]
                for first in range(1, len(lines) if all(done) else 0, _ANEW_AT_ONCE):
                    some = lines[first : first + _ANEW_AT_ONCE]
                    done += await asyncio.gather(*(self._write_anew(line) for line in some))
                if any(line.state is LineState.UNPROTECTED for line in lines):
                    await asyncio.sleep(_RETRY_S)
        finally:
            self._recovery = None

    async def _write_anew(self, line: Line) -> bool:
        """Whether the journal answered."""
        if self._lines.get(line.session) is not line or line.state is not LineState.UNPROTECTED:
            return True
        line.state = LineState.ANEW
        try:
            if line.ended:
                await self._journal.close(line.session)
                self._drop(line)
                return True
            dump = line.parting or self._dump(line.session)
            if dump is None:  # gone without a word: what the journal has of it stays, for its lease
                self._drop(line)
                return True
            await self._journal.create(dump.head, dump.history.trimmed(self._queue_bytes), dump.lease_end_s)
        except JournalLost as error:
            if self._lines.get(line.session) is line:
                self._drop(line)
                if not line.leaving:
                    self._lost(line.session, error.owner)
            return True
        except StoreUnavailable:
            self.unprotect(line)
            return False
        except Exception:  # a bug in this session must not keep the others from being written
            log.exception("session %s cannot be written anew", line.session)
            self.unprotect(line)
            return True
        if line.state is LineState.ANEW:
            line.state = LineState.PROTECTED
            self._count(line.model)
            if line.leaving and not line.writes:
                line.push(Write(line.leaving))  # what is released must be as it stands, not as it once was written
            self._start(line)
        return True
