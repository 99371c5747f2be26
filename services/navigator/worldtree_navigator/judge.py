"""A judge of the reward service, asked one question about the futures of one scene, while they are imagined."""

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as pb

from worldtree_navigator.domain import Edges, Scene
from worldtree_navigator.errors import GoalUnseen, JudgeMismatch
from worldtree_navigator.peers import Metadata, Peers, TreeCall

_FRAME_OVERHEAD_BYTES = 64  # of a message, beside the pixels of a frame
ROOT: Edges = ()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A chunk on its way to the judge. `frame`: its last one."""

    prefix: Edges
    frame: bytes


class Judge:
    """Futures go to it chunk by chunk, in whatever order they are made, as one tree: what they share is looked at once.

    While it looks at some, those that come wait and go together.
    """

    def __init__(
        self,
        peers: Peers,
        rubrics: pb.ListRubricsResponse,
        question: pb.Question,
        scene: Scene,
        metadata: Metadata,
    ) -> None:
        """Raises JudgeMismatch."""
        self.tie_below = rubrics.tie_below
        self.clip_count = 0
        self._peers, self._model, self._question = peers, rubrics.model, question
        self._scene, self._metadata = scene, metadata
        self._nodes: dict[Edges, int] = {}
        self._said: dict[Edges, pb.Judgement] = {}
        self._forgotten: list[int] = []
        self._waiting: list[_Waiting] = []
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        name, (height, width, _) = rubrics.model.name, scene.frame_shape
        if (rubrics.height_px, rubrics.width_px) != (height, width):
            raise JudgeMismatch(
                name,
                f"judge {name} looks at frames of {rubrics.height_px} x {rubrics.width_px} pixels, this world's have "
                f"{height} x {width}",
            )
        if not scene.actions or not set(scene.actions) <= set(rubrics.actions):
            raise JudgeMismatch(
                name,
                f"judge {name} knows the actions {', '.join(rubrics.actions)}, this world's are "
                f"{', '.join(scene.actions) or 'vectors'}",
            )
        self._ids = [list(rubrics.actions).index(name) for name in scene.actions]

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """Puts the question. Before anything is imagined the judge is shown a future in which nothing happens, so that
        a bad question costs no chunk: raises GoalUnseen, or what the reward service raises.
        """
        async with self._peers.score_tree(self._metadata) as call:
            still = pb.ScoreTreeRequest.Node(parent=0, action=self._ids[0], judge=True)
            frames = pixels_of([self._scene.last_frame] * 2, self._scene)
            root = pb.ScoreTreeRequest.Node()
            answer = await call.ask(
                pb.ScoreTreeRequest(model=self._model, question=self._question, nodes=[root, still], frames=frames)
            )
            if answer.judged[0].judgement.unseen_category and not self._question.weights:
                raise GoalUnseen(self._model.name)
            self._nodes[ROOT] = 0
            self._forgotten.append(1)
            self._count = 2
            feeding = asyncio.create_task(self._feed(call), name="feed the judge")
            try:
                yield
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    @property
    def failed(self) -> bool:
        """Whether nothing more will be judged."""
        return self._failure is not None

    def add(self, prefix: Edges, frame: bytes) -> None:
        """One more chunk, after the one that it goes on from: the future is judged as far as it came.

        Raises what the reward service raised.
        """
        if self._failure is not None:
            raise self._failure
        self._waiting.append(_Waiting(prefix, frame))
        self._changed.set()

    def forget(self, prefixes: Collection[Edges]) -> None:
        """Nothing will go on from these."""
        for prefix in prefixes:
            self._said.pop(prefix, None)
        self._forgotten += [self._nodes.pop(prefix) for prefix in prefixes if prefix in self._nodes]

    async def judgements(self, prefixes: Collection[Edges]) -> Mapping[Edges, pb.Judgement]:
        """Of futures whose chunks were added. Raises what the reward service raised."""
        while not all(prefix in self._said for prefix in prefixes):
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return {prefix: self._said[prefix] for prefix in prefixes}

    async def _feed(self, call: TreeCall) -> None:
        try:
            while True:
                while not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                part, self._waiting = self._waiting[: self._room], self._waiting[self._room :]
                await self._show(call, part)
        except Exception as error:  # whoever waits must not wait for ever
            self._failure = error
        finally:
            self._changed.set()

    async def _show(self, call: TreeCall, part: Sequence[_Waiting]) -> None:
        forgotten, self._forgotten = self._forgotten, []
        for each in part:
            self._nodes[each.prefix] = self._count
            self._count += 1
        request = pb.ScoreTreeRequest(
            nodes=[
                pb.ScoreTreeRequest.Node(
                    parent=self._nodes[each.prefix[:-1]], action=self._ids[each.prefix[-1].action], judge=True
                )
                for each in part
            ],
            frames=pixels_of([each.frame for each in part], self._scene),
            forget=forgotten,
        )
        answer = await call.ask(request)
        for each, told in zip(part, answer.judged, strict=True):
            self._said[each.prefix] = told.judgement
        self.clip_count += len(part)
        self._changed.set()

    @property
    def _room(self) -> int:
        """Frames that one message holds."""
        size = len(self._scene.last_frame) + _FRAME_OVERHEAD_BYTES
        return max(1, self._peers.settings.max_message_bytes // 2 // size)


def pixels_of(frames: Sequence[bytes], scene: Scene) -> common.Frames:
    """Pixels of one or more frames each, as one tensor."""
    return frames_of(b"".join(frames), scene.frame_shape)


def frames_of(data: bytes, frame_shape: tuple[int, int, int]) -> common.Frames:
    """Pixels of frames of one shape, one after the other, as one tensor."""
    shape = [len(data) // math.prod(frame_shape), *frame_shape]
    return common.Frames(tensor=common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=shape, data=data))
