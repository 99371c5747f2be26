"""The journal of one replica without Redis: a file for each session, in a folder that only this process writes."""

import asyncio
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from worldtree_runtime.stores import StoreUnavailable

from worldtree_video.errors import JournalBehind, JournalCorrupt, JournalFolderInUse, JournalLost
from worldtree_video.journal import record_file
from worldtree_video.journal.entries import (
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
from worldtree_video.journal.record_file import FileState

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

# A file is written anew when it has grown to twice what its state needed then, and this much more.
_GROWTH_BYTES = 1 << 20
_CORRUPT_KEPT_S = 86_400.0  # a file that can't be read says no end of its lease; people may want to look at it


@dataclass(slots=True)
class _Written:
    """What this process knows of a file that it writes."""

    length: int
    state_bytes: int  # of the file when it was last written anew
    file_bytes: int


class FolderJournal:
    """Survives the death of the process at any moment; not of the machine, as nothing waits for the disk.

    The folder is locked for as long as the process lives, and not longer. So whoever wrote in it before is dead, and
    any session found there may be adopted. Raises JournalFolderInUse. `grace_s`: how long a file outlives its lease.
    """

    def __init__(
        self, folder: Path, replica: str, *, grace_s: float = 60.0, clock: Callable[[], float] = time.time
    ) -> None:
        self.replica = replica
        self.timeout_s = 5.0  # what a wait for a disk may take before it counts as down
        self._folder = folder
        self._grace_s = grace_s
        self._clock = clock
        self._written: dict[str, _Written] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise JournalFolderInUse(str(folder)) from error
        # one thread: writes happen in the order in which they were asked for, and never in the event loop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    async def create(self, head: Head, history: History, lease_end_s: float) -> None:
        state = FileState(
            head.session,
            pack_head(head),
            lease_end_s,
            self.replica,
            1,
            history.snapshot_length,
            history.request_id,
            history.request_chunk_count,
            [pack_step(step) for step in history.steps],
            [pack_frames(frames) for frames in history.frames],
        )
        await self._call(lambda: self._write_new(state))

    async def append(
        self, session: str, first: int, entries: Sequence[Entry], *, request_id: str, lease_end_s: float
    ) -> None:
        def add() -> None:
            written = self._at_least(session, first)
            steps = [pack_step(entry.step) for entry in entries]
            frames = [pack_frames(entry.frames) for entry in entries]
            self._append(session, "append", first, float(lease_end_s), request_id, steps, frames)
            written.length = first + len(entries)

        await self._call(add)

    async def rewind(self, session: str, length: int) -> None:
        def go_back() -> None:
            written = self._at_least(session, length)
            self._append(session, "rewind", length)
            written.length = length

        await self._call(go_back)

    async def mark_snapshot(self, session: str, length: int) -> None:
        def mark() -> None:
            self._at_least(session, length)
            self._append(session, "mark", length)

        await self._call(mark)

    async def fork(self, parent: str, head: Head, length: int, lease_end_s: float) -> None:
        def copy() -> None:
            self._at_least(parent, length)
            state = self._read(parent)
            if state is None:
                raise JournalBehind(parent)
            state.cut(length)
            state.session, state.head, state.lease_end_s = head.session, pack_head(head), lease_end_s
            state.owner, state.epoch, state.request_id, state.request_chunk_count = self.replica, 1, "", 0
            self._write_new(state)

        await self._call(copy)

    async def touch(self, session: str, lease_end_s: float) -> None:
        def touch() -> None:
            self._at_least(session, 0)
            self._append(session, "touch", float(lease_end_s))

        await self._call(touch)

    async def release(self, session: str) -> None:
        def release() -> None:
            self._at_least(session, 0)
            self._append(session, "own", "", 0)
            del self._written[session]

        await self._call(release)

    async def close(self, session: str) -> None:
        def forget() -> None:
            if session in self._written or self._read(session) is None:
                self._path(session).unlink(missing_ok=True)
                self._written.pop(session, None)
            else:
                raise JournalLost(session, "")  # released, or never ours

        await self._call(forget)

    async def adopt(self, session: str, *, dead: str | None) -> Adopted | None:  # noqa: ARG002 - all others are dead
        def take() -> FileState | None:
            state = self._read(session)
            if state is None:
                return None
            if self._has_ended(state):
                self._path(session).unlink(missing_ok=True)
                return None
            state.owner, state.epoch = self.replica, state.epoch + 1
            self._write_new(state)
            return state

        state = await self._call(take)
        if state is None:
            return None
        return Adopted(
            unpack_head(session, state.head),
            unpack_history(
                session,
                state.steps,
                state.frames,
                snapshot_length=state.snapshot_length,
                request_id=state.request_id,
                request_chunk_count=state.request_chunk_count,
            ),
            state.lease_end_s,
            state.epoch,
        )

    async def owned(self) -> list[str]:
        """The sessions of the folder that were not released; sweeps out those whose lease has ended."""
        return await self._call(self._owned)

    async def missing(self, sessions: Sequence[str]) -> list[str]:
        def look() -> list[str]:
            return [each for each in sessions if each not in self._written or not self._path(each).exists()]

        return await self._call(look)

    async def aclose(self) -> None:
        if self._lock >= 0:
            await asyncio.to_thread(self._thread.shutdown)
            os.close(self._lock)
            self._lock = -1

    def _owned(self) -> list[str]:
        names = []
        for unfinished in self._folder.glob("*.unfinished"):
            unfinished.unlink(missing_ok=True)
        for path in self._folder.glob("*.journal"):
            try:
                state = record_file.read(path, path.name)
            except JournalCorrupt as error:
                log.warning("%s", error)
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime + _CORRUPT_KEPT_S + self._grace_s < self._clock():
                        path.unlink()
                continue
            if state is None:
                continue
            if self._has_ended(state):
                path.unlink(missing_ok=True)
            elif state.owner:
                names.append(state.session)
        return sorted(names)

    def _has_ended(self, state: FileState) -> bool:
        return state.lease_end_s + self._grace_s <= self._clock()

    def _at_least(self, session: str, length: int) -> _Written:
        """What is known of a file that holds `length` chunks or more."""
        written = self._written.get(session)
        if written is None or written.length < length:
            raise JournalBehind(session)
        return written

    def _write_new(self, state: FileState) -> None:
        size_bytes = record_file.write_new(self._path(state.session), state)
        self._written[state.session] = _Written(len(state.steps), size_bytes, size_bytes)

    def _append(self, session: str, *record: object) -> None:
        written = self._written[session]
        try:
            written.file_bytes = record_file.append(self._path(session), record)
        except FileNotFoundError as error:  # somebody emptied the folder
            del self._written[session]
            raise JournalBehind(session) from error
        if written.file_bytes > 2 * written.state_bytes + _GROWTH_BYTES:
            state = self._read(session)
            if state is not None:
                written.state_bytes = written.file_bytes = record_file.write_new(self._path(session), state)

    def _read(self, session: str) -> FileState | None:
        state = record_file.read(self._path(session), session)
        if state is not None and state.session != session:
            raise JournalCorrupt(session, f"its file is of session {state.session[:80]!r}")
        return state

    def _path(self, session: str) -> Path:
        # callers choose the names that are asked for: a hash is a file name, whatever they ask
        return self._folder / f"{hashlib.sha256(session.encode()).hexdigest()[:40]}.journal"

    async def _call(self, work: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:
            raise StoreUnavailable(f"the journal folder {self._folder}: {error}") from error
