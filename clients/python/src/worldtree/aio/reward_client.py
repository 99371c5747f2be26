"""`client.reward` of the asyncio client: the same names as worldtree's, awaited."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from worldtree import _reward_calls as _calls
from worldtree._reward_calls import Question
from worldtree.aio._transport import Transport
from worldtree.errors import SessionClosed, Unavailable, WorldtreeError
from worldtree.reward_types import Comparison, Judgement, Ranking, Rubrics
from worldtree.types import Seconds


class Reward:
    """The reward service of a client. For the event loop that the client is on.

    Everywhere: `goal` says in words what a clip was for ("go to the red ball"; empty: how true its pictures are).
    `category` names who judges (None: whom the goal is for), `weights` how much each dimension counts, in place of what
    the category learnt; below 0: less is better. `judge` is "name" or "name/version"; None: the only one there is.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def rubrics(self, judge: str | Rubrics | None = None) -> Rubrics:
        """What a judge looks at, and how well."""
        return await self._transport.call(_calls.rubrics(judge))

    async def score(
        self,
        clip: Any,
        *,
        goal: str = "",
        before: Any = None,
        category: str | None = None,
        weights: Mapping[str, float] | None = None,
        judge: str | Rubrics | None = None,
        timeout: Seconds | None = None,
    ) -> Judgement:
        """How good a clip is.

        A clip is a `Clip` of `generate`, a `Rollout`, or (frames, actions): uint8 [steps + 1, height, width, 3] and the
        names or ids of the actions between. A rollout does not hold the frame that it began from: `before` is that
        frame, such as `world.last_frame`; without it the first step is not looked at.
        """
        call = _calls.score(clip, Question(goal, category, weights, judge), before=before)
        return await self._transport.call(call, timeout=timeout)

    async def compare(
        self,
        first: Any,
        *,
        second: Any,
        goal: str = "",
        before: Any = None,
        category: str | None = None,
        weights: Mapping[str, float] | None = None,
        judge: str | Rubrics | None = None,
        timeout: Seconds | None = None,
    ) -> Comparison:
        """Which of two clips is better, and how likely that is. Clips as for `score`."""
        call = _calls.compare(first, second, Question(goal, category, weights, judge), before=before)
        return await self._transport.call(call, timeout=timeout)

    async def rank(
        self,
        candidates: Sequence[Any],
        *,
        goal: str = "",
        before: Any = None,
        category: str | None = None,
        weights: Mapping[str, float] | None = None,
        judge: str | Rubrics | None = None,
        timeout: Seconds | None = None,
    ) -> Ranking:
        """Candidates in order, best first; `ranking.best.index` says which that is. Clips as for `score`."""
        call = _calls.rank(candidates, Question(goal, category, weights, judge), before=before)
        return await self._transport.call(call, timeout=timeout)

    def scoring(
        self,
        goal: str = "",
        *,
        category: str | None = None,
        weights: Mapping[str, float] | None = None,
        judge: str | Rubrics | None = None,
    ) -> "Scoring":
        """Scores a clip while it is made: `async with client.reward.scoring(goal) as scoring`, then `scoring.add`."""
        return Scoring(self._transport, Question(goal, category, weights, judge))


class Scoring:
    """One clip that grows. Each part costs what is new, not the whole clip."""

    def __init__(self, transport: Transport, question: Question) -> None:
        self._question: Question | None = question
        self._stream = transport.stream("ScoreStream", service="reward")
        self._closed = False

    async def add(self, frames: Any, *, actions: Sequence[Any] = ()) -> Judgement | None:
        """More of the clip, and what is said of all of it; None before the first step.

        The first part has one frame more than actions, every other as many of both.
        """
        if self._closed:
            raise SessionClosed("the scoring is closed")
        self._stream.write(_calls.part(frames, actions, self._question))
        self._question = None
        try:
            message = await self._stream.read()
        except WorldtreeError:
            self.close()
            raise
        if message is None:
            self.close()
            raise Unavailable("the server ended the scoring")
        return _calls.running(message)

    def close(self) -> None:
        """Lets the clip go. Safe to call again."""
        self._closed = True
        self._stream.cancel()

    async def __aenter__(self) -> "Scoring":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
