"""K action sequences from one branch as a trie: each distinct prefix is made once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from worldtree_video.branch import Branch
from worldtree_video.domain import Action, Chunk, Priority, Record

Edge = tuple[Action, int]  # an action under a seed: sequences share a prefix only under one seed


@dataclass(slots=True, eq=False)
class TrieNode:
    """One distinct prefix. `sequences`: the indices that pass through it, ascending; `ends`: those that end here."""

    edge: Edge
    depth: int
    sequences: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    children: "dict[Edge, TrieNode]" = field(default_factory=dict)


def build_trie(sequences: Sequence[Sequence[Edge]]) -> list[TrieNode]:
    """The roots of the trie of some non-empty sequences."""
    roots: dict[Edge, TrieNode] = {}
    for index, sequence in enumerate(sequences):
        level = roots
        for depth, edge in enumerate(sequence):
            node = level.setdefault(edge, TrieNode(edge, depth))
            node.sequences.append(index)
            level = node.children
        node.ends.append(index)
    return list(roots.values())


def count_nodes(roots: Sequence[TrieNode]) -> int:
    """Distinct prefixes."""
    stack, count = list(roots), 0
    while stack:
        count += 1
        stack.extend(stack.pop().children.values())
    return count


class RolloutSink(Protocol):
    """Where finished nodes go. Called under the engine's lock, from its thread: must not block."""

    def put(self, item: tuple[TrieNode, Chunk]) -> None:
        """One more node; its parent came before it."""

    def close(self, error: Exception | None = None) -> None:
        """No more will come."""


class Rollout:
    """Walks the trie depth first with at most `width` nodes in the making, so that few blocks are held at a time.

    `spawn` hands a node's run to the scheduler, `drop` takes it back. Both, and every method, under the engine's lock.
    """

    def __init__(
        self,
        branch: Branch,
        roots: Sequence[TrieNode],
        *,
        width: int,
        ahead_chunks: int,
        sink: RolloutSink,
        spawn: "Callable[[NodeRun], None]",
        drop: "Callable[[NodeRun], None]",
        tenant: str = "anonymous",
    ) -> None:
        self.tenant = tenant
        self._width = width
        self._ahead_chunks = ahead_chunks
        self._untaken_count = 0
        self._sink = sink
        self._spawn = spawn
        self._drop = drop
        self._active: set[NodeRun] = set()
        self._waiting: list[NodeRun] = []
        self._closed = False
        self._push(branch, roots)

    def begin(self) -> None:
        """Starts the first nodes."""
        self._fill()

    def cancel(self) -> None:
        """Gives back every block. Nothing more is sent."""
        self._closed = True
        for run in [*self._active, *self._waiting]:
            self._drop(run)
            run.branch.close()
        self._active.clear()
        self._waiting.clear()

    def node_made(self, run: "NodeRun", chunk: Chunk) -> None:
        """A node's chunk was committed: its children take its place."""
        self._active.remove(run)
        self._push(run.branch, list(run.node.children.values()))
        run.branch.close()
        self._untaken_count += 1
        self._sink.put((run.node, chunk))
        self._fill()
        if not self._active and not self._waiting:
            self._closed = True
            self._sink.close()

    def taken(self) -> None:
        """The reader has taken a node: there may be room for another."""
        self._untaken_count -= 1
        self._fill()

    def fail(self, error: Exception) -> None:
        """It cannot be answered: one node failed, or its session was closed."""
        if not self._closed:
            self.cancel()
            self._sink.close(error)

    def _push(self, branch: Branch, nodes: Sequence[TrieNode]) -> None:
        # Reversed: the stack's top is the first child, so sequences come out roughly in their order.
        self._waiting.extend(NodeRun(self, node, _imagined(branch, node.edge[1])) for node in reversed(nodes))

    def _fill(self) -> None:
        # What is being made will have to wait for the reader too.
        room = self._ahead_chunks - self._untaken_count
        while self._waiting and len(self._active) < min(self._width, room):
            run = self._waiting.pop()
            self._active.add(run)
            self._spawn(run)


def _imagined(branch: Branch, seed: int) -> Branch:
    """A fork that never goes back, so it keeps no reserve from those who need blocks."""
    child = branch.fork(seed=seed)
    child.table.reserve_chunks = 0
    child.table.drop_reserve()
    return child


class NodeRun:
    """The run of one node: one chunk on a branch of its own."""

    priority = Priority.BULK
    given = None
    steered = False
    paced = None

    def __init__(self, rollout: Rollout, node: TrieNode, branch: Branch) -> None:
        self.branch = branch
        self.node = node
        self.tenant = rollout.tenant
        self._rollout = rollout
        self._made = False

    @property
    def over(self) -> bool:
        return self._made

    @property
    def left(self) -> tuple[int, int]:
        return self.branch.nfe, 1

    def due(self, now: float) -> float | None:
        return None if self._made else now

    def next_record(self) -> Record:
        return self.branch.next_record(self.node.edge[0])

    def deliver(self, chunk: Chunk, now: float) -> None:
        del now
        self._made = True
        self._rollout.node_made(self, chunk)

    def fail(self, error: Exception) -> None:
        self._made = True
        self._rollout.fail(error)
