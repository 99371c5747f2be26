"""The store in a folder: a local one, or any that fsspec can open by its URL."""

import asyncio
import fcntl
import hashlib
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from worldtree_runtime.stores.store import StoreUnavailable, ttl_milliseconds

Answer = TypeVar("Answer")

_MAGIC = b"WTSTORE1"
_HEADER = struct.Struct("<8sQQQ")  # magic, made at, ends at (milliseconds of the wall clock), bytes of the value
SWEEP_S = 60.0
# A sweep frees a little more than it must, or the next write would be due for one again.
KEEP_SHARE = 0.9
UNFINISHED_S = 3600.0  # after which a half-written file can't be one that is being written


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    made_ms: int
    ends_ms: int
    size_bytes: int


class FolderStore:
    """One file for each value, written beside and renamed, so a reader finds a whole value or none.

    Processes may share the folder. It holds about `max_bytes`: a sweep, at the latest every `SWEEP_S` seconds of
    writing, deletes what has expired and then the oldest values. In a folder that isn't local, `set_if_absent` is as
    exclusive as the file system's own exclusive creation, and two callers may both replace one expired value.
    """

    def __init__(self, url: str, *, max_bytes: int = 4 << 30, clock: Callable[[], float] = time.time) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise ValueError(f"the folder {url} needs a package that is not installed: {error}") from error
        self._local = isinstance(self._files, LocalFileSystem)
        self._max_bytes = max_bytes
        self._clock = clock
        self._used_bytes = 0  # found by the last sweep, and written here since
        self._swept_s = float("-inf")

    async def get(self, key: str) -> bytes | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._call(lambda: self._read(keys)) if keys else []

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        await self.set_many({key: value}, ttl_s)

    async def set_many(self, items: Mapping[str, bytes], ttl_s: float) -> None:
        ttl_ms = ttl_milliseconds(ttl_s)
        await self._call(lambda: self._write(dict(items), ttl_ms))

    async def delete(self, key: str) -> None:
        def remove() -> None:
            with self._alone():
                self._remove(self._path(key))

        await self._call(remove)

    async def set_if_absent(self, key: str, value: bytes, ttl_s: float) -> bool:
        ttl_ms = ttl_milliseconds(ttl_s)

        def add() -> bool:
            with self._alone():
                if self._read([key])[0] is not None:
                    return False
                path = self._path(key)
                if self._local:
                    self._put(path, self._pack(value, ttl_ms))
                else:
                    self._remove(path)  # expired, or nothing
                    try:
                        self._files.pipe_file(path, self._pack(value, ttl_ms), mode="create")
                    except FileExistsError:
                        return False
            self._sweep_when_due()
            return True

        return await self._call(add)

    async def close(self) -> None:
        """Nothing is held between calls."""

    def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        paths = [self._path(key) for key in keys]
        if self._local:  # `cat` looks for patterns first, which costs more than the reading
            found = {path: self._read_file(path) for path in paths}
        else:
            found = self._files.cat(paths, on_error="return")
        return [self._unpack(found.get(path)) for path in paths]

    def _read_file(self, path: str) -> Any:
        try:
            return self._files.cat_file(path)
        except FileNotFoundError as error:
            return error

    def _write(self, items: Mapping[str, bytes], ttl_ms: int) -> None:
        for key, value in items.items():
            if _HEADER.size + len(value) > self._max_bytes:
                self._remove(self._path(key))  # the old value must not pass for the new one
                continue
            self._put(self._path(key), self._pack(value, ttl_ms), alone=True)
        self._sweep_when_due()

    def _put(self, path: str, data: bytes, *, alone: bool = False) -> None:
        """Writes a file beside its place and renames it. `alone`: takes the folder's lock for the renaming."""
        unfinished = f"{self._root}/unfinished/{int(self._clock())}-{secrets.token_hex(8)}"
        self._files.makedirs(f"{self._root}/unfinished", exist_ok=True)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._files.pipe_file(unfinished, data)
            if not self._local:
                self._files.mv(unfinished, path)
            elif alone:
                with self._alone():
                    os.replace(unfinished, path)
            else:
                os.replace(unfinished, path)
        except BaseException:
            self._remove(unfinished)
            raise
        self._used_bytes += len(data)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(path)

    def _sweep_when_due(self) -> None:
        if self._used_bytes > self._max_bytes or self._clock() - self._swept_s >= SWEEP_S:
            self._sweep()

    def _sweep(self) -> None:
        now_s = self._clock()
        for path in self._files.find(f"{self._root}/unfinished"):
            started_s = path.rpartition("/")[2].partition("-")[0]
            if not started_s.isdigit() or now_s - int(started_s) > UNFINISHED_S:
                self._remove(path)
        entries = sorted(self._entries(), key=lambda entry: entry.made_ms)
        left_bytes = sum(entry.size_bytes for entry in entries)
        keep_bytes = self._max_bytes * KEEP_SHARE if left_bytes > self._max_bytes else left_bytes
        for entry in entries:
            if entry.ends_ms <= now_s * 1000 or left_bytes > keep_bytes:
                with self._alone():
                    if self._entry(entry.path) != entry:  # written anew meanwhile
                        continue
                    self._remove(entry.path)
                left_bytes -= entry.size_bytes
        self._used_bytes = left_bytes
        self._swept_s = now_s

    def _entries(self) -> list[_Entry]:
        found = (self._entry(path) for path in self._files.find(f"{self._root}/values"))
        return [entry for entry in found if entry is not None]

    def _entry(self, path: str) -> _Entry | None:
        """What a file's head says of it; a file without one has long expired. None: it's gone."""
        try:
            head = self._files.cat_file(path, start=0, end=_HEADER.size)
        except FileNotFoundError:
            return None
        if len(head) < _HEADER.size or not head.startswith(_MAGIC):
            return _Entry(path, 0, 0, len(head))
        _, made_ms, ends_ms, value_bytes = _HEADER.unpack(head)
        return _Entry(path, made_ms, ends_ms, _HEADER.size + value_bytes)

    def _pack(self, value: bytes, ttl_ms: int) -> bytes:
        now_ms = int(self._clock() * 1000)
        return _HEADER.pack(_MAGIC, now_ms, now_ms + ttl_ms, len(value)) + value

    def _unpack(self, data: Any) -> bytes | None:
        if isinstance(data, FileNotFoundError):
            return None
        if isinstance(data, Exception):
            raise data
        if len(data) < _HEADER.size:
            return None
        magic, _, ends_ms, value_bytes = _HEADER.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEADER.size + value_bytes or ends_ms <= self._clock() * 1000:
            return None
        return bytes(data[_HEADER.size :])

    def _path(self, key: str) -> str:
        name = hashlib.sha256(key.encode()).hexdigest()  # any key is a safe file name, and folders stay small
        return f"{self._root}/values/{name[:2]}/{name}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While it lasts, nobody else puts or removes a value; it ends with the process, too."""
        if not self._local:
            yield
            return
        os.makedirs(self._root, exist_ok=True)
        lock = os.open(f"{self._root}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    async def _call(self, work: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.to_thread(work)
        except Exception as error:  # the edge to file systems of all makers, each with errors of its own
            raise StoreUnavailable(f"the folder {self._root}: {error!r:.200}") from error
