"""`client.navigator` of the asyncio client: the same names as worldtree's, awaited."""

from collections.abc import Mapping, Sequence
from typing import Any

from worldtree import _navigator_calls as _calls
from worldtree._navigator_calls import Candidates
from worldtree.actions import ActionsLike
from worldtree.aio._transport import Transport
from worldtree.aio.navigate import Navigation
from worldtree.aio.world import World
from worldtree.navigator_convert import MapLike
from worldtree.navigator_types import Cell, Imagination, MapPath, OnRound, Plan, PlannerInfo
from worldtree.reward_types import Rubrics
from worldtree.types import Seconds


class Navigator:
    """The navigator service of a client. For the event loop that the client is on."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def imagine(
        self,
        world: World,
        *,
        candidates: Candidates = 32,
        horizon: int = 6,
        keep: int = 4,
        goal: str = "",
        category: str | None = None,
        weights: Mapping[str, float] | None = None,
        judge: str | Rubrics | None = None,
        actions: Sequence[str] | None = None,
        seed: int = 0,
        repeat: float | None = None,
        chunks: int = 0,
        budget: Seconds | None = None,
        rounds: int = 0,
        halving: float = 2.0,
        stop_at: float = 0.0,
        frames: bool = True,
        on_round: OnRound | None = None,
        timeout: Seconds | None = None,
    ) -> Imagination:
        """The best `keep` of many futures of a world, best first. The world does not move.

        `candidates`: sequences of actions, or how many to draw at random: of `horizon` actions each, out of `actions`
        (None: all of the world's), from `seed`; `repeat` is the chance that an action is that of before. They are
        judged as by `client.reward.rank` (`goal`, `category`, `weights`, `judge`), in `rounds` rounds (0: 4): after
        each, all but the best 1/`halving` are dropped. At most `chunks` chunks (0: all that it takes) and `budget`
        seconds are spent on imagining; with `stop_at` it ends as soon as the first is better than each other with that
        chance. `on_round` gets the ranking after each round.
        """
        call = _calls.imagine(
            world.id,
            await world.action_names(),
            candidates=candidates,
            horizon=horizon,
            keep=keep,
            goal=goal,
            category=category,
            weights=weights,
            judge=judge,
            actions=actions,
            seed=seed,
            repeat=repeat,
            chunks=chunks,
            budget=budget,
            rounds=rounds,
            halving=halving,
            stop_at=stop_at,
            frames=frames,
            on_round=on_round,
        )
        return await self._transport.gather(call, timeout=timeout)

    async def planners(self) -> list[PlannerInfo]:
        """Who can plan."""
        return await self._transport.call(_calls.planners())

    async def plan(
        self,
        world: World | Any,
        *,
        between: ActionsLike = (),
        goal: str = "",
        planner: str = "mpc",
        horizon: int | None = None,
        category: str | None = None,
        weights: Mapping[str, float] | None = None,
        judge: str | Rubrics | None = None,
        actions: Sequence[str] | None = None,
        seed: int = 0,
        candidates: int = 32,
        iterations: int = 3,
        chunks: int = 0,
        budget: Seconds | None = None,
        frames: bool = True,
        timeout: Seconds | None = None,
    ) -> Plan:
        """`horizon` actions (None: as many as suit the planner) that bring a world nearer to a goal, and what will be
        seen. The world does not move. In place of a world: frames [frames, height, width, 3] of one that no session
        holds, the last of now, and the actions `between` them.

        "mpc" imagines `candidates` futures out of `actions` (None: all of the world's), `iterations` times, nearer and
        nearer to the best. They are judged as by `client.reward.rank` (`goal`, `category`, `weights`, `judge`). At most
        `chunks` chunks (0: all that it takes) and `budget` seconds are spent.
        """
        session, seen = "", None
        names: Sequence[str] = ()
        if isinstance(world, World):
            session, names = world.id, await world.action_names()
        else:
            seen = _calls.past(world, between)
        call = _calls.plan(
            session,
            names,
            seen=seen,
            planner=planner,
            horizon=horizon,
            goal=goal,
            category=category,
            weights=weights,
            judge=judge,
            actions=actions,
            seed=seed,
            candidates=candidates,
            iterations=iterations,
            chunks=chunks,
            budget=budget,
            frames=frames,
        )
        return await self._transport.call(call, timeout=timeout)

    async def plan_on_map(
        self,
        blocked: MapLike | None = None,
        *,
        start: Cell,
        goal: Cell,
        open_sides: MapLike | None = None,
        planner: str = "mlm_u",
        model: str | None = None,
        timeout: Seconds | None = None,
    ) -> MapPath:
        """A path over a known map, from start to goal (row, column).

        The map: `blocked` [rows, columns], true or 1 where nobody can stand; or `open_sides` [rows, columns], of each
        cell the sides that can be crossed, 1 up + 2 right + 4 down + 8 left. "mlm_u" asks the maze transformer,
        and A* where its path is not valid or the map too large for it; "a_star" asks A* only.
        """
        call = _calls.plan_on_map(blocked, start=start, goal=goal, open_sides=open_sides, planner=planner, model=model)
        return await self._transport.call(call, timeout=timeout)

    def navigate(
        self,
        goal: str,
        *,
        planner: str | None = None,
        chunk_length: int = 0,
        rate_hz: float = 0.0,
        frames: bool = False,
        seed: int = 0,
        episode: str | None = None,
        chunks: int = 0,
        budget: Seconds | None = None,
        model: str | None = None,
        world: str | None = None,
        judge: str | Rubrics | None = None,
        actions: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Navigation:
        """Steers a robot towards a goal in words, chunk by chunk, for as long as its `async with` lasts.

        `planner` None: "joint". Chunks have `chunk_length` actions (0: 4). A robot that executes `rate_hz` actions a
        second need not wait: each chunk follows from what it will have executed by then. `frames`: whether chunks bring
        what is expected to be seen. A stream that names an `episode` of before goes on with what was seen in it.
        `chunks` and `budget` seconds are what "mpc" may spend on one plan, in `world`, out of `actions` (None: all of
        the world's), as `judge` sees it, under `weights` of its dimensions.
        """
        start = _calls.navigate(
            goal,
            planner=planner,
            chunk_length=chunk_length,
            rate_hz=rate_hz,
            frames=frames,
            seed=seed,
            episode=episode,
            chunks=chunks,
            budget=budget,
            model=model,
            world=world,
            judge=judge,
            actions=actions,
            weights=weights,
        )
        return Navigation(self._transport, start)
