"""Who steers a robot: what was seen in, the next actions out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.policy_package import PlannerSpec

from worldtree_navigator import mpc
from worldtree_navigator.bills import charge
from worldtree_navigator.domain import Past, Search, Terms
from worldtree_navigator.episodes import Episode
from worldtree_navigator.errors import BudgetSpent, Refused
from worldtree_navigator.imagining import ends_s
from worldtree_navigator.judge import frames_of
from worldtree_navigator.memory import Tiles
from worldtree_navigator.peers import Metadata, Peers
from worldtree_navigator.planning import MPC
from worldtree_navigator.policies import ServedPolicy
from worldtree_navigator.policy import Draft
from worldtree_navigator.staging import recalled

_SHORTEST_S = 0.05  # to imagine in, however little time there is
_SLOWLY = 0.2  # the share of the newest time in the mean of what plans took


@dataclass(frozen=True, slots=True)
class Look:
    """What is planned from. `executing`: what the robot does first; `count`: actions wanted after it. `within_s`: until
    it has nothing to do; None: it waits. `standing`: whether it has nothing to do already. `frames`: whether it wants
    to see what is expected.
    """

    executing: tuple[int, ...]
    count: int
    within_s: float | None
    frames: bool
    standing: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """`frames`: of each action, pixels uint8 in C order. `effort`: the share of the work that could be afforded.
    `imagined_count`: chunks of futures.
    """

    actions: tuple[int, ...]
    confidence: float
    frames: bytes | None
    effort: float
    queue_s: float = 0.0
    world_model_s: float = 0.0
    planner_s: float = 0.0
    encode_s: float = 0.0
    notes: tuple[str, ...] = ()
    imagined_count: int = 0


class Pilot(Protocol):
    """Steers the robot of one stream. `horizon`: actions that it can look ahead; `frame_shape`: height and width of
    images; `actions`: their names. `key`: whose episodes are of use to it.
    """

    @property
    def planner(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def horizon(self) -> int: ...
    @property
    def frame_shape(self) -> tuple[int, int]: ...
    @property
    def actions(self) -> Sequence[str]: ...
    def latency_s(self, within_s: float | None) -> float: ...
    def see(self, episode: Episode, image: bytes, executed: list[int], *, field: str) -> None: ...
    async def decide(self, episode: Episode, look: Look) -> Decision: ...


class PolicyPilot:
    """Asks a policy's graph."""

    def __init__(self, served: ServedPolicy, spec: PlannerSpec, goal: Sequence[str], *, seed: int) -> None:
        self.planner, self.served = spec.name, served
        self._seed = seed
        self._spec, self._words = spec, served.policy.words(goal)
        self._view: Tiles | None = None
        self._round_s = 0.01  # of one round, as they were lately

    @property
    def key(self) -> str:
        return self.served.stored.digest

    @property
    def horizon(self) -> int:
        return self.served.package.horizon

    @property
    def frame_shape(self) -> tuple[int, int]:
        image = self.served.package.image
        return image.height_px, image.width_px

    @property
    def actions(self) -> Sequence[str]:
        return self.served.package.actions

    def latency_s(self, within_s: float | None) -> float:
        """What a plan takes, by what the last took."""
        return self._rounds(within_s) * self._round_s

    def see(self, episode: Episode, image: bytes, executed: list[int], *, field: str) -> None:
        """Raises Refused for an image of another world, before anything is remembered of it."""
        policy = self.served.policy
        view, error = policy.read(image)
        if error > self.served.package.max_error:
            raise Refused(
                field,
                "NOT_OF_THIS_WORLD",
                f"{field} shows a cell that is {error:.0f} of 255 away from all that "
                f"{self.served.stored.name} knows, {self.served.package.max_error:g} at most",
            )
        if episode.memory is None:
            episode.memory = policy.memory()
            episode.memory.see(view)
        else:
            episode.memory.follow(executed, view)
        self._view = view

    async def decide(self, episode: Episode, look: Look) -> Decision:
        assert episode.memory is not None, "nothing was seen"
        assert self._view is not None, "nothing was seen"
        rounds = self._rounds(look.within_s)
        policy = self.served.policy
        draft = Draft(
            policy,
            self._view,
            episode.memory,
            self._words,
            planner=self._spec,
            executing=look.executing,
            rounds=rounds,
            seed=(self._seed, episode.step),
        )
        now_s = time.monotonic()
        took = await self.served.engine.finish(draft, due_s=None if look.within_s is None else now_s + look.within_s)
        decided_s = time.monotonic()
        if self.served.package.imagines:
            charge(rounds * len(draft.frames))
        self._round_s += _SLOWLY * ((decided_s - now_s) / rounds - self._round_s)
        rows = slice(draft.fixed, draft.fixed + look.count)
        frames = policy.draw(draft.frames[rows]) if look.frames and self.served.package.imagines else None
        return Decision(
            actions=tuple(draft.actions[rows].tolist()),
            confidence=draft.confidence(look.count),
            frames=frames,
            effort=rounds / self._spec.rounds,
            queue_s=took.queue_s,
            world_model_s=took.run_s if self.served.package.imagines else 0.0,
            planner_s=0.0 if self.served.package.imagines else took.run_s,
            encode_s=time.monotonic() - decided_s,
            notes=() if frames or not look.frames else (f"{self.planner} imagines no frames",),
            imagined_count=len(draft.frames) if self.served.package.imagines else 0,
        )

    def _rounds(self, within_s: float | None) -> int:
        """As many as can be afforded; one in any case."""
        most = self._spec.rounds
        return most if within_s is None else max(1, min(most, int(within_s / self._round_s)))


