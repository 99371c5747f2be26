"""The gRPC edge: validate, convert, call, stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import grpc.aio
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorServicer as Base
from worldtree_runtime.messages import REPLICA_KEY
from worldtree_runtime.places import Places

from worldtree_navigator import convert, map_convert, mpc, navigate_convert, replies
from worldtree_navigator.bills import open_bill
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.domain import Draw, Past
from worldtree_navigator.episodes import Episode
from worldtree_navigator.errors import BudgetSpent, TooManyImaginings
from worldtree_navigator.imagining import Imagining, ends_s
from worldtree_navigator.map_planning import DESCRIPTIONS, MapPlanner
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.peers import Metadata, Peers, passed_metadata
from worldtree_navigator.pilots import Look, PolicyPilot
from worldtree_navigator.planning import MPC
from worldtree_navigator.policies import Policies
from worldtree_navigator.staging import Stage, forked, recalled
from worldtree_navigator.steering import Steering

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class NavigatorServicer(Base):
    """Plans for whoever asks. What an RPC promises stands in the proto."""

    def __init__(
        self,
        peers: Peers,
        maps: MapPlanner,
        policies: Policies,
        settings: NavigatorSettings,
        metrics: NavigatorMetrics,
    ) -> None:
        self._peers = peers
        self._maps = maps
        self._policies = policies
        self._steering = Steering(peers, policies, settings, metrics)
        self._settings = settings
        self._metrics = metrics
        self._places = Places(settings.max_imaginings, metrics.imaginings, TooManyImaginings)

    async def ListPlanners(self, request: pb.ListPlannersRequest, context: Context) -> pb.ListPlannersResponse:
        await context.send_initial_metadata(((REPLICA_KEY, self._settings.replica),))
        return pb.ListPlannersResponse(
            planners=[
                *(replies.from_policy(*each) for each in self._policies.planners()),
                pb.Planner(name=MPC.name, description=MPC.description),
                *(pb.Planner(name=name, description=description) for name, description in DESCRIPTIONS.items()),
            ]
        )

    async def PlanOnMap(self, request: pb.PlanOnMapRequest, context: Context) -> pb.PlanOnMapResponse:
        began_s = time.monotonic()
        model = self._maps.model(request.model.name, request.model.version, request.model.digest)
        question = await self._maps.read(partial(map_convert.to_map_question, request, self._settings.max_map_side))
        read_s = time.monotonic() - began_s
        answer = await self._maps.plan(question, model)
        self._metrics.paths.labels(answer.method.name.lower() if answer.method else "none").inc()
        return map_convert.from_map_answer(answer, question, read_s=read_s, total_s=time.monotonic() - began_s)

    async def Navigate(
        self, request_iterator: AsyncIterator[pb.NavigateRequest], context: Context
    ) -> AsyncIterator[pb.NavigateResponse]:
        open_bill(context)
        await context.send_initial_metadata(((REPLICA_KEY, self._settings.replica),))
        async with aclosing(self._steering.navigate(request_iterator, passed_metadata(context))) as answers:
            async for answer in answers:
                yield answer

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        open_bill(context)
        began_s = time.monotonic()
        terms, asked = convert.to_plan_terms(request, self._settings), convert.to_search(request, self._settings)
        known = [MPC.name, *self._policies.names()]
        planner = convert.to_planner(request.planner, known)
        past = convert.to_past(request, self._settings)
        metadata = passed_metadata(context)
        with self._places.taken():
            if planner != MPC.name:
                return await self._plan_by_policy(request, planner, past, metadata, began_s)
            until_s = ends_s(terms)
            async with self._stage(request, past, metadata) as stage:
                actions = convert.to_allowed(request.actions, stage.scene.actions, "actions")
                convert.check_horizon("horizon", asked.horizon, stage.max_steps)
                found = await mpc.search(
                    self._peers,
                    stage,
                    asked,
                    terms,
                    metadata,
                    actions=actions,
                    seed=request.seed,
                    ends_s=until_s,
                )
        if found.best is None:
            raise BudgetSpent
        self._metrics.spent(found.spent)
        return replies.from_plan(
            found, stage.scene, planner=planner, frames=request.frames, total_s=time.monotonic() - began_s
        )

    async def _plan_by_policy(
        self, request: pb.PlanRequest, planner: str, past: Past | None, metadata: Metadata, began_s: float
    ) -> pb.PlanResponse:
        spec, served = self._policies.find(planner)
        words = navigate_convert.to_words("question.goal", request.question.goal, served.package.goal)
        horizon = navigate_convert.to_plan_horizon(request.horizon, served.package.horizon)
        if past is None:
            past = Past(common.ModelRef(), await self._peers.last_frame(request.session, metadata), ())
        pilot, episode = PolicyPilot(served, spec, words, seed=request.seed), Episode("")
        between = navigate_convert.to_ids(past.actions, pilot.actions, "past.actions")
        field = "past.frames" if request.HasField("past") else "session"

        def see_all() -> None:
            images = navigate_convert.to_images(
                past.frames, pilot.frame_shape, max_pixels=self._settings.max_image_pixels
            )
            for place, (image, executed) in enumerate(zip(images, [[], *([each] for each in between)], strict=True)):
                pilot.see(episode, image, executed, field=f"{field}[{place}]")

        await asyncio.to_thread(see_all)  # nobody else waits for pictures to be unpacked
        decision = await pilot.decide(episode, Look((), horizon, None, request.frames))
        notes = navigate_convert.unheeded(request, planner, ("actions", "judge", "budget"))
        return replies.from_decision(decision, pilot, notes=notes, total_s=time.monotonic() - began_s)

    async def Imagine(self, request: pb.ImagineRequest, context: Context) -> AsyncIterator[pb.ImagineResponse]:
        open_bill(context)
        began_s = time.monotonic()
        terms = convert.to_terms(request, self._settings)
        candidates = convert.to_candidates(request, self._settings)
        until_s = ends_s(terms)
        metadata = passed_metadata(context)
        with self._places.taken():
            async with forked(self._peers, request.session, request.judge, request.question, metadata) as stage:
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
                        self._peers, scene, judge, sequences, terms, metadata, rounds=rounds, ends_s=until_s
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

    @asynccontextmanager
    async def _stage(self, request: pb.PlanRequest, past: Past | None, metadata: Metadata) -> AsyncIterator[Stage]:
        if past is None:
            stage = forked(self._peers, request.session, request.judge, request.question, metadata)
        else:
            stage = recalled(self._peers, past, request.judge, request.question, metadata)
        async with stage as found:
            yield found
