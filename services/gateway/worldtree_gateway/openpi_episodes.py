"""Episodes of robots that speak openpi: what each was told last outlives its connection."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Episode:
    """`name`: by which the navigator knows it. `step`: actions executed by the last observation that was answered, None
    before the first. `chunk`: ids of the actions that were sent then.
    """

    name: str
    planner: str
    prompt: str
    step: int | None = None
    chunk: tuple[int, ...] = ()


class Episodes:
    """By whose it is and the name that its robot gives it, for `keep_s` after the last chunk; the latest `limit`."""

    def __init__(self, *, keep_s: float, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s, self._limit, self._clock = keep_s, limit, clock
        self._episodes: OrderedDict[tuple[str, str], tuple[Episode, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._episodes)

    def get(self, owner: str, name: str) -> Episode | None:
        self._forget()
        found = self._episodes.get((owner, name))
        return None if found is None else found[0]

    def put(self, owner: str, name: str, episode: Episode) -> None:
        self._episodes[owner, name] = (episode, self._clock())
        self._episodes.move_to_end((owner, name))
        self._forget()

    def _forget(self) -> None:
        """The oldest come first, as each put moves one to the end."""
        oldest_s = self._clock() - self._keep_s
        while self._episodes:
            _, put_s = next(iter(self._episodes.values()))
            if len(self._episodes) <= self._limit and put_s >= oldest_s:
                return
            self._episodes.popitem(last=False)
