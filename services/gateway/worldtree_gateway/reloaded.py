"""Files that may change while they are in use: keys, tokens' keys, certificates."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class ReloadedFiles(Generic[T]):
    """What `read` makes of some files, made again when one of them has changed.

    They are looked at when the value is asked for, and at most each `every_s`: a few microseconds, in whatever thread
    asks. What can't be read (somebody is in the middle of writing it) is logged once, the last value stays, and each
    look tries again. Constructing it reads them, and raises what `read` raises: OSError or ValueError.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        *,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._every_s = every_s
        self._clock = clock
        # before they are read: what is written meanwhile is noticed as a change
        self._seen = self._state()
        self._looked_s = clock()
        self._value = read()
        self._failed: tuple[object, str] | None = None  # what was there, and why it couldn't be read: already logged

    def get(self) -> T:
        now_s = self._clock()
        if now_s - self._looked_s >= self._every_s:
            self._looked_s = now_s
            state = self._state()
            if state != self._seen:
                self._reload(state)
        return self._value

    def _reload(self, state: tuple[object, ...]) -> None:
        names = [str(path) for path in self._paths]
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            # only what was read is seen: what failed for a moment would else stay unread until the next change
            failed = (state, str(error))
            if failed != self._failed:
                _log.error(
                    "files that changed can't be read, so what they said before stays: %s",
                    error,
                    extra={"files": names},
                )
            self._failed = failed
        else:
            self._seen, self._failed = state, None
            _log.info("files that changed were read again", extra={"files": names})

    def _state(self) -> tuple[object, ...]:
        return tuple(_state_of(path) for path in self._paths)


def _state_of(path: Path) -> object:
    try:
        found = os.stat(path)  # of what a link leads to: mounted secrets change by their links
    except OSError as error:
        return error.errno
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
