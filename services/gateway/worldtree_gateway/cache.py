"""Recorded answers of this process (L1)."""

import time
from collections import OrderedDict
from collections.abc import Callable

from worldtree_gateway.answers import Answer
from worldtree_gateway.keys import KeyPattern


class AnswerCache:
    """Least recently used answers leave first; together they never take more than `byte_limit`."""

    def __init__(self, byte_limit: int, *, stale_s: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        """`stale_s`: for so long after its time an answer is still given, to whoever names no age."""
        self.byte_limit = byte_limit
        self.byte_count = 0
        self._stale_s = stale_s
        self.purge_count = 0  # what was asked for before the last purge may be what it was to forget
        self._clock = clock
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def get(self, key: bytes, *, age_max_s: float | None = None) -> Answer | None:
        answer = self._answers.get(key)
        if answer is None:
            return None
        now_s = self._clock()
        if now_s >= answer.expire_time_s + self._stale_s:
            self._drop(key)
            return None
        if age_max_s is not None and not answer.fresh(now_s, age_max_s=age_max_s):
            return None  # too old for this caller, but not for the next
        self._answers.move_to_end(key)
        return answer

    def holds(self, key: bytes, answer: Answer) -> bool:
        """Whether it is this very one that is kept."""
        return self._answers.get(key) is answer

    def put(self, key: bytes, answer: Answer) -> None:
        if key in self._answers:
            self._drop(key)
        if answer.byte_count > self.byte_limit:
            return
        self._answers[key] = answer
        self.byte_count += answer.byte_count
        while self.byte_count > self.byte_limit:
            self._drop(next(iter(self._answers)))

    def purge(self, pattern: KeyPattern) -> int:
        """How many answers are forgotten."""
        self.purge_count += 1
        found = [key for key in self._answers if pattern.matches(key)]
        for key in found:
            self._drop(key)
        return len(found)

    def check_integrity(self) -> None:
        """Recounts. Tests call it at their end."""
        counted = sum(answer.byte_count for answer in self._answers.values())
        assert counted == self.byte_count, f"counted {counted} bytes, booked {self.byte_count}"
        assert self.byte_count <= self.byte_limit, f"{self.byte_count} bytes held, limit {self.byte_limit}"

    def _drop(self, key: bytes) -> None:
        self.byte_count -= self._answers.pop(key).byte_count
