"""The trie: every distinct prefix once, depth first, few blocks at a time, and all of them back."""

from hypothesis import given
from hypothesis import strategies as st
from worldtree_video.branch import Branch
from worldtree_video.domain import Action, Chunk, KvPolicy, Origin, PolicyKind
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.rollout import NodeRun, Rollout, TrieNode, build_trie, count_nodes

Edge = tuple[Action, int]


def edges() -> st.SearchStrategy[list[list[Edge]]]:
    edge = st.tuples(st.builds(Action, st.integers(0, 2)), st.sampled_from([7, 8]))
    return st.lists(st.lists(edge, min_size=1, max_size=5), min_size=1, max_size=8)


class Imagining:
    """A rollout from a branch of a few chunks; its nodes are made in the order in which they are spawned."""

    def __init__(self, sequences: list[list[Edge]], *, width: int = 2, ahead_chunks: int = 1000) -> None:
        self.pool = BlockPool(400)
        table = BlockTable(self.pool, KvPolicy(PolicyKind.SINK_WINDOW, 3, 1), reserve_chunks=16)
        self.parent = Branch(Origin((b"start",), ()), b"root", 7, 1, table)
        for record in [self.parent.given_record, *[lambda: self.parent.next_record(Action(0))] * 5]:
            self.parent.append(record(), self._block())
        self.key = self.parent.key
        self.free = self.pool.free_count
        self.sent: list[tuple[TrieNode, Chunk]] = []
        self.ends: list[Exception | None] = []
        self.spawned: list[NodeRun] = []
        self.making_most = 0
        self.held_most = 0
        self.roots = build_trie(sequences)
        self.rollout = Rollout(
            self.parent,
            self.roots,
            width=width,
            ahead_chunks=ahead_chunks,
            sink=self,
            spawn=self.spawned.append,
            drop=self._drop,
        )
        self.rollout.begin()

    def put(self, item: tuple[TrieNode, Chunk]) -> None:
        self.sent.append(item)

    def close(self, error: Exception | None = None) -> None:
        self.ends.append(error)

    def _drop(self, run: NodeRun) -> None:
        if run in self.spawned:
            self.spawned.remove(run)

    def _block(self) -> int:
        block = self.pool.allocate()
        assert block is not None
        return block

    def make_one(self) -> None:
        self.making_most = max(self.making_most, len(self.spawned))
        run = self.spawned.pop(0)
        record = run.next_record()
        run.branch.append(record, self._block())
        run.deliver(Chunk(record, b""), 0.0)
        self.pool.check_integrity()
        self.held_most = max(self.held_most, self.free - self.pool.free_count)

    def all_is_back(self) -> bool:
        self.pool.check_integrity()
        return self.pool.free_count == self.free and self.parent.key == self.key and self.parent.table.complete


@given(edges())
def test_a_trie_has_a_node_for_each_distinct_prefix_and_no_other(sequences: list[list[Edge]]) -> None:
    prefixes = {tuple(sequence[:length]) for sequence in sequences for length in range(1, len(sequence) + 1)}
    roots = build_trie(sequences)
    assert count_nodes(roots) == len(prefixes)
    stack = [((root.edge,), root) for root in roots]
    while stack:
        prefix, node = stack.pop()
        assert node.depth == len(prefix) - 1
        assert node.sequences == [
            index for index, sequence in enumerate(sequences) if tuple(sequence[: len(prefix)]) == prefix
        ]
        assert node.ends == [index for index, sequence in enumerate(sequences) if tuple(sequence) == prefix]
        stack.extend(((*prefix, child.edge), child) for child in node.children.values())


