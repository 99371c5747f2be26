"""Blends of recipes that are made in passing: each is made once, and remembered for as long as there is room."""

import asyncio
import json
from collections.abc import Callable

from worldtree_multitask.domain import Blend, Recipe
from worldtree_multitask.shelf import Shelf

_BUDGET_BYTES = 64 << 20
_FORGET_BYTES = 1024  # what remembering costs beside the numbers


class Blends:
    """For one event loop. A recipe asked for by many at once is made by one thread, for all of them."""

    def __init__(self, make: Callable[[Recipe], Blend]) -> None:
        """`make` runs in a thread of the loop's default executor; what it raises reaches every caller."""
        self._make = make
        self._known: Shelf[Blend] = Shelf(_BUDGET_BYTES)
        self._making: dict[str, asyncio.Task[Blend]] = {}

    async def get(self, recipe: Recipe) -> Blend:
        key = recipe_key(recipe)
        found = self._known.get(key)
        if found is not None:
            return found
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._make, recipe), name=f"blend {recipe.method}")
            self._making[key] = task
            task.add_done_callback(lambda done: self._made(key, done))
        # one caller's cancellation isn't the end of it for the others
        return await asyncio.shield(task)

    def _made(self, key: str, task: "asyncio.Task[Blend]") -> None:
        del self._making[key]
        if not task.cancelled() and task.exception() is None:
            self._known.put(key, task.result(), task.result().byte_count + _FORGET_BYTES)


def recipe_key(recipe: Recipe) -> str:
    """Equal for equal recipes."""
    return json.dumps([recipe.method, recipe.parameters], sort_keys=True, separators=(",", ":"))
