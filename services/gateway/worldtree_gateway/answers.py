"""A recorded answer, and its form outside of this process."""

import struct
from dataclasses import dataclass

import zstandard

_MAGIC = b"WTA2"
# magic, stored, expires (seconds since 1970), messages, bytes of them with their lengths, whether they are compressed
_HEAD = struct.Struct("<4sddIQ?")
_LENGTH = struct.Struct("<I")
_COMPRESSED_FROM_BYTES = 4096  # below, what is saved is less than what it takes
_LEVEL = 1  # pictures of simulators shrink a hundredfold at any level, those of cameras at none
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
        parts: list[bytes] = []
        for message in self.messages:
            parts += (_LENGTH.pack(len(message)), message)
        body = b"".join(parts)
        packed = body
        if len(body) >= _COMPRESSED_FROM_BYTES:
            packed = min(body, zstandard.ZstdCompressor(level=_LEVEL).compress(body), key=len)
        head = (self.stored_time_s, self.expire_time_s, len(self.messages), len(body), packed is not body)
        return _HEAD.pack(_MAGIC, *head) + packed

    @classmethod
    def decode(cls, data: bytes, *, byte_limit: int) -> "Answer":
        """Raises CorruptAnswerError: the store is shared, so what it holds is checked, before it is unpacked too."""
        if len(data) < _HEAD.size:
            raise CorruptAnswerError(f"an answer has at least {_HEAD.size} bytes, got {len(data)}")
        magic, stored_time_s, expire_time_s, message_count, body_bytes, compressed = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise CorruptAnswerError(f"an answer begins with {_MAGIC!r}, got {magic!r}")
        if body_bytes > byte_limit:
            raise CorruptAnswerError(f"an answer has at most {byte_limit} bytes, got {body_bytes}")
        body = _unpacked(data[_HEAD.size :], body_bytes) if compressed else data[_HEAD.size :]
        messages: list[bytes] = []
        offset = 0
        while offset + _LENGTH.size <= len(body):
            (length,) = _LENGTH.unpack_from(body, offset)
            offset += _LENGTH.size
            if length > len(body) - offset:
                break
            messages.append(body[offset : offset + length])
            offset += length
        if offset != len(body) or len(messages) != message_count:
            raise CorruptAnswerError(f"{message_count} messages were written, {len(messages)} are whole")
        return cls(tuple(messages), stored_time_s, expire_time_s)


def _unpacked(packed: bytes, body_bytes: int) -> bytes:
    try:
        # The size in the frame is what it allocates, so it is compared first.
        if zstandard.get_frame_parameters(packed).content_size != body_bytes:
            raise CorruptAnswerError(f"{body_bytes} bytes were written, the compressed frame says otherwise")
        return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptAnswerError(f"the compressed bytes can't be read: {error}") from error
