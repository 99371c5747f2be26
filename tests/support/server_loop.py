"""Servers of tests that block the thread that they run in."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any


class ServerLoop:
    """An event loop in a thread of its own, for servers of tests that block the thread that they run in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self._thread = threading.Thread(target=self.loop.run_forever, name="servers")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def enter(self, context: Any) -> Any:
        return self.run(self.stack.enter_async_context(context))

    def tasks(self) -> list[str]:
        async def names() -> list[str]:
            return [repr(each) for each in asyncio.all_tasks() if each is not asyncio.current_task()]

        return self.run(names())

    def close(self) -> None:
        self.run(self.stack.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
