"""Futures of one scene, judged while they are made; one Imagine: led on by rounds, dropped where they fall behind."""

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing

from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.errors import Kind, WorldtreeError
from worldtree_runtime.opinion import Opinion

from worldtree_navigator.contest import Candidate, Contest, node_count
from worldtree_navigator.domain import Chunk, Edges, Ending, Findings, Scene, Terms
from worldtree_navigator.judge import Judge
from worldtree_navigator.peers import Metadata, Peers

DOWN = frozenset({Kind.UNAVAILABLE, Kind.DEADLINE, Kind.EXHAUSTED})


def ends_s(terms: Terms) -> float | None:
    """When the time of a budget is spent, by the loop's clock, from now on. None: never."""
    return None if terms.time_s is None else asyncio.get_running_loop().time() + terms.time_s


class Futures:
    """As far as each was asked for: what is known is not made again. `findings` shows what that took."""

    def __init__(self, peers: Peers, scene: Scene, judge: Judge, metadata: Metadata, *, ends_s: float | None) -> None:
        """`ends_s`: of the loop's clock, when the time to imagine in is spent."""
        self.scene, self.judge = scene, judge
        self.findings = Findings()
        self._peers, self._metadata = peers, metadata
        self._ends_s = ends_s

    @property
    def known(self) -> Mapping[Edges, Chunk]:
        return self.findings.chunks

    def picture(self, prefix: Edges) -> bytes:
        """The last frame of one that is known."""
        return self.known[prefix].frames[-len(self.scene.last_frame) :]

    async def lead(self, prefixes: Collection[Edges]) -> bool:
        """Imagines them, and feeds the judge meanwhile. False: time ran out on the way."""
        missing = [prefix for prefix in prefixes if prefix not in self.known]
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

    async def judgements(self, prefixes: Collection[Edges]) -> Mapping[Edges, reward_pb.Judgement]:
        """What the judge says of those that are known. Raises what the reward service raised."""
        began_s = time.monotonic()
        try:
            return await self.judge.judgements({prefix for prefix in prefixes if prefix in self.known})
        finally:
            self.findings.spent.score_s += time.monotonic() - began_s

    def known_depth(self, prefix: Edges) -> int:
        """How far it was imagined."""
        depth = len(prefix)
        while depth and prefix[:depth] not in self.known:
            depth -= 1
        return depth

    def keep(self, prefixes: Collection[Edges]) -> None:
        """All that none of these goes through is forgotten."""
        kept = {prefix[:depth] for prefix in prefixes for depth in range(1, len(prefix) + 1)}
        forgotten = [prefix for prefix in self.known if prefix not in kept]
        for prefix in forgotten:
            del self.findings.chunks[prefix]
        self.judge.forget(forgotten)

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
        nodes = self._peers.rollout(
            self.scene.session,
            [_sequence(prefix) for prefix in prefixes],
            self._metadata,
            frames_from_depth=min(self.known_depth(prefix) for prefix in prefixes),
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
            self.findings.chunks[prefix] = Chunk(node.chunk.frames.tensor.data, node.chunk.state_hash)
            self.judge.add(prefix, self.picture(prefix))


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
        self.futures = Futures(peers, scene, judge, metadata, ends_s=ends_s)
        self.findings = self.futures.findings
        self.scene, self.judge = scene, judge
        self.contest = Contest(
            sequences, rounds=rounds, halving=terms.halving, keep=terms.keep, chunk_limit=terms.chunk_limit
        )
        self.full_node_count, self.full_chunk_count = node_count(sequences), sum(map(len, sequences))
        self._terms = terms

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
        """As far as this round goes. False: time ran out on the way."""
        return await self.futures.lead(dict.fromkeys(each.prefix(self.contest.depth) for each in runners))

    async def _judge(self, runners: Sequence[Candidate]) -> None:
        """What the judge says of all, as far as each came; futures that are alike so far share it."""
        depth, futures = self.contest.depth, self.futures
        came = {each.index: each.prefix(futures.known_depth(each.prefix(depth))) for each in runners}
        came = {index: prefix for index, prefix in came.items() if prefix}
        said = await futures.judgements(came.values())
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
        self.futures.keep([each.prefix(each.depth) for each in wanted])


def path_of(prefix: Edges, chunks: dict[Edges, Chunk]) -> list[Chunk]:
    """The chunks along a future that was imagined so far."""
    return [chunks[prefix[:depth]] for depth in range(1, len(prefix) + 1)]


def _sequence(prefix: Edges) -> video_pb.ActionSequence:
    (seed,) = {edge.seed for edge in prefix}
    return video_pb.ActionSequence(actions=[video_pb.Action(id=edge.action) for edge in prefix], seed=seed)
