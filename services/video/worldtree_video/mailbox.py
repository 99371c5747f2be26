"""From the engine's thread to a coroutine: items in order, then an end or an error."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


class Mailbox(Generic[Item]):
    """Made on the event loop that will read it; `put` and `close` may be called from any thread and never block."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item | _End] = asyncio.Queue()
        self._end: _End | None = None

    def put(self, item: Item) -> None:
        """One more item."""
        self._send(item)

    def close(self, error: Exception | None = None) -> None:
        """No more will come. Only the first close counts."""
        self._send(_End(error))

    def reopen(self) -> None:
        """After its end was read: more will come. A close with an error that came meanwhile still counts."""
        self._end = None

    def __aiter__(self) -> "Mailbox[Item]":
        return self

    async def __anext__(self) -> Item:
        if self._end is None:
            item = await self._items.get()
            if not isinstance(item, _End):
                return item
            self._end = item
        if self._end.error:
            raise self._end.error
        raise StopAsyncIteration

    def _send(self, item: Item | _End) -> None:
        # A closed loop has no reader: its server is gone, and the engine is about to stop.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
