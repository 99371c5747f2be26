"""Reads the id in field 1 off a request's raw bytes, as the service will that reads all of it."""

import re
from collections.abc import Iterator
from functools import lru_cache

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue

from worldtree_gateway.wire import fields

_REPLICA = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")  # what the setting `replica` takes
_ID_BYTES_MAX = 253  # a DNS name; nothing longer is one of ours


def first_string(request: bytes) -> str | None:
    """The string in field 1, or None: it is absent, empty, or the bytes are no message (the backend says so better).

    Protobuf lets fields come in any order and more than once, where the last one counts. So it is protobuf that looks:
    a string in field 1 is all that a StringValue knows, and what it passes over costs about a microsecond.
    """
    try:
        found = StringValue.FromString(request).value
    except DecodeError:
        return None
    return found if 0 < len(found.encode()) <= _ID_BYTES_MAX else None


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
