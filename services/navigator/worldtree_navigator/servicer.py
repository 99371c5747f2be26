"""The gRPC edge: validate, convert, call, stream."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc.aio
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorServicer as Base
from worldtree.video.v1 import video_generator_pb2 as video_pb

from worldtree_navigator import convert, replies
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.domain import Draw, Scene
from worldtree_navigator.errors import TooManyImaginings
from worldtree_navigator.imagining import Imagining
from worldtree_navigator.judge import Judge
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.peers import Metadata, Peers, passed_metadata

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class NavigatorServicer(Base):
    """Plans for whoever asks. What an RPC promises stands in the proto."""

    def __init__(self, peers: Peers, settings: NavigatorSettings, metrics: NavigatorMetrics) -> None:
        self._peers = peers
        self._settings = settings
        self._metrics = metrics
        self._running_count = 0

    async def Imagine(self, request: pb.ImagineRequest, context: Context) -> AsyncIterator[pb.ImagineResponse]:
        began_s, loop = time.monotonic(), asyncio.get_running_loop()
        terms = convert.to_terms(request, self._settings)
        candidates = convert.to_candidates(request, self._settings)
        metadata = passed_metadata(context)
        ends_s = None if terms.time_s is None else loop.time() + terms.time_s
        with self._counted():
            rubrics = await self._peers.rubrics(request.judge, metadata)
            async with self._peers.fork(request.session, metadata) as fork:
                scene = await self._scene(fork, metadata)
                judge = Judge(self._peers, rubrics, request.question, scene, metadata)
                sequences = convert.to_sequences(candidates, scene.actions)
                rounds = convert.to_rounds(sequences, terms.rounds)
                convert.check_steps(sequences, candidates, rubrics.max_steps)
                if request.frames:
                    convert.check_answer(terms, sequences, scene, self._settings.max_message_bytes // 2)
                async with judge.asked():
                    imagining = Imagining(
                        self._peers, scene, judge, sequences, terms, metadata, rounds=rounds, ends_s=ends_s
                    )
                    notes = []
                    if isinstance(candidates, Draw) and len(sequences) < candidates.count:
                        notes.append(
                            f"{len(sequences)} different sequences were drawn, {candidates.count} were asked for"
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
