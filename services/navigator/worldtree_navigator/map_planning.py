"""Paths over known maps: proposed by the maze transformer, checked step by step, found by A* where they do not hold."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto

from worldtree_navigator.errors import TooManyMaps
from worldtree_navigator.grid import Grid
from worldtree_navigator.maze_catalog import MazeCatalog, ServedMaze
from worldtree_navigator.maze_engine import Proposal

_SEARCHES = 4  # threads: a map of 256 x 256 cells takes a tenth of a second or three, which smaller ones need not wait
MLM_U, A_STAR = "mlm_u", "a_star"
DESCRIPTIONS = {
    MLM_U: "Paths over known maps: a maze transformer that fills in all steps, forwards and backwards; A* checks",
    A_STAR: "Paths over known maps: A*, always the shortest",
}


class Method(Enum):
    """What found a path."""

    MLM_U = auto()
    A_STAR = auto()
    A_STAR_FALLBACK = auto()


@dataclass(frozen=True, slots=True)
class MapQuestion:
    """A map, and where to go on it. `planner`: MLM_U or A_STAR."""

    grid: Grid
    start: int
    goal: int
    planner: str


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """`method`: None where there is no way; `reachable` is set then. `proposal`: None where the model was not asked."""

    path: list[int]
    method: Method | None
    shortest: bool
    reachable: bytes = b""
    rejected: tuple[int, ...] = ()
    proposal: Proposal | None = None
    notes: tuple[str, ...] = ()
    search_s: float = 0.0


class MapPlanner:
    """Plans for whoever asks; a search never holds up the event loop."""

    def __init__(self, catalog: MazeCatalog) -> None:
        self._catalog = catalog
        self._searches = ThreadPoolExecutor(_SEARCHES, thread_name_prefix="map search")

    def start(self) -> None:
        self._catalog.start()

    def stop(self) -> None:
        """Ends when what was begun is done."""
        self._catalog.stop()
        self._searches.shutdown()

    async def read(self, read: Callable[[], MapQuestion]) -> MapQuestion:
        """What `read` returns or raises, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._searches, read)

    def model(self, name: str, version: str = "", digest: str = "") -> ServedMaze | None:
        """The model that a reference means; None: nobody asked for one, and there is none. Raises NotFound."""
        if not (name or version or digest or len(self._catalog)):
            return None
        return self._catalog.get(name, version, digest)

    async def plan(self, question: MapQuestion, model: ServedMaze | None) -> MapAnswer:
        proposal, notes = None, []
        if question.planner == MLM_U:
            try:
                proposal, note = await self._proposal(question, model)
            except TooManyMaps as error:
                proposal, note = None, f"{error}: A* was asked"
            notes = [note] if note else []
        return await asyncio.get_running_loop().run_in_executor(self._searches, _answer, question, proposal, notes)

    async def _proposal(self, question: MapQuestion, model: ServedMaze | None) -> tuple[Proposal | None, str]:
        """The model's path; or None, and why it was not asked."""
        grid = question.grid
        if model is None:
            return None, "no maze model is served: A* was asked"
        engine = model.engine
        if not engine.takes(grid):
            most = f"{engine.model.max_rows} x {engine.model.max_columns}"
            return None, f"{model.stored.name} takes maps of up to {most} cells, not {grid.rows} x {grid.columns}"
        return await engine.propose(grid, question.start, question.goal), ""


def _answer(question: MapQuestion, proposal: Proposal | None, notes: list[str]) -> MapAnswer:
    """A* says how short a path can be, whoever found it."""
    began_s = time.perf_counter()
    grid, start, goal = question.grid, question.start, question.goal
    shortest = grid.shortest_path(start, goal)
    rejected: tuple[int, ...] = ()
    if proposal is not None:
        fault = grid.path_fault(proposal.path, start, goal)
        if fault is None:
            assert shortest is not None, f"a path of {len(proposal.path)} cells where A* finds none"
            return MapAnswer(
                proposal.path,
                Method.MLM_U,
                len(proposal.path) == len(shortest),
                proposal=proposal,
                notes=tuple(notes),
                search_s=time.perf_counter() - began_s,
            )
        rejected, notes = tuple(proposal.path), [*notes, f"the maze model's path is not valid: {fault}"]
    if shortest is None:
        reachable = grid.reachable(start)
        told = f"there is no way from {grid.place(start)} to {grid.place(goal)}: {sum(reachable)} cells can be reached"
        return MapAnswer(
            [],
            None,
            False,
            reachable,
            rejected,
            proposal,
            (*notes, told),
            time.perf_counter() - began_s,
        )
    method = Method.A_STAR if question.planner == A_STAR else Method.A_STAR_FALLBACK
    return MapAnswer(
        shortest,
        method,
        True,
        rejected=rejected,
        proposal=proposal,
        notes=tuple(notes),
        search_s=time.perf_counter() - began_s,
    )
