"""When to try a call again, and after how long. Sans-io: the clock is passed in, nobody sleeps here."""

import random
from collections.abc import Callable

from worldtree.errors import Unavailable, WorldtreeError

MAX_ATTEMPTS = 5
FIRST_DELAY_S = 0.1
MAX_DELAY_S = 5.0
MAX_RETRY_AFTER_S = 30.0  # a server that asks for more patience than this gets its error passed on
GROWTH = 2.0
JITTER = 0.2  # of the delay, up or down, so that a fleet of clients does not come back at one instant


class Attempts:
    """The tries of one call against its deadline.

    Only UNAVAILABLE is tried again (AIP-194), and only for a call that is safe to repeat. RESOURCE_EXHAUSTED is not:
    its `retry_after_s` is the caller's to weigh.
    """

    def __init__(
        self,
        *,
        safe: bool,
        timeout_s: float | None,
        clock: Callable[[], float],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._safe = safe
        self._clock = clock
        self._jitter = jitter
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._failed_count = 0

    @property
    def remaining_s(self) -> float | None:
        """What is left for the next try. None: no deadline."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 0.001)

    def delay_after(self, error: WorldtreeError) -> float | None:
        """Seconds to wait before the next try. None: `error` is final."""
        self._failed_count += 1
        if not self._safe or not isinstance(error, Unavailable) or self._failed_count >= MAX_ATTEMPTS:
            return None
        delay_s = min(FIRST_DELAY_S * GROWTH ** (self._failed_count - 1), MAX_DELAY_S)
        delay_s *= 1 + JITTER * (2 * self._jitter() - 1)
        if error.retry_after_s is not None:
            if error.retry_after_s > MAX_RETRY_AFTER_S:
                return None
            # The server knows better than our curve, both ways; jitter only ever adds to what it asked for.
            delay_s = error.retry_after_s * (1 + JITTER * self._jitter())
        if self._deadline is not None and self._clock() + delay_s >= self._deadline:
            return None
        return delay_s
