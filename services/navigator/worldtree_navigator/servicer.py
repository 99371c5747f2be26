"""The gRPC edge: validate, convert, call, stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc.aio
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorServicer as Base
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.messages import REPLICA_KEY

from worldtree_navigator import convert, replies
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.domain import Draw, Edges, Scene, Terms
from worldtree_navigator.errors import BudgetSpent, TooManyImaginings
from worldtree_navigator.imagining import Imagining
from worldtree_navigator.judge import Judge
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.peers import Metadata, Peers, passed_metadata
from worldtree_navigator.planning import PLANNERS, CrossEntropy
from worldtree_navigator.sampling import Proposal

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class NavigatorServicer(Base):
    """Plans for whoever asks. What an RPC promises stands in the proto."""

    def __init__(self, peers: Peers, settings: NavigatorSettings, metrics: NavigatorMetrics) -> None:
        self._peers = peers
        self._settings = settings
        self._metrics = metrics
        self._running_count = 0

    async def ListPlanners(self, request: pb.ListPlannersRequest, context: Context) -> pb.ListPlannersResponse:
        await context.send_initial_metadata(((REPLICA_KEY, self._settings.replica),))
        return pb.ListPlannersResponse(
            planners=[pb.Planner(name=each.name, description=each.description) for each in PLANNERS]
        )

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        began_s = time.monotonic()
        terms, asked = convert.to_plan_terms(request, self._settings), convert.to_search(request, self._settings)
        planner = convert.to_planner(request.planner, [each.name for each in PLANNERS])
        ends_s = _ends_s(terms)
        metadata = passed_metadata(context)
        with self._counted():
            async with self._stage(request.session, request.judge, request.question, metadata) as stage:
                actions = convert.to_allowed(request.actions, stage.scene.actions, "actions")
                convert.check_horizon("horizon", asked.horizon, stage.max_steps)
                proposal = Proposal(actions, asked.horizon, seed=request.seed)
                search = CrossEntropy(proposal, terms, candidates=asked.candidates, iterations=asked.iterations)

                @asynccontextmanager
                async def imagine(sequences: Sequence[Edges], own: Terms) -> AsyncIterator[Imagining]:
                    judge, rounds = stage.judge(), convert.to_rounds(sequences, 0)
                    async with judge.asked():
                        yield Imagining(
                            self._peers, stage.scene, judge, sequences, own, metadata, rounds=rounds, ends_s=ends_s
                        )

                await search.search(imagine)
        if search.best is None:
            raise BudgetSpent
        self._metrics.spent(search.spent)
        return replies.from_plan(
            search, stage.scene, planner=planner, frames=request.frames, total_s=time.monotonic() - began_s
        )

    async def Imagine(self, request: pb.ImagineRequest, context: Context) -> AsyncIterator[pb.ImagineResponse]:
        began_s = time.monotonic()
        terms = convert.to_terms(request, self._settings)
        candidates = convert.to_candidates(request, self._settings)
        ends_s = _ends_s(terms)
        metadata = passed_metadata(context)
        with self._counted():
            async with self._stage(request.session, request.judge, request.question, metadata) as stage:
                scene, judge = stage.scene, stage.judge()
                sequences = convert.to_sequences(candidates, scene.actions)
                rounds = convert.to_rounds(sequences, terms.rounds)
                convert.check_steps(sequences, candidates, stage.max_steps)
                if request.frames:
                    convert.check_answer(terms, sequences, scene, self._settings.max_message_bytes // 2)
                notes = []
                if isinstance(candidates, Draw) and len(sequences) < candidates.count:
                    notes.append(f"{len(sequences)} different sequences were drawn, {candidates.count} were asked for")
                async with judge.asked():
                    imagining = Imagining(
                        self._peers, scene, judge, sequences, terms, metadata, rounds=rounds, ends_s=ends_s
                    )
                    async with aclosing(imagining.run()) as endings:
                        async for ending in endings:
                            answer = replies.from_imagining(
                                imagining,
                                ending,
                                keep=terms.keep,
                                frames=request.frames,
                                notes=notes,
                                total_s=time.monotonic() - began_s,
                            )
                            if ending is None:
                                yield answer
            # Out of the block first: whoever has the last answer finds nothing left of the futures.
            assert ending is not None, "an imagining ended without an ending"
            self._metrics.answered(ending, imagining.findings.spent)
            yield answer

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._running_count >= self._settings.max_imaginings:
            raise TooManyImaginings(self._settings.max_imaginings)
        self._running_count += 1
        self._metrics.imaginings.set(self._running_count)
        try:
            yield
        finally:
            self._running_count -= 1
            self._metrics.imaginings.set(self._running_count)

    @asynccontextmanager
    async def _stage(
        self, session: str, judge: common.ModelRef, question: reward_pb.Question, metadata: Metadata
    ) -> AsyncIterator["_Stage"]:
        """A fork of the session to imagine from, and who judges. The judge is looked up first: it may be down."""
        rubrics = await self._peers.rubrics(judge, metadata)
        async with self._peers.fork(session, metadata) as fork:
            scene = await self._scene(fork, metadata)
            yield _Stage(scene, rubrics.max_steps, partial(Judge, self._peers, rubrics, question, scene, metadata))

    async def _scene(self, fork: video_pb.Session, metadata: Metadata) -> Scene:
        model, last_frame = await asyncio.gather(
            self._peers.model(fork.model, metadata), self._peers.last_frame(fork.session, metadata)
        )
        pixels = last_frame.tensor
        _, height, width, channels = pixels.shape
        return Scene(
            session=fork.session,
            actions=tuple(model.action_space.discrete.names),
            frame_shape=(height, width, channels),
            last_frame=pixels.data,
            chunk_frames=model.frames_per_chunk,
        )


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where futures are imagined. `judge` makes one, and raises JudgeMismatch; it takes clips of `max_steps`."""

    scene: Scene
    max_steps: int
    judge: Callable[[], Judge]


def _ends_s(terms: Terms) -> float | None:
    """When the time of a budget is spent, by the loop's clock, from now on."""
    return None if terms.time_s is None else asyncio.get_running_loop().time() + terms.time_s
