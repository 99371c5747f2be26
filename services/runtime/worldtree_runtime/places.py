"""Places for what may be under way at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import Gauge


class Places:
    """`limit` of them, and a gauge that shows how many are taken. `refusal`: what whoever finds none is told, by it."""

    def __init__(self, limit: int, gauge: Gauge, refusal: Callable[[int], Exception]) -> None:
        self._limit, self._gauge, self._refusal = limit, gauge, refusal
        self._taken_count = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """One, for as long as the block lasts. Raises the refusal."""
        if self._taken_count >= self._limit:
            raise self._refusal(self._limit)
        self._taken_count += 1
        self._gauge.set(self._taken_count)
        try:
            yield
        finally:
            self._taken_count -= 1
            self._gauge.set(self._taken_count)
