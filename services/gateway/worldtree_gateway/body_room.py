"""The memory that the bodies of all requests by HTTP may take together."""

from collections.abc import Iterator
from contextlib import contextmanager


class BodyRoom:
    """`limit`: in bytes, over all connections."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @contextmanager
    def part(self) -> Iterator["RoomPart"]:
        """What one request takes, given back at the end of the block."""
        part = RoomPart(self)
        try:
            yield part
        finally:
            self.taken -= part.taken


class RoomPart:
    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self.taken = 0

    def take(self, size: int) -> bool:
        """False: there is no room for so many bytes more."""
        if self._room.taken + size > self._room.limit:
            return False
        self._room.taken += size
        self.taken += size
        return True
