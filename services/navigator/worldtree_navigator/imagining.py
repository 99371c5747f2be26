"""One Imagine: futures led on round by round, judged, and dropped where they fall behind."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.errors import Kind, WorldtreeError
from worldtree_runtime.opinion import Opinion

from worldtree_navigator.contest import Candidate, Contest
from worldtree_navigator.domain import Chunk, Edges, Ending, Findings, Scene, Terms
from worldtree_navigator.errors import GoalUnseen, JudgeMismatch
from worldtree_navigator.peers import Metadata, Peers

_CLIP_OVERHEAD_BYTES = 1024  # of a message, beside the pixels
_DOWN = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED})


class Judge:
    """A judge of the reward service, asked one question about one scene."""

    def __init__(
        self,
        peers: Peers,
        rubrics: reward_pb.ListRubricsResponse,
        question: reward_pb.Question,
        scene: Scene,
        metadata: Metadata,
    ) -> None:
        """Raises JudgeMismatch."""
        self.tie_below = rubrics.tie_below
        self._peers, self._model, self._question = peers, rubrics.model, question
        self._scene, self._metadata = scene, metadata
        height, width, _ = scene.frame_shape
        if (rubrics.height_px, rubrics.width_px) != (height, width):
            raise JudgeMismatch(
                rubrics.model.name,
                f"judge {rubrics.model.name} looks at frames of {rubrics.height_px} x {rubrics.width_px} pixels, "
                f"this world's have {height} x {width}",
            )
        unknown = [name for name in scene.actions if name not in rubrics.actions]
        if unknown or not scene.actions:
            raise JudgeMismatch(
                rubrics.model.name,
                f"judge {rubrics.model.name} knows the actions {', '.join(rubrics.actions)}, this world's are "
                f"{', '.join(scene.actions) or 'vectors'}",
            )
        self._ids = [list(rubrics.actions).index(name) for name in scene.actions]

    async def check(self) -> None:
        """Asks about a future in which nothing happens, so that a bad question costs no chunk.

        Raises GoalUnseen, or what the reward service raises.
        """
        still = reward_pb.Clip(frames=self._frames([self._scene.last_frame]), actions=self._ids[:1])
        request = reward_pb.ScoreRequest(model=self._model, question=self._question, clip=still)
        found = await self._peers.score(request, self._metadata)
        if found.unseen_category and not self._question.weights:
            raise GoalUnseen(self._model.name)

    async def judge(self, futures: Sequence[tuple[Edges, Sequence[Chunk]]]) -> list[reward_pb.Judgement]:
        """Of futures as far as they were imagined. In as many messages as they take."""
        found: list[reward_pb.Judgement] = []
        for part in self._parts(futures):
            request = reward_pb.RankRequest(
                model=self._model, question=self._question, candidates=[self._clip(*each) for each in part]
            )
            answer = await self._peers.rank(request, self._metadata)
            found += [each.judgement for each in sorted(answer.ranked, key=lambda each: each.index)]
        return found

    def _parts(self, futures: Sequence[tuple[Edges, Sequence[Chunk]]]) -> Iterable[list[tuple[Edges, Sequence[Chunk]]]]:
        room = self._peers.settings.max_message_bytes // 2
        part: list[tuple[Edges, Sequence[Chunk]]] = []
        left = room
        for each in futures:
            size = (len(each[1]) + 1) * len(self._scene.last_frame) + _CLIP_OVERHEAD_BYTES
            if part and (size > left or len(part) == _PART):
                yield part
                part, left = [], room
            part.append(each)
            left -= size
        yield part

    def _clip(self, edges: Edges, chunks: Sequence[Chunk]) -> reward_pb.Clip:
        """A frame for each action: the last of its chunk."""
        size = len(self._scene.last_frame)
        return reward_pb.Clip(
            frames=self._frames([chunk.frames[-size:] for chunk in chunks]),
            actions=[self._ids[edge.action] for edge in edges],
        )

    def _frames(self, frames: Sequence[bytes]) -> common.Frames:
        return pixels_of([self._scene.last_frame, *frames], self._scene)


_PART = 256  # clips of one Rank: the reward service's own default limit


def pixels_of(frames: Sequence[bytes], scene: Scene) -> common.Frames:
    """Pixels of one or more frames each, as one tensor."""
    data = b"".join(frames)
    shape = [len(data) // len(scene.last_frame), *scene.frame_shape]
    return common.Frames(tensor=common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=shape, data=data))


class Imagining:
    """`run` it once. `findings` and `contest` show where it stands."""

    def __init__(
        self,
        peers: Peers,
        scene: Scene,
        judge: Judge,
        sequences: Sequence[Edges],
        terms: Terms,
        metadata: Metadata,
        *,
        rounds: int,
        ends_s: float | None,
    ) -> None:
        """`ends_s`: of the loop's clock, when the time of the budget is spent."""
        self.scene, self.judge = scene, judge
        self.contest = Contest(
            sequences, rounds=rounds, halving=terms.halving, keep=terms.keep, chunk_limit=terms.chunk_limit
        )
        self.findings = Findings()
        self._peers, self._terms, self._metadata = peers, terms, metadata
        self._ends_s = ends_s

    async def run(self) -> AsyncGenerator[Ending | None]:
        """After each round, how it ended, or None where it goes on.

        An error of the video or the reward service is the end where there is a ranking to answer with; it is raised
        where there is none.
        """
        while runners := self.contest.next_round():
            blamed = Ending.VIDEO_UNAVAILABLE
            try:
                in_time = await self._lead(runners)
                blamed = Ending.REWARD_UNAVAILABLE
                await self._judge(runners)
            except WorldtreeError as error:
                if error.kind not in _DOWN or not self.findings.judgements:
                    raise
                self.findings.notes.append(error.message)
                yield blamed
                return
            self._forget()
            ending = self._ending(in_time)
            if ending is not None:
                yield ending
                return
            if self.contest.round < self.contest.round_count:
                yield None
        yield Ending.OUT_OF_CHUNKS if self.contest.cut_short else Ending.COMPLETE

    def _ending(self, in_time: bool) -> Ending | None:
        if not in_time:
            return Ending.OUT_OF_TIME
        stop_at = self._terms.stop_at
        if stop_at is not None and self.contest.alive and self.contest.lead() >= stop_at:
            return Ending.CONFIDENT
        return None

    async def _lead(self, runners: Sequence[Candidate]) -> bool:
        """Imagines the futures of `runners` as far as this round goes. False: time ran out on the way."""
        depth, known = self.contest.depth, self.findings.chunks
        wanted = dict.fromkeys(each.prefix(depth) for each in runners)
        missing = [prefix for prefix in wanted if prefix not in known]
        if not missing:
            return True
        reached = min(_known_depth(prefix, known) for prefix in missing)
        began_s = time.monotonic()
        try:
            async with asyncio.timeout_at(self._ends_s):
                nodes = self._peers.rollout(
                    self.scene.session,
                    [_sequence(prefix) for prefix in missing],
                    self._metadata,
                    frames_from_depth=reached,
                )
                async with aclosing(nodes):
                    async for node in nodes:
                        self._keep(missing[node.sequences[0]][: node.depth + 1], node)
        except TimeoutError:
            return False
        finally:
            self.findings.spent.imagine_s += time.monotonic() - began_s
        return True

    def _keep(self, prefix: Edges, node: video_pb.RolloutResponse) -> None:
        spent = self.findings.spent
        if node.chunk.timing.tick_count:
            spent.made += 1
        elif prefix not in self.findings.chunks:
            spent.known += 1
        if prefix not in self.findings.chunks:
            self.findings.chunks[prefix] = Chunk(node.chunk.frames.tensor.data, node.chunk.state_hash)

    async def _judge(self, runners: Sequence[Candidate]) -> None:
        """Has all judged that came as far as this round goes; futures that are alike so far once."""
        depth, chunks = self.contest.depth, self.findings.chunks
        reached = [each for each in runners if each.prefix(depth) in chunks]
        clips = dict.fromkeys(each.prefix(depth) for each in reached)
        began_s = time.monotonic()
        try:
            found = await self.judge.judge([(prefix, path_of(prefix, chunks)) for prefix in clips]) if clips else []
        finally:
            self.findings.spent.score_s += time.monotonic() - began_s
        self.findings.spent.clips += len(clips)
        said = dict(zip(clips, found, strict=True))
        for each in reached:
            self.findings.judgements[each.index] = said[each.prefix(depth)]
        self.contest.judged(
            {
                each.index: Opinion(said[each.prefix(depth)].reward, said[each.prefix(depth)].uncertainty)
                for each in reached
            }
        )
        notes = dict.fromkeys(note for judgement in found for note in judgement.notes)
        self.findings.notes += [note for note in notes if note not in self.findings.notes]

    def _forget(self) -> None:
        """Chunks of futures that are out: nobody looks at them again, unless they come back with their frames."""
        wanted = [each for each, _ in self.contest.ranking(self.judge.tie_below)[: self._terms.keep]]
        wanted += self.contest.alive
        kept = {each.prefix(depth) for each in wanted for depth in range(1, len(each.actions) + 1)}
        for prefix in [prefix for prefix in self.findings.chunks if prefix not in kept]:
            del self.findings.chunks[prefix]


def _known_depth(prefix: Edges, known: dict[Edges, Chunk]) -> int:
    depth = len(prefix)
    while depth and prefix[:depth] not in known:
        depth -= 1
    return depth


def path_of(prefix: Edges, chunks: dict[Edges, Chunk]) -> list[Chunk]:
    """The chunks along a future that was imagined so far."""
    return [chunks[prefix[:depth]] for depth in range(1, len(prefix) + 1)]


def _sequence(prefix: Edges) -> video_pb.ActionSequence:
    (seed,) = {edge.seed for edge in prefix}
    return video_pb.ActionSequence(
        actions=[video_pb.Action(id=edge.action, instruction=edge.instruction) for edge in prefix], seed=seed
    )
