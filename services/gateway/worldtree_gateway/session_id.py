"""Reads the id in field 1 off a request's raw bytes: one varint where the writer kept the usual order."""

import re

_REPLICA = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")  # what the setting `replica` takes
_FIELD_1_STRING = 0x0A  # field 1, wire type LEN
_ID_BYTES_MAX = 253  # a DNS name; nothing longer is one of ours
_VARINT_BYTES_MAX = 10


def first_string(request: bytes) -> str | None:
    """The string in field 1, or None: it is absent, empty, or the bytes are no message (the backend says so better).

    Protobuf lets fields come in any order, so a request that doesn't begin with field 1 is walked over.
    """
    if not request:
        return None
    if request[0] == _FIELD_1_STRING:
        return _string(request, 1)
    return _search(request)


def home(session: str) -> str | None:
    """The replica that an id `<opaque>.<home>` was made on. None: it is no such id."""
    opaque, _, replica = session.rpartition(".")
    # callers write ids, and this name may go into metadata, which takes ASCII only
    return replica if opaque and _REPLICA.fullmatch(replica) else None


def _string(request: bytes, offset: int) -> str | None:
    length, offset = _varint(request, offset)
    if not 0 < length <= min(_ID_BYTES_MAX, len(request) - offset):
        return None
    try:
        return request[offset : offset + length].decode()
    except UnicodeDecodeError:
        return None


def _search(request: bytes) -> str | None:
    offset = 0
    while offset < len(request):
        tag, offset = _varint(request, offset)
        if tag == _FIELD_1_STRING:
            return _string(request, offset)
        match tag & 7:
            case 0:
                _, offset = _varint(request, offset)
            case 1:
                offset += 8
            case 2:
                length, offset = _varint(request, offset)
                offset += length
            case 5:
                offset += 4
            case _:
                return None  # groups and unknown wire types: no proto3 message
    return None


def _varint(request: bytes, offset: int) -> tuple[int, int]:
    """The number at `offset` and where the next thing begins; past the end where the bytes are cut off."""
    value = 0
    for position in range(_VARINT_BYTES_MAX):
        if offset + position >= len(request):
            break
        byte = request[offset + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, offset + position + 1
    return 0, len(request)
