"""The thread that reads what callers send as JSON."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

_SHORT_BYTES = 2048  # are read sooner than handed over

_Read = TypeVar("_Read")


class JsonThread:
    """One for all: JSON is read in Python, so the loop keeps its share of the interpreter whatever waits here."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")

    async def run(self, read: Callable[..., _Read], body: bytes, *also: Any) -> _Read:
        """What `read` makes of a body, or raises of it."""
        if len(body) <= _SHORT_BYTES:
            return read(body, *also)
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(read, body, *also))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