@given(edges(), st.integers(1, 4))
def test_each_node_is_made_once_after_its_parent_and_everything_is_given_back(
    sequences: list[list[Edge]], width: int
) -> None:
    imagining = Imagining(sequences, width=width)
    while imagining.spawned:
        imagining.make_one()
    assert imagining.ends == [None]
    assert len(imagining.sent) == count_nodes(imagining.roots)
    assert imagining.making_most <= width
    seen: dict[tuple[int, int], int] = {}
    for node, chunk in imagining.sent:
        assert chunk.record.chunk_index == imagining.parent.chunk_index + node.depth
        for index in node.sequences:
            assert seen.get((index, node.depth)) is None
            assert node.depth == 0 or (index, node.depth - 1) in seen
            seen[index, node.depth] = 1
    assert imagining.all_is_back()


@given(edges(), st.data())
def test_a_rollout_that_is_cancelled_anywhere_gives_everything_back_and_sends_no_more(
    sequences: list[list[Edge]], data: st.DataObject
) -> None:
    imagining = Imagining(sequences)
    for _ in range(data.draw(st.integers(0, count_nodes(imagining.roots) - 1))):
        imagining.make_one()
    sent = len(imagining.sent)
    imagining.rollout.cancel()
    imagining.rollout.cancel()
    assert (imagining.spawned, imagining.ends, len(imagining.sent)) == ([], [], sent)
    assert imagining.all_is_back()


@given(edges(), st.data())
def test_a_node_that_fails_ends_the_rollout_once_and_gives_everything_back(
    sequences: list[list[Edge]], data: st.DataObject
) -> None:
    imagining = Imagining(sequences)
    for _ in range(data.draw(st.integers(0, count_nodes(imagining.roots) - 1))):
        imagining.make_one()
    error = RuntimeError("no finite frames")
    failing = imagining.spawned[0]
    failing.fail(error)
    imagining.rollout.fail(RuntimeError("again"))
    assert (imagining.spawned, imagining.ends) == ([], [error])
    assert failing.over
    assert imagining.all_is_back()


def test_a_rollout_walks_down_before_it_walks_across() -> None:
    deep = [[(Action(index), 7)] * 4 for index in range(3)]
    imagining = Imagining(deep, width=1)
    while imagining.spawned:
        imagining.make_one()
    assert [(node.sequences, node.depth) for node, _ in imagining.sent] == [
        ([index], depth) for index in range(3) for depth in range(4)
    ]


def test_a_wide_rollout_holds_blocks_for_one_path_and_not_for_the_whole_trie() -> None:
    sequences = [
        [(Action(first), 7), (Action(second), 7), *[(Action(0), 7)] * 6] for first in range(5) for second in range(5)
    ]
    imagining = Imagining(sequences, width=1)
    while imagining.spawned:
        imagining.make_one()
    assert len(imagining.sent) == 5 + 25 + 25 * 6
    assert imagining.held_most <= 8


def test_imagined_branches_keep_no_reserve_from_those_who_need_blocks() -> None:
    imagining = Imagining([[(Action(1), 7)] * 3])
    assert imagining.parent.table.held_count > 3
    assert imagining.parent.table.drop_reserve() > 0
    while imagining.spawned:
        imagining.make_one()
    assert imagining.ends == [None]


def test_sequences_share_a_prefix_only_under_one_seed() -> None:
    shared = build_trie([[(Action(1), 7), (Action(2), 7)], [(Action(1), 7), (Action(2), 8)]])
    assert count_nodes(shared) == 3
    assert count_nodes(build_trie([[(Action(1), 7)], [(Action(1), 8)]])) == 2


@given(edges(), st.integers(1, 3), st.integers(1, 5))
def test_a_rollout_runs_only_so_far_ahead_of_its_reader(
    sequences: list[list[Edge]], ahead_chunks: int, width: int
) -> None:
    imagining = Imagining(sequences, width=width, ahead_chunks=ahead_chunks)
    taken = 0
    while not imagining.ends:
        while imagining.spawned:
            imagining.make_one()
        assert len(imagining.sent) - taken <= ahead_chunks
        taken += 1
        imagining.rollout.taken()
    assert len(imagining.sent) == count_nodes(imagining.roots)
    assert imagining.all_is_back()
