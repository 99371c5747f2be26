"""`client.reward`: how good clips are, by what they were for."""

import queue
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc

from worldtree import _reward_calls as _calls
from worldtree._reward_calls import Question
from worldtree._status import error_from_rpc
from worldtree._transport import Transport
from worldtree.errors import SessionClosed
from worldtree.reward_types import Comparison, Judgement, Ranking, Rubrics
from worldtree.types import Seconds


class Reward:
    """The reward service of a client. Threads may share one.

    Everywhere: `goal` says in words what a clip was for ("go to the red ball"; empty: how true its pictures are).
    `category` names who judges (None: whom the goal is for), `weights` how much each dimension counts, in place of what
    the category learnt; below 0: less is better. `judge` is "name" or "name/version"; None: the only one there is.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def rubrics(self, judge: str | Rubrics | None = None) -> Rubrics:
        """What a judge looks at, and how well."""
        return self._transport.call(_calls.rubrics(judge))

    def score(
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
        return self._transport.call(call, timeout=timeout)

    def compare(
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
        return self._transport.call(call, timeout=timeout)

    def rank(
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
        return self._transport.call(call, timeout=timeout)

    def scoring(
        self,
        goal: str = "",
        *,
        category: str | None = None,
        weights: Mapping[str, float] | None = None,
        judge: str | Rubrics | None = None,
    ) -> "Scoring":
        """Scores a clip while it is made: `with client.reward.scoring(goal) as scoring: ... scoring.add(...)`."""
        return Scoring(self._transport, Question(goal, category, weights, judge))


class Scoring:
    """One clip that grows. Each part costs what is new, not the whole clip."""

    def __init__(self, transport: Transport, question: Question) -> None:
        self._question: Question | None = question
        self._written: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = transport.stream("ScoreStream", iter(self._written.get, None), service="reward")
        self._closed = False

    def add(self, frames: Any, *, actions: Sequence[Any] = ()) -> Judgement | None:
        """More of the clip, and what is said of all of it; None before the first step.

        The first part has one frame more than actions, every other as many of both.
        """
        if self._closed:
            raise SessionClosed("the scoring is closed")
        self._written.put(_calls.part(frames, actions, self._question))
        self._question = None
        try:
            return _calls.running(next(self._call))
        except grpc.RpcError as error:
            self.close()
            raise error_from_rpc(error) from error

    def close(self) -> None:
        """Lets the clip go. Safe to call again."""
        self._closed = True
        self._written.put(None)
        self._call.cancel()

    def __enter__(self) -> "Scoring":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
