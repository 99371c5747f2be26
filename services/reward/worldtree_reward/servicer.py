"""The gRPC edge: validate, convert, call, stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc.aio
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree.reward.v1.reward_scorer_pb2_grpc import RewardScorerServicer as Base
from worldtree_runtime.errors import InvalidRequest
from worldtree_runtime.messages import REPLICA_KEY, from_stored
from worldtree_runtime.opinion import ranks
from worldtree_runtime.places import Places

from worldtree_reward import convert, replies
from worldtree_reward.catalog import Catalog
from worldtree_reward.config import RewardSettings
from worldtree_reward.domain import Judgement, Spent
from worldtree_reward.errors import TooManyStreams
from worldtree_reward.metrics import RewardMetrics
from worldtree_reward.served import Asked
from worldtree_reward.tree import Room, Tree

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class RewardServicer(Base):
    """Serves a catalog of judges. What an RPC promises stands in the proto."""

    def __init__(self, catalog: Catalog, settings: RewardSettings, metrics: RewardMetrics) -> None:
        self._catalog = catalog
        self._settings = settings
        self._metrics = metrics
        self._places = Places(settings.max_streams, metrics.streams, TooManyStreams)
        self._room = Room(settings.max_nodes)

    async def ListRubrics(self, request: pb.ListRubricsRequest, context: Context) -> pb.ListRubricsResponse:
        await context.send_initial_metadata(((REPLICA_KEY, self._settings.replica),))
        ref = request.model
        served = self._catalog.get(ref.name, ref.version, ref.digest)
        return replies.from_rubrics(served, self._settings, self._catalog.names())

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        asked = self._ask(request.model, request.question)
        ((found, spent),) = await self._judge(asked, {"clip": request.clip})
        return pb.ScoreResponse(
            model=from_stored(asked.served.stored),
            judgement=replies.from_judgement(found),
            timing=replies.from_spent([spent]),
        )

    async def Compare(self, request: pb.CompareRequest, context: Context) -> pb.CompareResponse:
        asked = self._ask(request.model, request.question)
        judged = await self._judge(asked, {"first": request.first, "second": request.second})
        (first, _), (second, _) = judged
        chance, tie_below = first.reward.chance_over(second.reward), asked.served.package.tie_below
        verdict = pb.CompareResponse.VERDICT_TIE
        if chance >= 0.5 + tie_below:
            verdict = pb.CompareResponse.VERDICT_FIRST
        elif chance <= 0.5 - tie_below:
            verdict = pb.CompareResponse.VERDICT_SECOND
        return pb.CompareResponse(
            model=from_stored(asked.served.stored),
            verdict=verdict,
            first_better=chance,
            first=replies.from_judgement(first),
            second=replies.from_judgement(second),
            timing=replies.from_spent([spent for _, spent in judged]),
        )

    async def Rank(self, request: pb.RankRequest, context: Context) -> pb.RankResponse:
        limit, count = self._settings.max_candidates, len(request.candidates)
        if not 1 <= count <= limit:
            raise InvalidRequest(
                "candidates", f"candidates must be 1 to {limit} clips, got {count}", limit=limit, count=count
            )
        asked = self._ask(request.model, request.question)
        judged = await self._judge(
            asked, {f"candidates[{index}]": clip for index, clip in enumerate(request.candidates)}
        )
        order = ranks([found.reward for found, _ in judged], asked.served.package.tie_below)
        return pb.RankResponse(
            model=from_stored(asked.served.stored),
            ranked=[
                pb.Ranked(index=index, rank=rank, judgement=replies.from_judgement(judged[index][0]))
                for index, rank in order
            ],
            timing=replies.from_spent([spent for _, spent in judged]),
        )

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: Context
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        with self._places.taken():
            async for answer in self._stream(request_iterator):
                yield answer

    async def ScoreTree(
        self, request_iterator: AsyncIterator[pb.ScoreTreeRequest], context: Context
    ) -> AsyncIterator[pb.ScoreTreeResponse]:
        with self._places.taken():
            async for answer in self._tree(request_iterator):
                yield answer

    async def _stream(self, requests: AsyncIterator[pb.ScoreStreamRequest]) -> AsyncIterator[pb.ScoreStreamResponse]:
        asked = track = None
        async for request in requests:
            first = asked is None
            if asked is None or track is None:
                asked = self._opened(request)
                track = asked.begin()
            else:
                _check_later(request)
            frames, actions = convert.to_part(
                request.clip,
                asked.served.package,
                self._settings,
                "clip",
                first=first,
                step_count=max(track.frame_count - 1, 0),
            )
            ((found, spent),) = await asked.look([(track, frames, actions)])
            step_count = track.frame_count - 1
            yield pb.ScoreStreamResponse(
                model=from_stored(asked.served.stored) if first else None,
                step_count=step_count,
                judgement=replies.from_judgement(found) if step_count else None,
                timing=replies.from_spent([spent]),
            )

    async def _tree(self, requests: AsyncIterator[pb.ScoreTreeRequest]) -> AsyncIterator[pb.ScoreTreeResponse]:
        tree: Tree | None = None
        try:
            async for request in requests:
                first = tree is None
                if tree is None:
                    tree = self._planted(request)
                else:
                    _check_later(request)
                yield await self._grown(tree, request, first=first)
        finally:
            if tree is not None:
                tree.close()

    def _planted(self, request: pb.ScoreTreeRequest) -> Tree:
        if request.nodes and request.nodes[0].judge:
            raise InvalidRequest("nodes[0].judge", "nodes[0].judge must not be set: of the root there is no clip")
        limits = {"max_nodes": self._settings.max_tree_nodes, "max_steps": self._settings.max_steps}
        return Tree(self._opened(request), self._room, **limits)

    async def _grown(self, tree: Tree, request: pb.ScoreTreeRequest, *, first: bool) -> pb.ScoreTreeResponse:
        served = tree.asked.served
        # in a thread, as hundreds of pictures may have to be unpacked
        frames, actions = await asyncio.to_thread(
            convert.to_nodes, request, served.package, self._settings, first=first
        )
        tree.forget(request.forget)
        judged, spent = await tree.grow(
            [node.parent for node in request.nodes], frames, actions, [node.judge for node in request.nodes]
        )
        return pb.ScoreTreeResponse(
            model=from_stored(served.stored) if first else None,
            judged=[
                pb.ScoreTreeResponse.Judged(node=node, judgement=replies.from_judgement(found))
                for node, found in judged
            ],
            timing=replies.from_spent(spent),
        )

    def _opened(self, request: pb.ScoreStreamRequest | pb.ScoreTreeRequest) -> Asked:
        if not request.HasField("question"):
            raise InvalidRequest("question", "question must be set in the first message")
        return self._ask(request.model, request.question)

    def _ask(self, ref: common.ModelRef, message: pb.Question) -> Asked:
        served = self._catalog.get(ref.name, ref.version, ref.digest)
        return served.ask(convert.to_question(message, self._settings))

    async def _judge(self, asked: Asked, clips: dict[str, pb.Clip]) -> list[tuple[Judgement, Spent]]:
        """Clips by the field that each stands in; none is looked at where one is wrong."""

        def unpacked() -> list[convert.Part]:
            return [convert.to_clip(clip, asked.served.package, self._settings, field) for field, clip in clips.items()]

        # in a thread, as hundreds of pictures may have to be unpacked
        parts = await asyncio.to_thread(unpacked)
        return await asked.look([(asked.begin(), *part) for part in parts])


def _check_later(request: pb.ScoreStreamRequest | pb.ScoreTreeRequest) -> None:
    """What stands in the first message stands in no other."""
    for field in ("question", "model"):
        if request.HasField(field):
            raise InvalidRequest(field, f"{field} must be set in the first message only")
