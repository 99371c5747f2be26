"""Merges that have a name, kept where all replicas find them: a name stands for one content, and is never moved."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from worldtree_runtime.stores import Store

from worldtree_multitask.domain import Blend, Card
from worldtree_multitask.errors import MergeNameTaken, MergeNotFound, TooManyMerges
from worldtree_multitask.records import blend_bytes, card_bytes, read_blend, read_card
from worldtree_multitask.shelf import Shelf

_FOR_EVER_S = 10 * 365 * 86_400.0
_LOCK_S = 10.0  # after which one who died with the lock no longer holds it
_LOCK_POLL_S = 0.01
_PREFIX = "worldtree/multitask"
_INDEX, _LOCK = f"{_PREFIX}/index", f"{_PREFIX}/lock"
_BLENDS_BYTES = 64 << 20


class Merges:
    """For one event loop. Everything but `get` and `blend` takes turns, over all replicas that share the store.

    In the store: the card and the blend of each name, what each name stands for, and the list of names. What a name
    stands for outlives the merge by `name_reuse_s`: until then answers by that name may be cached.
    """

    def __init__(self, store: Store, *, name_reuse_s: float, limit: int) -> None:
        self._store = store
        self._name_reuse_s = name_reuse_s
        self._limit = limit
        self._lock = asyncio.Lock()
        self._blends: Shelf[Blend] = Shelf(_BLENDS_BYTES)

    async def find(self, name: str) -> Card | None:
        """None: there is none."""
        data = await self._store.get(_card_key(name))
        return read_card(data) if data is not None else None

    async def get(self, name: str) -> Card:
        """Raises MergeNotFound."""
        card = await self.find(name)
        if card is None:
            raise MergeNotFound(name, await self._names())
        return card

    async def blend(self, card: Card) -> Blend:
        """What a merge's weights are made of. Raises MergeNotFound when it was deleted meanwhile."""
        found = self._blends.get(card.digest)
        if found is None:
            data = await self._store.get(_blend_key(card.name))
            found = read_blend(data) if data is not None else None
            if found is None or found.digest != card.digest:
                raise MergeNotFound(card.name, await self._names())
            self._blends.put(card.digest, found, found.byte_count)
        return found

    async def add(self, made: Sequence[tuple[Card, Blend]]) -> Card:
        """Gives merges their names, all or none; the first is told. One that already stands for the same stays.

        Raises MergeNameTaken and TooManyMerges.
        """
        async with self._turn():
            names = await self._names()
            if len(set(names) | {card.name for card, _ in made}) > self._limit:
                raise TooManyMerges(self._limit)
            for card, _ in made:
                bound = await self._store.get(_name_key(card.name))
                if bound is not None and bound.decode() != card.digest:
                    raise MergeNameTaken(card.name, bound.decode(), reuse_s=self._name_reuse_s)
            if made[0][0].name in names:
                return await self.get(made[0][0].name)
            for card, blend in made:
                await self._store.set_many(
                    {
                        _name_key(card.name): card.digest.encode(),
                        _blend_key(card.name): blend_bytes(blend),
                        _card_key(card.name): card_bytes(card),
                    },
                    _FOR_EVER_S,
                )
            new = [card.name for card, _ in made if card.name not in names]
            await self._store.set(_INDEX, json.dumps([*names, *new]).encode(), _FOR_EVER_S)
        return made[0][0]

    async def delete(self, name: str) -> Card:
        """Forgets a merge, and with a front its points; the card that it had. Raises MergeNotFound."""
        async with self._turn():
            card = await self.get(name)
            gone = [name, *(point.merge for point in card.points)]
            names = [each for each in await self._names() if each not in gone]
            await self._store.set(_INDEX, json.dumps(names).encode(), _FOR_EVER_S)
            for each in gone:
                bound = await self._store.get(_name_key(each))
                await self._store.delete(_card_key(each))
                await self._store.delete(_blend_key(each))
                if bound is not None and self._name_reuse_s > 0:
                    await self._store.set(_name_key(each), bound, self._name_reuse_s)
                elif bound is not None:
                    await self._store.delete(_name_key(each))
        return card

    async def cards(self) -> list[Card]:
        """All of them, oldest first."""
        names = await self._names()
        found = await self._store.get_many([_card_key(name) for name in names])
        cards = [card for data in found if data is not None and (card := read_card(data)) is not None]
        return sorted(cards, key=_age)

    async def _names(self) -> list[str]:
        data = await self._store.get(_INDEX)
        names: list[str] = json.loads(data) if data is not None else []
        return names

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Nobody else adds or deletes meanwhile, here or in another replica."""
        own = secrets.token_bytes(8)
        async with self._lock:
            while not await self._store.set_if_absent(_LOCK, own, _LOCK_S):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(_LOCK_POLL_S)
            try:
                yield
            finally:
                if await self._store.get(_LOCK) == own:
                    await self._store.delete(_LOCK)


def _age(card: Card) -> tuple[float, str, int]:
    """Points of a front stand behind it, in their order."""
    index = int(card.name.rpartition(".")[2]) if card.front else -1
    return (card.create_s, card.front or card.name, index)


def _card_key(name: str) -> str:
    return f"{_PREFIX}/card/{name}"


def _blend_key(name: str) -> str:
    return f"{_PREFIX}/blend/{name}"


def _name_key(name: str) -> str:
    return f"{_PREFIX}/name/{name}"
