"""Recorded answers that are being written to readers, who may be slow: each is there until the last of them has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worldtree_gateway.answers import Answer
from worldtree_gateway.cache import AnswerCache


@dataclass(slots=True)
class _Replay:
    key: bytes
    answer: Answer
    byte_count: int
    reader_count: int = 0


class Replays:
    """Those that the cache never kept, or has let go since, take `byte_limit` together, give or take what it lets go
    while they are read.
    """

    def __init__(self, cache: AnswerCache, byte_limit: int) -> None:
        self._cache = cache
        self._byte_limit = byte_limit
        self._replays: dict[int, _Replay] = {}  # by the answer's id: however many read it, it is there once

    @property
    def held_bytes(self) -> int:
        """Beside what the cache holds."""
        replays = self._replays.values()
        return sum(each.byte_count for each in replays if not self._cache.holds(each.key, each.answer))

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""
        return self.held_bytes <= self._byte_limit

    @contextmanager
    def reading(self, key: bytes, answer: Answer) -> Iterator[None]:
        replay = self._replays.setdefault(id(answer), _Replay(key, answer, answer.byte_count))
        replay.reader_count += 1
        try:
            yield
        finally:
            replay.reader_count -= 1
            if not replay.reader_count:
                del self._replays[id(answer)]
