"""The loop of one maze model, in a thread of its own: maps of one size take a round together, joining at any."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from worldtree_runtime.batch_engine import BatchEngine
from worldtree_runtime.futures import deliver

from worldtree_navigator.errors import MapsStopped, TooManyMaps
from worldtree_navigator.grid import Grid
from worldtree_navigator.maze_model import Filling, MazeModel
from worldtree_navigator.maze_path import follow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the model says. `path`: as far as it came, valid or not. `chance`: its probability. `queue_s`: until its
    first round.
    """

    path: list[int]
    chance: float
    queue_s: float
    run_s: float


@dataclass(eq=False)
class _Request:
    grid: Grid
    start: int
    goal: int
    filling: Filling
    answer: "asyncio.Future[Proposal]"
    arrived_s: float
    begun_s: float | None = None
    cancelled: bool = False
    size: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.grid.rows, self.grid.columns


class MazeEngine(BatchEngine[_Request]):
    """`propose` is for event loops, everything else for the owner."""

    def __init__(
        self,
        model: MazeModel,
        *,
        name: str,
        max_batch: int,
        max_waiting: int,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`max_waiting`: maps that are not done. `observe` is told the size of each batch."""
        super().__init__(f"engine {name}")
        self.model = model
        self._name, self._max_batch, self._max_waiting, self._observe = name, max_batch, max_waiting, observe
        self._queue: deque[_Request] = deque()

    def takes(self, grid: Grid) -> bool:
        return grid.rows <= self.model.max_rows and grid.columns <= self.model.max_columns

    async def propose(self, grid: Grid, start: int, goal: int) -> Proposal:
        """Raises TooManyMaps."""
        answer: asyncio.Future[Proposal] = asyncio.get_running_loop().create_future()
        filling = self.model.begin(grid.rows, grid.columns, grid.open_sides, start, goal)
        request = _Request(grid, start, goal, filling, answer, time.perf_counter())
        with self._wake:
            if self._stopping:
                raise MapsStopped
            if len(self._queue) >= self._max_waiting:
                raise TooManyMaps(self._max_waiting)
            self._queue.append(request)
            self._wake.notify()
        try:
            return await answer
        finally:
            request.cancelled = True

    def _serve(self, batch: Sequence[_Request]) -> None:
        try:
            self._step(batch)
        except Exception as error:  # the batch fails, and no other
            log.exception("a round failed", extra={"model": self._name})
            for request in batch:
                deliver(request.answer, error)

    def _take(self) -> list[_Request]:
        """Those that share the size of whoever waits longest."""
        batch: list[_Request] = []
        others: list[_Request] = []
        while self._queue:
            request = self._queue.popleft()
            if request.cancelled:
                continue
            joins = not batch or (request.size == batch[0].size and len(batch) < self._max_batch)
            (batch if joins else others).append(request)
        self._queue.extend(others)
        return batch

    def _step(self, batch: Sequence[_Request]) -> None:
        now_s = time.perf_counter()
        for request in batch:
            request.begun_s = request.begun_s or now_s
        self.model.advance([request.filling for request in batch])
        self._observe(len(batch))
        still = []
        for request in batch:
            if request.filling.done:
                deliver(request.answer, self._proposal(request))
            else:
                still.append(request)
        with self._wake:
            self._queue.extend(still)  # behind those of other sizes: nobody waits for more than a round of each

    def _proposal(self, request: _Request) -> Proposal:
        filling, begun_s = request.filling, request.begun_s or request.arrived_s
        labels, chances = filling.labels.ravel().tolist(), filling.chances.ravel().tolist()
        path, chance = follow(request.grid, labels, chances, request.start, request.goal)
        return Proposal(path, chance, begun_s - request.arrived_s, time.perf_counter() - begun_s)
