"""`client.navigator` of the asyncio client: the same names as worldtree's, awaited."""

from collections.abc import Mapping, Sequence

from worldtree import _navigator_calls as _calls
from worldtree._navigator_calls import Candidates
from worldtree.aio._transport import Transport
from worldtree.aio.world import World
from worldtree.navigator_types import Imagination, OnRound, Plan, PlannerInfo
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
        world: World,
        *,
        goal: str = "",
        planner: str = "mpc",
        horizon: int = 8,
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
        """`horizon` actions that bring a world nearer to a goal, and what will be seen. The world does not move.

        "mpc" imagines `candidates` futures out of `actions` (None: all of the world's), `iterations` times, nearer and
        nearer to the best. They are judged as by `client.reward.rank` (`goal`, `category`, `weights`, `judge`). At most
        `chunks` chunks (0: all that it takes) and `budget` seconds are spent.
        """
        call = _calls.plan(
            world.id,
            await world.action_names(),
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
