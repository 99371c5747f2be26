"""One session's journal as a file: records at its end, the last of which may be torn by the death of its writer."""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from worldtree_video.errors import JournalCorrupt
from worldtree_video.journal.entries import FRAMES_BYTES_MAX

# length of the body, its sum, and the sum of these two: a length that can't be trusted would hide what follows
_LENGTHS = struct.Struct("<II")
_SUM = struct.Struct("<I")
_FRONT_BYTES = _LENGTHS.size + _SUM.size


@dataclass(slots=True)
class FileState:
    """What the records of one file add up to. `steps`, `frames`: packed, as `entries` makes them."""

    session: str
    head: bytes
    lease_end_s: float
    owner: str
    epoch: int
    snapshot_length: int = 0
    request_id: str = ""
    request_chunk_count: int = 0
    steps: list[bytes] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)  # of the last so many steps

    def cut(self, length: int) -> None:
        """Forgets all but the first `length` steps."""
        gone = len(self.steps) - length
        if gone > 0:
            del self.steps[length:]
            del self.frames[max(0, len(self.frames) - gone) :]
            self.snapshot_length = min(self.snapshot_length, length)
            self.request_id, self.request_chunk_count = "", 0

    def apply(self, record: Sequence[Any]) -> None:
        """Takes one record. Raises ValueError, TypeError or IndexError for one that nobody here writes."""
        match record:
            case ["append", int(first), float(lease_end_s), str(request_id), list(steps), list(frames)]:
                if not 0 <= first <= len(self.steps) or len(steps) != len(frames):
                    raise ValueError(f"chunks from {first} on after {len(self.steps)}")
                self.cut(first)
                self.steps += steps
                self.frames += frames
                if frames:
                    del self.frames[: -max(1, FRAMES_BYTES_MAX // max(1, len(frames[-1])))]
                self.request_id, self.request_chunk_count = request_id, len(steps) if request_id else 0
                self.lease_end_s = lease_end_s
            case ["rewind", int(length)]:
                self.cut(length)
            case ["mark", int(length)]:
                self.snapshot_length = length
                kept = min(len(self.frames), len(self.steps) - length)
                self.frames = self.frames[len(self.frames) - kept :]
            case ["touch", float(lease_end_s)]:
                self.lease_end_s = lease_end_s
            case ["own", str(owner), int(epoch)]:
                self.owner, self.epoch = owner, epoch
            case _:
                raise ValueError(f"no record {str(record)[:80]}")

    def record(self) -> list[Any]:
        """The first record of a file that holds this state."""
        return ["state", *(getattr(self, name) for name in self.__slots__)]


def write_new(path: Path, state: FileState) -> int:
    """Puts a state in a file's place, whole or not at all; returns its size in bytes."""
    data = _packed(state.record())
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)
    return len(data)


def append(path: Path, record: Sequence[Any]) -> int:
    """Adds a record, whole or not at all as long as this process lives; returns the file's size in bytes."""
    data = _packed(record)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        size_bytes = os.fstat(file).st_size
        try:
            written_bytes = os.write(file, data)
            if written_bytes != len(data):
                raise OSError(f"{written_bytes} of {len(data)} bytes could be written to {path}")
        except OSError:
            os.ftruncate(file, size_bytes)  # what follows half a record could not be found again
            raise
        return size_bytes + len(data)
    finally:
        os.close(file)


def read(path: Path, name: str) -> FileState | None:
    """What a file adds up to, but for a torn last record; None: there is no file. `name`: for messages.

    Nothing may be appended to such a file: it is written anew first.
    Raises JournalCorrupt where anything but the end is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    state, offset = None, 0
    while offset < len(data):
        body = _body(data, offset, name)
        if body is None:
            break
        try:
            record = msgpack.unpackb(body)
            if state is None:
                kind, *values = record
                if kind != "state":
                    raise ValueError(f"the first record is {str(kind)[:40]!r}")
                state = FileState(*values)
            else:
                state.apply(record)
        except Exception as error:  # a sum keeps out accidents only; msgpack raises kinds of its own
            raise JournalCorrupt(name, f"the record at byte {offset} cannot be read") from error
        offset += _FRONT_BYTES + len(body)
    if state is None:
        raise JournalCorrupt(name, "its file begins with no whole record")
    return state


def _body(data: bytes, offset: int, name: str) -> bytes | None:
    """The body of the record at `offset`; None: it's the last one, and torn."""
    front = data[offset : offset + _FRONT_BYTES]
    if len(front) < _FRONT_BYTES:
        return None
    # A file system may leave zeros after a power cut. Only behind such a front is there reason to look at all the rest.
    if not any(front) and not any(memoryview(data)[offset:]):
        return None
    if _SUM.pack(zlib.crc32(front[: _LENGTHS.size])) != front[_LENGTHS.size :]:
        raise JournalCorrupt(name, f"the record at byte {offset} has a damaged front")
    length, checksum = _LENGTHS.unpack_from(front)
    end = offset + _FRONT_BYTES + length
    body = data[offset + _FRONT_BYTES : end]
    if len(body) == length and zlib.crc32(body) == checksum:
        return body
    if end >= len(data):
        return None
    raise JournalCorrupt(name, f"the record at byte {offset} does not match its checksum")


def _packed(record: Sequence[Any]) -> bytes:
    body = bytes(msgpack.packb(record))
    lengths = _LENGTHS.pack(len(body), zlib.crc32(body))
    return lengths + _SUM.pack(zlib.crc32(lengths)) + body
