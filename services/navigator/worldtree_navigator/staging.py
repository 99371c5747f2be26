"""Where futures are imagined: a fork of a session, or a world made of what was seen, gone when it is done with."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb

from worldtree_navigator.domain import Past, Scene
from worldtree_navigator.judge import Judge
from worldtree_navigator.peers import Metadata, Peers


@dataclass(frozen=True, slots=True)
class Stage:
    """`judge` makes one, and raises JudgeMismatch; it takes clips of `max_steps`."""

    scene: Scene
    max_steps: int
    judge: Callable[[], Judge]


@asynccontextmanager
async def forked(
    peers: Peers, session: str, judge: common.ModelRef, question: reward_pb.Question, metadata: Metadata
) -> AsyncIterator[Stage]:
    """A fork of a session. The judge is looked up first: it may be down."""
    rubrics = await peers.rubrics(judge, metadata)
    async with peers.fork(session, metadata) as fork:
        yield await _stage(peers, fork, rubrics, question, metadata)


@asynccontextmanager
async def recalled(
    peers: Peers,
    past: Past,
    judge: common.ModelRef,
    question: reward_pb.Question,
    metadata: Metadata,
    *,
    ahead: Sequence[video_pb.Action] = (),
) -> AsyncIterator[Stage]:
    """A world that goes on from what was seen, after `ahead` was done."""
    rubrics = await peers.rubrics(judge, metadata)
    async with peers.created(past.world, past.frames, past.actions, metadata) as session:
        if ahead:
            await peers.step(session.session, ahead, metadata)
        yield await _stage(peers, session, rubrics, question, metadata)


async def _stage(
    peers: Peers,
    session: video_pb.Session,
    rubrics: reward_pb.ListRubricsResponse,
    question: reward_pb.Question,
    metadata: Metadata,
) -> Stage:
    model, last_frame = await asyncio.gather(
        peers.model(session.model, metadata), peers.last_frame(session.session, metadata)
    )
    pixels = last_frame.tensor
    _, height, width, channels = pixels.shape
    scene = Scene(
        session=session.session,
        actions=tuple(model.action_space.discrete.names),
        frame_shape=(height, width, channels),
        last_frame=pixels.data,
        chunk_frames=model.frames_per_chunk,
    )
    return Stage(scene, rubrics.max_steps, partial(Judge, peers, rubrics, question, scene, metadata))
