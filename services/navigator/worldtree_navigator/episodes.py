"""Episodes: what a robot has seen outlives the stream that it was told in."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from uuid import uuid4

from worldtree_navigator.errors import EpisodeTaken
from worldtree_navigator.foresight import Foresight
from worldtree_navigator.memory import Memory

_PAST = 8  # frames that a world model is given at most


@dataclass(eq=False)
class Episode:
    """What was seen and done. `begun`: whether anything was; `step`: actions executed. `frames` and `between`: the last
    images, and the actions that lead from each to the next, as far as every one of them was seen. `foresight`: of one
    who is steered by imagining.
    """

    name: str
    memory: Memory | None = None
    step: int = 0
    begun: bool = False
    frames: deque[bytes] = field(default_factory=lambda: deque(maxlen=_PAST))
    between: deque[int] = field(default_factory=lambda: deque(maxlen=_PAST - 1))
    foresight: Foresight = field(default_factory=Foresight)
    holder: "asyncio.Future[None] | None" = None

    def saw(self, executed: list[int]) -> None:
        self.begun = True
        self.step += len(executed)

    def keep(self, image: bytes, executed: list[int]) -> None:
        """For a world model, which is shown the past."""
        if len(executed) == 1 and self.frames:
            self.between.append(executed[0])
        else:
            self.frames.clear()
            self.between.clear()
        self.frames.append(image)


class Episodes:
    """By name, for a while after their last stream has ended. A name belongs to whoever `tenant` it was made for."""

    def __init__(self, *, keep_s: float, limit: int) -> None:
        """`limit`: of episodes that no stream goes on with; the longest forgotten go first."""
        self._keep_s, self._limit = keep_s, limit
        self._left: OrderedDict[tuple[str, str, str], tuple[Episode, float]] = OrderedDict()
        self._held: dict[tuple[str, str, str], Episode] = {}

    def __len__(self) -> int:
        return len(self._left) + len(self._held)

    def take(self, tenant: str, policy: str, name: str, now_s: float) -> tuple[Episode, "asyncio.Future[None]"]:
        """The episode, for one stream. A stream that holds it already loses it: its future ends with EpisodeTaken.

        `policy`: what reads its images. An empty name: a new episode.
        """
        self._forget(now_s)
        name = name or uuid4().hex
        key = (tenant, policy, name)
        holder: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        episode = self._held.pop(key, None)
        if episode is not None and episode.holder is not None and not episode.holder.done():
            episode.holder.set_exception(EpisodeTaken(name))
        if episode is None:
            episode, _ = self._left.pop(key, (Episode(name), 0.0))
        episode.holder = holder
        self._held[key] = episode
        return episode, holder

    def leave(self, tenant: str, policy: str, holder: "asyncio.Future[None]", episode: Episode, now_s: float) -> None:
        """The stream has ended. Nothing where another has the episode by now."""
        key = (tenant, policy, episode.name)
        if episode.holder is not holder:
            if holder.done() and not holder.cancelled():
                holder.exception()  # told by whoever watched it, or nobody
            return
        holder.cancel()
        episode.holder = None
        del self._held[key]
        self._left[key] = (episode, now_s)
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._left:
            _, left_s = next(iter(self._left.values()))
            if len(self._left) <= self._limit and now_s - left_s <= self._keep_s:
                return
            self._left.popitem(last=False)
