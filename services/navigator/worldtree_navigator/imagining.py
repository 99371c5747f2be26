"""One Imagine: futures led on round by round, judged while they are made, dropped where they fall behind."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.errors import Kind, WorldtreeError
from worldtree_runtime.opinion import Opinion

from worldtree_navigator.contest import Candidate, Contest, node_count
from worldtree_navigator.domain import Chunk, Edges, Ending, Findings, Scene, Terms
from worldtree_navigator.judge import Judge
from worldtree_navigator.peers import Metadata, Peers

DOWN = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED})


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
        self.full_node_count, self.full_chunk_count = node_count(sequences), sum(map(len, sequences))
        self.findings = Findings()
        self._peers, self._terms, self._metadata = peers, terms, metadata
        self._ends_s = ends_s

    async def run(self) -> AsyncGenerator[Ending | None]:
        """After each round, how it ended, or None where it goes on.

        An error of the video or the reward service is the end where there is a ranking to answer with; it is raised
        where there is none.
        """
        while runners := self.contest.next_round():
            try:
                in_time = await self._lead(runners)
                await self._judge(runners)
            except WorldtreeError as error:
                if error.kind not in DOWN or not self.findings.judgements:
                    raise
                self.findings.notes.append(error.message)
                yield Ending.REWARD_UNAVAILABLE if self.judge.failed else Ending.VIDEO_UNAVAILABLE
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
        """Imagines the futures of `runners` as far as this round goes, and feeds the judge meanwhile.

        False: time ran out on the way.
        """
        depth, known = self.contest.depth, self.findings.chunks
        wanted = dict.fromkeys(each.prefix(depth) for each in runners)
        missing = [prefix for prefix in wanted if prefix not in known]
        began_s = time.monotonic()
        try:
            async with asyncio.timeout_at(self._ends_s):
                for part in self._parts(missing):
                    await self._imagine(part)
        except TimeoutError:
            return False
        finally:
            self.findings.spent.imagine_s += time.monotonic() - began_s
        return True

    def _parts(self, prefixes: Sequence[Edges]) -> Iterator[list[Edges]]:
        """What one rollout may hold: its sequences count from the session on, however much of them is known."""
        part: list[Edges] = []
        left = limit = self._peers.settings.max_chunks
        for prefix in prefixes:
            if part and len(prefix) > left:
                yield part
                part, left = [], limit
            part.append(prefix)
            left -= len(prefix)
        if part:
            yield part

    async def _imagine(self, prefixes: Sequence[Edges]) -> None:
        known = self.findings.chunks
        nodes = self._peers.rollout(
            self.scene.session,
            [_sequence(prefix) for prefix in prefixes],
            self._metadata,
            frames_from_depth=min(_known_depth(prefix, known) for prefix in prefixes),
        )
        async with aclosing(nodes):
            async for node in nodes:
                self._keep(prefixes[node.sequences[0]][: node.depth + 1], node)

    def _keep(self, prefix: Edges, node: video_pb.RolloutResponse) -> None:
        spent, fresh = self.findings.spent, prefix not in self.findings.chunks
        if node.chunk.timing.tick_count:
            spent.made += 1
        elif fresh:
            spent.known += 1
        if fresh:
            chunk = self.findings.chunks[prefix] = Chunk(node.chunk.frames.tensor.data, node.chunk.state_hash)
            self.judge.add(prefix, chunk.frames[-len(self.scene.last_frame) :])

    async def _judge(self, runners: Sequence[Candidate]) -> None:
        """What the judge says of all, as far as each came; futures that are alike so far share it."""
        depth, chunks = self.contest.depth, self.findings.chunks
        came = {each.index: each.prefix(_known_depth(each.prefix(depth), chunks)) for each in runners}
        came = {index: prefix for index, prefix in came.items() if prefix}
        began_s = time.monotonic()
        try:
            said = await self.judge.judgements(set(came.values()))
        finally:
            self.findings.spent.score_s += time.monotonic() - began_s
        for index, prefix in came.items():
            self.findings.judgements[index] = said[prefix]
        self.contest.judged(
            {
                index: (len(prefix), Opinion(said[prefix].reward, said[prefix].uncertainty))
                for index, prefix in came.items()
            }
        )
        notes = dict.fromkeys(note for prefix in came.values() for note in said[prefix].notes)
        self.findings.notes += [note for note in notes if note not in self.findings.notes]

    def _forget(self) -> None:
        """Chunks of futures that are out: nobody looks at them again, unless they come back with their frames."""
        wanted = [each for each, _ in self.contest.ranking(self.judge.tie_below)[: self._terms.keep]]
        wanted += self.contest.alive
        kept = {each.prefix(depth) for each in wanted for depth in range(1, each.depth + 1)}
        forgotten = [prefix for prefix in self.findings.chunks if prefix not in kept]
        for prefix in forgotten:
            del self.findings.chunks[prefix]
        self.judge.forget(forgotten)


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
    return video_pb.ActionSequence(actions=[video_pb.Action(id=edge.action) for edge in prefix], seed=seed)
