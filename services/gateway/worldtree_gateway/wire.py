"""Protobuf's bytes, walked over without a message class: what a proxy looks up in a request that it passes on."""

from collections.abc import Collection, Iterator

_VARINT_BYTES_MAX = 10
_LEN = 2  # the wire type of strings, bytes and messages


def fields(message: bytes, numbers: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Number and content of each string, or message, in the fields of these numbers, as they come. Bytes that are no
    message end it early.
    """
    offset = 0
    while offset < len(message):
        tag, offset = varint(message, offset)
        if tag & 7 == _LEN and tag >> 3 in numbers:
            length, start = varint(message, offset)
            if length <= len(message) - start:
                yield tag >> 3, message[start : start + length]
        after = past(message, tag, offset)
        if after is None:
            return
        offset = after


def past(message: bytes, tag: int, offset: int) -> int | None:
    """Where the field ends whose value begins at `offset`. None: no proto3 message has such a field."""
    match tag & 7:
        case 0:
            return varint(message, offset)[1]
        case 1:
            return offset + 8
        case 2:
            length, offset = varint(message, offset)
            return offset + length
        case 5:
            return offset + 4
    return None  # groups and unknown wire types


def varint(message: bytes, offset: int) -> tuple[int, int]:
    """The number at `offset` and where the next thing begins; past the end where the bytes are cut off."""
    value = 0
    for position in range(_VARINT_BYTES_MAX):
        if offset + position >= len(message):
            break
        byte = message[offset + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, offset + position + 1
    return 0, len(message)
