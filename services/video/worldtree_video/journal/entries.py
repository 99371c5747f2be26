"""What a journal says of a session, as plain values and as bytes (msgpack). Trusts nothing it reads."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import msgpack

from worldtree_video.errors import JournalCorrupt

ActionValue: TypeAlias = int | tuple[float, ...]

_SUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Step:
    """How one generated chunk was made."""

    action: ActionValue
    seed: int
    nfe: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One generated chunk: its step, and its pixels (uint8, C order; empty: they are not kept)."""

    step: Step
    frames: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What a session is made of, but for its steps. `policy`: the fields of its KV policy as plain values."""

    session: str
    model: str
    version: str
    digest: str
    fingerprint: str
    seed: int
    nfe: int
    policy: dict[str, int | str]
    start_name: str
    start_actions: tuple[ActionValue, ...]
    start_chunks: tuple[bytes, ...]
    parent: str
    tenant: str
    created_s: float
    ttl_s: float


@dataclass(frozen=True, slots=True)
class History:
    """What a session has done. Lengths and indexes count generated chunks.

    `frames`: pixels of the chunks `frames_first`, `frames_first + 1`, ... to the last (empty: not kept).
    `snapshot_length`: at this length the blocks in view were put in the store; after a rewind to less, some of them.
    `request_id`: of the last step that had one, which made the last `request_chunk_count` chunks.
    """

    steps: tuple[Step, ...] = ()
    frames: tuple[bytes, ...] = ()
    frames_first: int = 0
    snapshot_length: int = 0
    request_id: str = ""
    request_chunk_count: int = 0

    def __post_init__(self) -> None:
        if self.frames_first + len(self.frames) != len(self.steps):
            raise ValueError(
                f"frames of the chunks {self.frames_first} to {self.frames_first + len(self.frames)} "
                f"do not end a history of {len(self.steps)} chunks"
            )

    def trimmed(self, frames_bytes_max: int) -> "History":
        """The same with the last of its frames only, at most so many bytes: frames spare work, steps suffice."""
        first, size_bytes = len(self.frames), 0
        while first and size_bytes + len(self.frames[first - 1]) <= frames_bytes_max:
            first -= 1
            size_bytes += len(self.frames[first])
        return replace(self, frames=self.frames[first:], frames_first=self.frames_first + first)


@dataclass(frozen=True, slots=True)
class Adopted:
    """A session that is this replica's from now on. `lease_end_s`: seconds of the wall clock."""

    head: Head
    history: History
    lease_end_s: float
    epoch: int


def pack_head(head: Head) -> bytes:
    return _summed([[name, getattr(head, name)] for name in _HEAD_FIELDS])


def unpack_head(session: str, data: bytes) -> Head:
    """Raises JournalCorrupt."""
    try:
        values = dict(_unsummed(session, data))
        values["start_actions"] = tuple(_action(value) for value in values["start_actions"])
        values["start_chunks"] = tuple(values["start_chunks"])
        head = Head(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise JournalCorrupt(session, "its head cannot be read") from error
    if head.session != session:
        raise JournalCorrupt(session, f"its head is of session {head.session[:80]!r}")
    return head


def pack_step(step: Step) -> bytes:
    return _summed([step.action, step.seed, step.nfe])


def unpack_step(session: str, data: bytes) -> Step:
    """Raises JournalCorrupt."""
    try:
        action, seed, nfe = _unsummed(session, data)
        if not isinstance(seed, int) or not isinstance(nfe, int):
            raise ValueError("seed and nfe are whole numbers")
        return Step(_action(action), seed, nfe)
    except (ValueError, TypeError) as error:
        raise JournalCorrupt(session, "a step cannot be read") from error


# Of one session's pixels, this much is kept where no checkpoint of its blocks makes them needless: they spare work, and
# the steps alone suffice.
FRAMES_BYTES_MAX = 8 << 20


def pack_frames(frames: bytes) -> bytes:
    """Pixels with a sum. They are not deflated: that takes longer (0.2 ms for 9 KB) than sending and keeping them."""
    return _SUM.pack(zlib.crc32(frames)) + frames


def unpack_frames(data: bytes) -> bytes | None:
    """None for bytes that are not whole: frames spare work, and the steps make them again."""
    frames = data[_SUM.size :]
    return frames if _SUM.pack(zlib.crc32(frames)) == data[: _SUM.size] else None


def unpack_history(
    session: str,
    steps: Sequence[bytes],
    frames: Sequence[bytes],
    *,
    snapshot_length: int,
    request_id: str,
    request_chunk_count: int,
) -> History:
    """Joins what is kept apart. Raises JournalCorrupt for a step; of the frames, those after the last bad one count.

    A request that cannot have made its chunks is none: that costs an answer to its retry, and not the session.
    """
    if not 0 <= snapshot_length <= len(steps):
        raise JournalCorrupt(session, f"snapshot_length {snapshot_length} of {len(steps)}")
    if not 0 < request_chunk_count <= len(steps):
        request_id, request_chunk_count = "", 0
    whole: list[bytes] = []
    for data in reversed(frames[-len(steps) :] if steps else []):
        pixels = unpack_frames(data)
        if not pixels:
            break
        whole.append(pixels)
    return History(
        steps=tuple(unpack_step(session, data) for data in steps),
        frames=tuple(reversed(whole)),
        frames_first=len(steps) - len(whole),
        snapshot_length=snapshot_length,
        request_id=request_id,
        request_chunk_count=request_chunk_count,
    )


_HEAD_FIELDS = tuple(field.name for field in fields(Head))


def _action(value: object) -> ActionValue:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list):
        return tuple(float(part) for part in value)
    raise ValueError(f"an action is a number or a list, got {value!r:.80}")


def _summed(value: object) -> bytes:
    body = msgpack.packb(value)
    return _SUM.pack(zlib.crc32(body)) + bytes(body)


def _unsummed(session: str, data: bytes) -> Any:
    body = data[_SUM.size :]
    if _SUM.pack(zlib.crc32(body)) != data[: _SUM.size]:
        raise JournalCorrupt(session, "a checksum does not match")
    try:
        return msgpack.unpackb(body)
    except Exception as error:  # msgpack raises kinds of its own beside ValueError
        raise JournalCorrupt(session, "a record cannot be read") from error
