"""The thread for what is read and written element by element: JSON, and typed contents."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

_SHORT_BYTES = 2048  # are done sooner than handed over

_Made = TypeVar("_Made")


class JsonThread:
    """One for all: it works in Python, so the loop keeps its share of the interpreter whatever waits here."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="json")

    async def run(self, read: Callable[..., _Made], body: bytes, *also: Any) -> _Made:
        """What `read` makes of a body, or raises of it."""
        return await self.work(partial(read, body, *also), len(body))

    async def work(self, work: Callable[[], _Made], size_bytes: int) -> _Made:
        """What `work` gives or raises, of so many bytes. No step of it may take long: C code has the interpreter to
        itself.
        """
        if size_bytes <= _SHORT_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
