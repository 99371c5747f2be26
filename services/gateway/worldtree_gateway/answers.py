"""A recorded answer, and its form outside of this process."""

import struct
from dataclasses import dataclass

_MAGIC = b"WTA1"
_HEAD = struct.Struct("<4sddI")  # magic, stored, expires (seconds since 1970), messages
_LENGTH = struct.Struct("<I")
_OVERHEAD_BYTES = 256  # what the objects of one entry take beside their bytes, roughly


class CorruptAnswerError(ValueError):
    """Bytes that no gateway wrote, or not to the end."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The messages of one call that ended OK, in order."""

    messages: tuple[bytes, ...]
    stored_time_s: float
    expire_time_s: float

    @property
    def byte_count(self) -> int:
        return _OVERHEAD_BYTES + sum(map(len, self.messages)) + 64 * len(self.messages)

    def fresh(self, now_s: float, *, age_max_s: float | None = None) -> bool:
        """Whether it may still be served, to a caller who takes nothing older than `age_max_s`."""
        if now_s >= self.expire_time_s:
            return False
        return age_max_s is None or now_s - self.stored_time_s <= age_max_s

    def encode(self) -> bytes:
        parts = [_HEAD.pack(_MAGIC, self.stored_time_s, self.expire_time_s, len(self.messages))]
        for message in self.messages:
            parts += (_LENGTH.pack(len(message)), message)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> "Answer":
        """Raises CorruptAnswerError: the store is shared, so what it holds is checked."""
        if len(data) < _HEAD.size:
            raise CorruptAnswerError(f"an answer has at least {_HEAD.size} bytes, got {len(data)}")
        magic, stored_time_s, expire_time_s, message_count = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise CorruptAnswerError(f"an answer begins with {_MAGIC!r}, got {magic!r}")
        messages: list[bytes] = []
        offset = _HEAD.size
        while offset + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size
            if length > len(data) - offset:
                break
            messages.append(data[offset : offset + length])
            offset += length
        if offset != len(data) or len(messages) != message_count:
            raise CorruptAnswerError(f"{message_count} messages were written, {len(messages)} are whole")
        return cls(tuple(messages), stored_time_s, expire_time_s)
