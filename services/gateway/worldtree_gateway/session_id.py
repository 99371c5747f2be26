"""Reads the id in field 1 off a request's raw bytes: one varint where the writer kept the usual order."""

import re
from collections.abc import Iterator
from functools import lru_cache

from worldtree_gateway.wire import fields, past, varint

_REPLICA = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")  # what the setting `replica` takes
_FIELD_1_STRING = 0x0A  # field 1, wire type LEN
_ID_BYTES_MAX = 253  # a DNS name; nothing longer is one of ours


def first_string(request: bytes) -> str | None:
    """The string in field 1, or None: it is absent, empty, or the bytes are no message (the backend says so better).

    Protobuf lets fields come in any order, so a request that doesn't begin with field 1 is walked over.
    """
    if not request:
        return None
    if request[0] == _FIELD_1_STRING:
        return _string(request, 1)
    return _search(request)


def sessions_in(answer: bytes) -> Iterator[str]:
    """The ids in field 1 of the messages in field 1 of an answer's bytes: of the sessions that a call has opened."""
    for _, opened in fields(answer, (1,)):
        session = first_string(opened)
        if session is not None:
            yield session


@lru_cache(4096)  # the same sessions call again and again
def home(session: str) -> str | None:
    """The replica that an id `<opaque>.<home>` was made on. None: it is no such id."""
    opaque, _, replica = session.rpartition(".")
    # callers write ids, and this name may go into metadata, which takes ASCII only
    return replica if opaque and _REPLICA.fullmatch(replica) else None


def _string(request: bytes, offset: int) -> str | None:
    length, offset = varint(request, offset)
    if not 0 < length <= min(_ID_BYTES_MAX, len(request) - offset):
        return None
    try:
        return request[offset : offset + length].decode()
    except UnicodeDecodeError:
        return None


def _search(request: bytes) -> str | None:
    offset = 0
    while offset < len(request):
        tag, offset = varint(request, offset)
        if tag == _FIELD_1_STRING:
            return _string(request, offset)
        passed = past(request, tag, offset)
        if passed is None:
            return None
        offset = passed
    return None
