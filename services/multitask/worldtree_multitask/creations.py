"""The making of merges that take long: one at a time in a thread, each once for all who ask for it."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from worldtree_multitask.errors import TooManyCreations
from worldtree_multitask.merging import Cancelled, Step

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_REMEMBERED = 64  # results, so that the same asked for again is not made again

Tell = Callable[[Step], None]


class _Creation(Generic[Result]):
    """One merge in the making, and who waits for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Result] | None = None
        self.step: Step | None = None
        self.changed = asyncio.Event()  # wakes all who wait; each looks whether the step is new to him
        self.waiters = 0
        self.unwanted = threading.Event()

    def tell(self, loop: asyncio.AbstractEventLoop) -> Tell:
        def told(step: Step) -> None:
            if self.unwanted.is_set():
                raise Cancelled
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.move, step)

        return told

    def move(self, step: Step) -> None:
        self.step = step
        self.changed.set()


class Creations(Generic[Result]):
    """For one event loop."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._running: dict[str, _Creation[Result]] = {}
        self._made: dict[str, Result] = {}  # the latest last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="merging")

    def __len__(self) -> int:
        return len(self._running)

    async def make(self, key: str, work: Callable[[Tell], Result]) -> AsyncGenerator[Step | Result, None]:
        """How far it is, then the result. `work` runs in the thread, for the first who asks under `key`; it is told to
        stop, through what its `tell` raises, when the last who asked has left. Raises what it raises, and
        TooManyCreations.
        """
        if key in self._made:
            yield self._made[key]
            return
        creation = self._running.get(key)
        if creation is None or creation.unwanted.is_set():
            creation = self._begin(key, work)
        assert creation.task is not None, "a creation has its task from the beginning"
        creation.waiters += 1
        try:
            shown: Step | None = None
            while not creation.task.done():
                if creation.step is not None and creation.step is not shown:
                    shown = creation.step
                    yield shown
                    continue
                creation.changed.clear()
                moved = asyncio.ensure_future(creation.changed.wait())
                try:
                    await asyncio.wait((moved, creation.task), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    moved.cancel()
            yield creation.task.result()
        finally:
            creation.waiters -= 1
            if not creation.waiters and not creation.task.done():
                creation.unwanted.set()

    async def aclose(self) -> None:
        """Stops what is being made, and waits for that."""
        tasks = []
        for creation in self._running.values():
            creation.unwanted.set()
            if creation.task is not None:
                tasks.append(creation.task)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=True)

    def _begin(self, key: str, work: Callable[[Tell], Result]) -> _Creation[Result]:
        if len(self._running) >= self._limit:
            raise TooManyCreations(self._limit)
        creation = _Creation[Result]()
        loop = asyncio.get_running_loop()
        tell = creation.tell(loop)

        def run() -> Result:
            if creation.unwanted.is_set():
                raise Cancelled
            return work(tell)

        async def task() -> Result:
            try:
                result = await loop.run_in_executor(self._thread, run)
                self._made[key] = result
                while len(self._made) > _REMEMBERED:
                    del self._made[next(iter(self._made))]
                return result
            finally:
                if self._running.get(key) is creation:
                    del self._running[key]

        creation.task = asyncio.create_task(task(), name=f"make merge {key[:8]}")
        creation.task.add_done_callback(_retrieved)
        self._running[key] = creation
        return creation


def _retrieved(task: "asyncio.Task[Result]") -> None:
    # Nobody may be left to hear of it.
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Cancelled):
        log.info("a merge was not made: %s", error)
