"""Gathers the messages of a streaming answer into the value that the caller asked for."""

from collections.abc import Sequence

from worldtree.actions import action_from_pb
from worldtree.convert import chunk_from_pb, frames_from_pb, join
from worldtree.errors import DataLoss
from worldtree.types import Chunk, Clip, Detail, Frames, Progress, Rollout
from worldtree.video.v1 import video_generator_pb2 as pb


class RolloutFold:
    """Puts the nodes of a rollout's trie back into one Rollout a sequence.

    A node arrives once and belongs to every sequence that passes through it; its frames are shared, not copied, until
    a sequence's chunks are joined.
    """

    def __init__(
        self, sequences: Sequence[pb.ActionSequence], *, detail: Detail = "all", progress: Progress | None = None
    ) -> None:
        self._sequences = sequences
        self._detail = detail
        self._progress = progress
        self._chunks: list[list[Chunk | None]] = [[None] * len(sequence.actions) for sequence in sequences]
        self._node_count = 0

    def add(self, node: pb.RolloutResponse) -> None:
        chunk = chunk_from_pb(node.chunk)
        for index in node.sequences:
            if not 0 <= index < len(self._chunks) or not 0 <= node.depth < len(self._chunks[index]):
                raise DataLoss(
                    f"the server sent a chunk for sequence {index} at depth {node.depth}, which was not asked for",
                    reason="ROLLOUT_NODE_UNKNOWN",
                    metadata={"sequence": str(index), "depth": str(node.depth)},
                )
            self._chunks[index][node.depth] = chunk
        self._node_count += 1
        if self._progress is not None:
            self._progress(self._node_count, node.node_count)

    def result(self) -> list[Rollout]:
        return [self._rollout(index) for index in range(len(self._sequences))]

    def _rollout(self, index: int) -> Rollout:
        chunks = [chunk for chunk in self._chunks[index] if chunk is not None]
        wanted = len(self._sequences[index].actions)
        if len(chunks) != wanted:
            raise DataLoss(
                f"the stream ended with {len(chunks)} of {wanted} chunks of sequence {index}",
                reason="STREAM_CUT_SHORT",
                metadata={"sequence": str(index), "chunk_count": str(len(chunks)), "wanted_chunk_count": str(wanted)},
            )
        sequence = self._sequences[index]
        return Rollout(
            actions=tuple(action_from_pb(action) for action in sequence.actions),
            frames=self._frames(chunks),
            state_hash=chunks[-1].state_hash,
            seed=sequence.seed if sequence.HasField("seed") else None,
            timings=tuple(chunk.timing for chunk in chunks),
        )

    def _frames(self, chunks: Sequence[Chunk]) -> Frames | None:
        if self._detail == "none":
            return None
        # A node that ends one sequence and lies inside another comes with frames even under "last".
        wanted = chunks if self._detail == "all" else chunks[-1:]
        return join([chunk.frames for chunk in wanted if chunk.frames is not None])


class ClipFold:
    """Puts the pieces of a generated clip together."""

    def __init__(self, actions: Sequence[pb.Action], *, progress: Progress | None = None) -> None:
        self._actions = actions
        self._progress = progress
        self._start_frames: Frames | None = None
        self._warnings: tuple[str, ...] = ()
        self._chunks: list[Chunk] = []
        self._chunk_count = 0

    def add(self, piece: pb.GenerateResponse) -> None:
        self._chunk_count = piece.chunk_count
        if piece.WhichOneof("piece") == "start_frames":
            self._start_frames = frames_from_pb(piece.start_frames)
            self._warnings = tuple(piece.warnings)
        else:
            self._chunks.append(chunk_from_pb(piece.chunk))
        if self._progress is not None:
            self._progress(len(self._chunks), self._chunk_count)

    def result(self) -> Clip:
        frames = [chunk.frames for chunk in self._chunks if chunk.frames is not None]
        if self._start_frames is None or not frames or len(frames) != self._chunk_count:
            raise DataLoss(
                f"the stream ended with {len(frames)} of {self._chunk_count} chunks",
                reason="STREAM_CUT_SHORT",
                metadata={"chunk_count": str(len(frames)), "wanted_chunk_count": str(self._chunk_count)},
            )
        return Clip(
            frames=join(frames),
            actions=tuple(action_from_pb(action) for action in self._actions),
            start_frames=self._start_frames,
            chunks=tuple(self._chunks),
            state_hash=self._chunks[-1].state_hash,
            warnings=self._warnings,
        )
