"""From an engine's thread to whoever awaits on an event loop."""

import asyncio
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def deliver(future: "asyncio.Future[T]", result: T | Exception) -> None:
    """Settles a future of another thread's loop, unless somebody gave it up. Never waits."""

    def settle() -> None:
        if future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    with suppress(RuntimeError):  # the loop is closed: its server is gone, and with it whoever asked
        future.get_loop().call_soon_threadsafe(settle)