class ImaginingPilot:
    """Imagines futures by the video service and has the reward service judge them: model-predictive control."""

    planner = MPC.name

    def __init__(
        self,
        peers: Peers,
        world: video_pb.Model,
        judge: common.ModelRef,
        question: reward_pb.Question,
        metadata: Metadata,
        *,
        asked: Search,
        terms: Terms,
        actions: Sequence[int],
        seed: int,
    ) -> None:
        """`asked`: how far it looks, `terms`: what it may spend on one plan. `actions`: ids to plan with."""
        self._peers, self._world, self._judge, self._question, self._metadata = peers, world, judge, question, metadata
        self._asked, self._terms, self._allowed, self._seed = asked, terms, actions, seed
        self._plan_s = 1.0 if terms.time_s is None else terms.time_s  # of one plan, as they were lately

    @property
    def key(self) -> str:
        return f"world {self._world.ref.digest}"

    @property
    def horizon(self) -> int:
        return self._asked.horizon

    @property
    def frame_shape(self) -> tuple[int, int]:
        return self._world.height_px, self._world.width_px

    @property
    def actions(self) -> Sequence[str]:
        return tuple(self._world.action_space.discrete.names)

    def latency_s(self, within_s: float | None) -> float:
        """What a plan takes, by what the last took."""
        return self._plan_s if within_s is None else min(self._plan_s, max(_SHORTEST_S, within_s))

    def see(self, episode: Episode, image: bytes, executed: list[int], *, field: str) -> None:  # noqa: ARG002
        """A world is made of images: the episode keeps them, and what was expected to be seen between two of them."""
        foresight = episode.foresight
        between = executed[:-1]
        frames = foresight.frames(episode.step, between)
        for frame, action in zip(frames, between, strict=False):
            episode.keep(frame, [action])
            foresight.saw(frame)
        episode.keep(image, executed[-1:] if len(frames) == len(between) else executed)
        foresight.saw(image)
        foresight.forget(episode.step)

    async def decide(self, episode: Episode, look: Look) -> Decision:
        """Raises what the video or the reward service raises, GoalUnseen, JudgeMismatch and BudgetSpent."""
        began_s = time.monotonic()
        terms, seed = self._terms, self._seed + episode.step  # before anything is awaited, and the robot moves on
        if look.within_s is not None and not look.standing:  # one that stands waits for as long as it takes
            time_s = max(_SHORTEST_S, min(look.within_s, terms.time_s or look.within_s))
            terms = replace(terms, time_s=time_s)
        until_s = ends_s(terms)
        frames = frames_of(b"".join(episode.frames), (*self.frame_shape, 3))
        past = Past(self._world.ref, frames, [video_pb.Action(id=each) for each in episode.between])
        ahead = [video_pb.Action(id=each) for each in look.executing]
        begins = episode.step + len(ahead)
        asked = replace(self._asked, horizon=max(self._asked.horizon - len(ahead), look.count), least=look.count)
        async with recalled(self._peers, past, self._judge, self._question, self._metadata, ahead=ahead) as stage:
            asked = replace(asked, horizon=min(asked.horizon, stage.max_steps))
            found = await mpc.search(
                self._peers,
                stage,
                asked,
                terms,
                self._metadata,
                actions=self._allowed,
                seed=seed,
                ends_s=until_s,
                before=episode.foresight.rest(begins),
                seen=episode.foresight.seen,
            )
        if found.best is None:
            raise BudgetSpent
        took_s = time.monotonic() - began_s
        self._plan_s += _SLOWLY * (took_s - self._plan_s)
        best = found.best
        episode.foresight.expect(begins, best.edges, best.chunks, told=look.count)
        return Decision(
            actions=tuple(edge.action for edge in best.edges[: look.count]),
            confidence=found.confidence,
            frames=b"".join(chunk.frames for chunk in best.chunks[: look.count]) if look.frames else None,
            effort=found.effort,
            world_model_s=found.spent.imagine_s,
            planner_s=took_s - found.spent.imagine_s,
            notes=tuple(found.notes),
            imagined_count=found.spent.made + found.spent.known,
        )
