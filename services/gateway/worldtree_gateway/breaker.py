"""A Redis that fails is left alone for a while, and who asks it need not say so."""

import logging
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class CircuitBreaker:
    """Leaves a failing Redis alone for a while, then lets one call try it. The log tells when that begins and ends."""

    def __init__(self, *, failure_count: int, retry_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failure_limit = failure_count
        self._retry_s = retry_s
        self._clock = clock
        self._failures = 0
        self._closed_until_s = 0.0

    @property
    def up(self) -> bool:
        return self._failures < self._failure_limit

    @property
    def failing(self) -> bool:
        """Whether the last call failed: who has waited for that in vain need not wait again."""
        return self._failures > 0

    def allows(self) -> bool:
        """Whether a call may be made now; after a while of failures, yes to one caller each `retry_s`."""
        if self.up:
            return True
        now_s = self._clock()
        if now_s < self._closed_until_s:
            return False
        self._closed_until_s = now_s + self._retry_s
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        if not self.up:
            _log.info("redis is back")
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """A call was not."""
        was_up = self.up
        self._failures += 1
        self._closed_until_s = self._clock() + self._retry_s
        if was_up and not self.up:
            _log.warning("redis is left alone for now", extra={"reason": str(error)})
