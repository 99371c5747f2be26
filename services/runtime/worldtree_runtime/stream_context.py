"""A stream's way to its reader, who may not hold it for ever."""

import asyncio
from typing import Any

from worldtree_runtime.errors import DeadlineExceeded


class StreamContext:
    """A call's context, all of it, whose writes wait for the reader only `unread_s` each.

    A stream that writes nothing is not unread: its handler may take its time.
    """

    def __init__(self, context: Any, unread_s: float) -> None:
        self._context = context
        self._unread_s = unread_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        """Raises DeadlineExceeded."""
        try:
            async with asyncio.timeout(self._unread_s):
                await self._context.write(message)
        except TimeoutError as error:
            limit_s = f"{self._unread_s:g}"
            raise DeadlineExceeded("UNREAD", f"nothing was read for {limit_s} s", limit_s=limit_s) from error
