"""Sessions used at random: what was done with each and what it showed, so that it can all be done again elsewhere."""

import asyncio
import hashlib
import itertools
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from worldtree_video.catalog import Served
from worldtree_video.domain import Action, KvPolicy, PolicyKind
from worldtree_video.recipe import Recipe

TTL_S = 3600.0
AT_ONCE = 4  # sessions used at the same time
NFE = 1
MAX_CHUNKS = 32  # a session that stands further on goes back
STEERING = 3  # actions used: left, right, forward
Shown = tuple[bytes, ...]  # SHA-256 of the pixels of each chunk in an answer


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing done with session `number`. `child`: the number of the one that a fork makes."""

    way: Literal["create", "step", "rewind", "fork", "delete"]
    number: int
    actions: tuple[Action, ...] = ()
    chunk_count: int = 0
    child: int = 0


@dataclass(slots=True)
class Touched:
    """The deeds with what they showed, in an order that keeps that of each session; and what raised."""

    deeds: list[tuple[Deed, Shown]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def chunk_count(self) -> int:
        return sum(len(shown) for _, shown in self.deeds)


class Numbered:
    """Sessions of one engine by number, and where each stands."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._names: dict[int, str] = {}
        self.chunk_counts: dict[int, int] = {}

    async def do(self, deed: Deed) -> Shown:
        """What the deed shows here."""
        worlds, number = self.served.worlds, deed.number
        match deed.way:
            case "create":
                session = await worlds.create(recipe_of(self.served, number), ttl_s=TTL_S)
                self._names[number], self.chunk_counts[number] = session.name, 0
            case "step":
                chunks = await worlds.step(self._names[number], deed.actions)
                self.chunk_counts[number] += len(chunks)
                return tuple(_digest(chunk.frames) for chunk in chunks)
            case "rewind":
                session = await worlds.rewind(self._names[number], deed.chunk_count)
                self.chunk_counts[number] -= deed.chunk_count
                return (_digest(await worlds.last_frames(session)),)
            case "fork":
                [session] = worlds.fork(self._names[number], seeds=[None], ttl_s=TTL_S)
                self._names[deed.child], self.chunk_counts[deed.child] = session.name, self.chunk_counts[number]
            case "delete":
                del self.chunk_counts[number]
                worlds.delete(self._names.pop(number))
        return ()


class Toucher:
    """Opens `session_count` sessions with a full window each, then uses them at random, some at the same time."""

    def __init__(self, served: Served, *, session_count: int, seed: int) -> None:
        self.touched = Touched()
        self._session_count = session_count
        self._window = served.package.kv.window
        self._sessions = Numbered(served)
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._in_use: set[int] = set()

    async def open(self, progress: Callable[[], None]) -> None:
        """All sessions, one after another."""
        for number in itertools.islice(self._numbers, self._session_count):
            await self._do(Deed("create", number))
            await self._do(Deed("step", number, actions=self._steering(self._window)))
            progress()

    async def touch(self, seconds: float, progress: Callable[[], None]) -> None:
        """For so long."""
        ends_s = time.monotonic() + seconds

        async def go_on() -> None:
            while time.monotonic() < ends_s:
                await self._do(self._next())
                progress()

        await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))

    def _next(self) -> Deed:
        idle = [number for number in self._sessions.chunk_counts if number not in self._in_use]
        number = self._chance.choice(idle)
        if len(idle) + len(self._in_use) > self._session_count:
            return Deed("delete", number)
        standing = self._sessions.chunk_counts[number]
        dice = self._chance.random()
        if standing > MAX_CHUNKS:
            return Deed("rewind", number, chunk_count=standing - self._window)
        if standing and dice < 0.15:
            return Deed("rewind", number, chunk_count=self._chance.randint(1, min(standing, 4)))
        if dice < 0.25:
            return Deed("fork", number, child=next(self._numbers))
        return Deed("step", number, actions=self._steering(self._chance.randint(1, 2)))

    async def _do(self, deed: Deed) -> None:
        self._in_use.add(deed.number)
        try:
            self.touched.deeds.append((deed, await self._sessions.do(deed)))
        except Exception:  # counted, whatever it is
            self.touched.errors.append(f"{deed}: {traceback.format_exc(limit=-3)}")
        finally:
            self._in_use.discard(deed.number)

    def _steering(self, count: int) -> tuple[Action, ...]:
        return tuple(Action(self._chance.randrange(STEERING)) for _ in range(count))


async def count_wrong(touched: Touched, elsewhere: Served, progress: Callable[[], None]) -> int:
    """Does all of it again, one deed after another; how many chunks show something else there."""
    sessions, wrong = Numbered(elsewhere), 0
    for deed, shown in touched.deeds:
        wrong += sum(here != there for here, there in zip(shown, await sessions.do(deed), strict=True))
        progress()
    for number in list(sessions.chunk_counts):
        await sessions.do(Deed("delete", number))
    return wrong


def recipe_of(served: Served, seed: int, *, nfe: int = NFE) -> Recipe:
    """A world on one of the package's starts."""
    starts = list(served.starts.values())
    policy = KvPolicy(PolicyKind.SINK_WINDOW, served.package.kv.window, 1)
    return Recipe(starts[seed % len(starts)], seed, nfe, policy)


def _digest(frames: bytes) -> bytes:
    return hashlib.sha256(frames).digest()
