"""Blocks and tables against a plain model of them: none is lost, none is held twice, none in view is given back."""

import time
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from worldtree_video.domain import KvPolicy, PolicyKind
from worldtree_video.kv_cache import BlockPool, BlockTable

BLOCK_COUNT = 24


def policies() -> st.SearchStrategy[KvPolicy]:
    return st.integers(1, 5).flatmap(
        lambda window: st.builds(KvPolicy, st.just(PolicyKind.SINK_WINDOW), st.just(window), st.integers(0, window - 1))
    )


class Blocks(RuleBasedStateMachine):
    """Each table beside the list of blocks that it should hold, dropped by the rule and not by a clever index."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCK_COUNT)
        self.in_flight: list[int] = []
        self.tables: list[tuple[BlockTable, list[int | None]]] = []

    def held(self) -> set[int]:
        return {block for _, blocks in self.tables for block in blocks if block is not None}

    @rule(policy=policies(), reserve_chunks=st.integers(0, 3))
    @precondition(lambda self: len(self.tables) < 6)
    def new_table(self, policy: KvPolicy, reserve_chunks: int) -> None:
        self.tables.append((BlockTable(self.pool, policy, reserve_chunks=reserve_chunks), []))

    @rule()
    def allocate(self) -> None:
        free = BLOCK_COUNT - len(self.held()) - len(self.in_flight)
        block = self.pool.allocate()
        assert (block is None) == (free == 0)
        if block is not None:
            assert block not in self.held()
            assert block not in self.in_flight
            self.in_flight.append(block)

    @rule(data=st.data())
    @precondition(lambda self: self.in_flight)
    def abandon(self, data: st.DataObject) -> None:
        self.pool.abandon(self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1))))

    @rule(data=st.data(), count=st.integers(1, 9))
    @precondition(lambda self: self.tables)
    def append(self, data: st.DataObject, count: int) -> None:
        table, blocks = data.draw(st.sampled_from(self.tables))
        for _ in range(count):
            block = self.in_flight.pop() if self.in_flight else self.pool.allocate()
            if block is None:
                return
            table.append(block)
            blocks.append(block)
            self.drop(table, blocks, table.reserve_chunks)

    @rule(data=st.data())
    @precondition(lambda self: self.tables and len(self.tables) < 6)
    def fork(self, data: st.DataObject) -> None:
        table, blocks = data.draw(st.sampled_from(self.tables))
        free = self.pool.free_count
        self.tables.append((table.fork(), list(blocks)))
        assert self.pool.free_count == free

    @rule(data=st.data())
    @precondition(lambda self: self.tables)
    def truncate(self, data: st.DataObject) -> None:
        table, blocks = data.draw(st.sampled_from(self.tables))
        length = data.draw(st.integers(0, len(blocks)))
        table.truncate(length)
        del blocks[length:]
        in_view = [blocks[position] for position in table.policy.visible(length)]
        assert table.complete == (None not in in_view)

    @rule(data=st.data())
    @precondition(lambda self: self.tables)
    def drop_reserve(self, data: st.DataObject) -> None:
        table, blocks = data.draw(st.sampled_from(self.tables))
        free = self.pool.free_count
        was_complete = table.complete
        freed = table.drop_reserve()
        self.drop(table, blocks, 0)
        assert self.pool.free_count == free + freed
        assert table.complete == was_complete

    @rule(data=st.data(), length=st.integers(0, 12))
    @precondition(lambda self: any(not blocks for _, blocks in self.tables))
    def refill(self, data: st.DataObject, length: int) -> None:
        table, blocks = data.draw(st.sampled_from([entry for entry in self.tables if not entry[1]]))
        visible = table.policy.visible(length)
        table.stand_at(length)
        fresh = table.refill({position: bytes([position]) for position in visible})
        if fresh is None:
            assert len(visible) > self.pool.free_count
            table.truncate(0)
            return
        assert table.complete
        assert list(fresh) == visible
        blocks.extend([None] * length)
        for position, block in fresh.items():
            blocks[position] = block

    @rule(data=st.data())
    @precondition(lambda self: self.tables)
    def close(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, _ = self.tables.pop(index)
        free = self.pool.free_count
        freed = table.close()
        assert self.pool.free_count == free + freed
        assert table.close() == 0

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity()
        for table, blocks in self.tables:
            assert listed(table) == blocks
            assert table.held_count == sum(block is not None for block in blocks)
        assert self.pool.held_count == len(self.held())
        assert self.pool.in_flight_count == len(self.in_flight)
        assert self.pool.free_count == BLOCK_COUNT - len(self.held()) - len(self.in_flight)

    @staticmethod
    def drop(table: BlockTable, blocks: list[int | None], reserve_chunks: int) -> None:
        """What no rewind by so many chunks would bring into view is gone."""
        length = len(blocks)
        in_view = {
            position
            for shorter in range(max(0, length - reserve_chunks), length + 1)
            for position in table.policy.visible(shorter)
        }
        for position in range(length):
            if position not in in_view:
                blocks[position] = None

    def teardown(self) -> None:
        for table, _ in self.tables:
            table.close()
        for block in self.in_flight:
            self.pool.abandon(block)
        self.pool.check_integrity()
        assert self.pool.free_count == BLOCK_COUNT


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def listed(table: BlockTable) -> list[int | None]:
    return [table.blocks.get(position) for position in range(len(table))]


def grown(table: BlockTable, count: int) -> BlockTable:
    for _ in range(count):
        block = table.pool.allocate()
        assert block is not None
        table.append(block)
    return table


def sink_window(window: int = 4, sink: int = 1) -> KvPolicy:
    return KvPolicy(PolicyKind.SINK_WINDOW, window, sink)


def test_a_long_history_holds_only_its_sink_its_reserve_and_what_is_in_view() -> None:
    pool = BlockPool(20)
    table = grown(BlockTable(pool, sink_window(), reserve_chunks=3), 500)
    assert len(table) == 500
    assert table.held_count == 1 + 3 + 3
    assert [seen.block_id for seen in table.context()] == [table.blocks[position] for position in (0, 497, 498, 499)]
    assert table.drop_reserve() == 3
    assert table.held_count == 4
    table.close()
    pool.check_integrity()


def test_a_rewind_within_the_reserve_leaves_everything_in_view() -> None:
    pool = BlockPool(20)
    table = grown(BlockTable(pool, sink_window(), reserve_chunks=3), 50)
    table.truncate(47)
    assert table.complete
    assert len(table.context()) == 4
    table.close()
    pool.check_integrity()


def test_a_rewind_past_the_reserve_leaves_a_hole_that_is_known() -> None:
    pool = BlockPool(20)
    table = grown(BlockTable(pool, sink_window(), reserve_chunks=3), 50)
    table.truncate(40)
    assert not table.complete
    with pytest.raises(AssertionError, match="blocks in view are gone"):
        table.context()
    table.close()
    pool.check_integrity()


def test_what_grows_after_a_rewind_to_the_sink_is_given_back_again_when_it_leaves_view() -> None:
    """The sink is always there, so such a table is complete and goes on."""
    pool = BlockPool(40)
    table = grown(BlockTable(pool, sink_window(), reserve_chunks=0), 30)
    table.truncate(1)
    assert table.complete
    grown(table, 20)
    assert table.held_count <= 1 + 4
    table.close()
    pool.check_integrity()


def test_a_fork_shares_every_block_and_takes_none() -> None:
    pool = BlockPool(8)
    table = grown(BlockTable(pool, sink_window()), 4)
    child = table.fork()
    assert pool.free_count == 4
    assert pool.shared_count() == table.shared_count() == child.shared_count() == 4
    assert child.context() == table.context()
    assert table.close() == 0
    assert pool.free_count == 4
    assert child.close() == 4
    pool.check_integrity()


def test_a_refill_that_finds_too_few_blocks_changes_nothing() -> None:
    pool = BlockPool(3)
    table = BlockTable(pool, sink_window())
    table.stand_at(10)
    keys = {position: bytes([position]) for position in table.needed()}
    assert len(keys) > 3
    assert table.refill(keys) is None
    assert (table.held_count, pool.free_count) == (0, 3)
    assert table.refill({9: b"9"}) is not None
    table.close()
    pool.check_integrity()


def test_a_large_pool_costs_what_is_used_of_it() -> None:
    started_s = time.process_time()
    pool = BlockPool(10**9)
    table = grown(BlockTable(pool, sink_window()), 6)
    pool.check_integrity()
    assert time.process_time() - started_s < 0.5
    assert (pool.held_count, pool.free_count) == (table.held_count, 10**9 - table.held_count)
    table.close()
    assert pool.free_count == 10**9


def test_a_block_that_is_used_and_was_never_given_out_is_noticed() -> None:
    pool = BlockPool(5)
    table = grown(BlockTable(pool, sink_window()), 2)
    pool._fresh = 1
    with pytest.raises(AssertionError, match="-1 of 5 blocks are lost"):
        pool.check_integrity()
    table.close()


def test_a_lost_block_is_noticed_with_its_numbers() -> None:
    pool = BlockPool(5)
    table = grown(BlockTable(pool, sink_window()), 2)
    del table.blocks[0]
    with pytest.raises(AssertionError, match="1 of 5 blocks are lost"):
        pool.check_integrity()


def test_a_block_held_without_being_counted_is_noticed() -> None:
    pool = BlockPool(5)
    table = grown(BlockTable(pool, sink_window()), 2)
    stray = BlockTable(pool, sink_window())
    stray.blocks = dict(table.blocks)
    with pytest.raises(AssertionError, match="counts 1 tables, 2 list it"):
        pool.check_integrity()


@pytest.mark.parametrize("length", [-1, 4])
def test_a_table_cannot_be_cut_to_a_length_it_never_had(length: int) -> None:
    table = grown(BlockTable(BlockPool(5), sink_window()), 3)
    with pytest.raises(ValueError, match=f"length must be 0 to 3, got {length}"):
        table.truncate(length)


def test_a_pool_of_no_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="block_count must be 1 or more, got 0"):
        BlockPool(0)


def known(pool: BlockPool, *keys: bytes) -> BlockTable:
    """A table of chunks that are known by these keys."""
    table = BlockTable(pool, KvPolicy(PolicyKind.FULL, 8))
    for key in keys:
        block = pool.allocate()
        assert block is not None
        table.append(block, key)
    return table


def test_what_nobody_holds_stays_known_until_no_free_block_is_left_and_the_one_left_alone_longest_goes_first() -> None:
    pool = BlockPool(4)
    for key in (b"old", b"new"):
        known(pool, key).close()
    assert (pool.free_count, pool.cached_count, pool.held_count) == (4, 2, 0)
    taken = [pool.allocate() for _ in range(2)]
    assert pool.cached_count == 2
    toucher = BlockTable(pool, KvPolicy(PolicyKind.FULL, 8))
    assert toucher.share_known(b"old")
    toucher.close()
    taken.append(pool.allocate())
    assert (pool.find(b"new"), pool.find(b"old") is not None) == (None, True)
    taken.append(pool.allocate())
    assert (pool.find(b"old"), pool.allocate(), pool.free_count) == (None, None, 0)
    pool.check_integrity()
    for block in taken:
        assert block is not None
        pool.abandon(block)
    pool.check_integrity()


def test_the_beginning_of_a_history_that_nobody_holds_is_evicted_last() -> None:
    pool = BlockPool(3)
    known(pool, b"first", b"second", b"third").close()
    assert pool.allocate() is not None
    assert [pool.find(key) is not None for key in (b"first", b"second", b"third")] == [True, True, False]
    pool.check_integrity()


def test_a_key_that_is_known_keeps_its_block_and_a_pool_without_a_prefix_cache_knows_none() -> None:
    pool = BlockPool(4)
    first, second = known(pool, b"same"), known(pool, b"same")
    assert pool.find(b"same") == first.last != second.last
    second.close()
    assert pool.cached_count == 0
    plain = BlockPool(4, prefix_cache=False)
    table = known(plain, b"same")
    assert plain.find(b"same") is None
    table.close()
    assert (plain.cached_count, plain.free_count) == (0, 4)
    for used in (pool, plain):
        used.check_integrity()


def test_a_spilled_table_takes_back_what_is_still_known_and_fresh_blocks_for_the_rest() -> None:
    pool = BlockPool(4)
    table = known(pool, b"a", b"b", b"c")
    assert table.spill() == 3
    assert (len(table), table.held_count, table.complete, table.needed()) == (3, 0, False, [0, 1, 2])
    other = known(pool, b"x", b"y")  # one of them into the room of the newest, which goes first
    assert pool.find(b"c") is None
    fresh = table.refill({0: b"a", 1: b"b", 2: b"c"})
    assert fresh is None
    assert (pool.free_count, table.held_count) == (2, 0)
    other.close()
    fresh = table.refill({0: b"a", 1: b"b", 2: b"c"})
    assert fresh is not None
    assert list(fresh) == [2]
    assert table.complete
    assert pool.find(b"c") is None, "known before its contents are written"
    table.publish({2: b"c"})
    assert pool.find(b"c") == fresh[2]
    table.close()
    pool.check_integrity()


def test_a_refill_whose_contents_cannot_be_had_leaves_nothing_known() -> None:
    pool = BlockPool(4)
    table = BlockTable(pool, KvPolicy(PolicyKind.FULL, 8))
    table.stand_at(2)
    assert table.refill({0: b"a", 1: b"b"}) == {0: 0, 1: 1}
    assert table.spill() == 2
    assert (pool.find(b"a"), pool.cached_count, pool.free_count) == (None, 0, 4)
    pool.check_integrity()


def test_a_table_of_a_strangers_blocks_makes_nothing_known() -> None:
    pool = BlockPool(8)
    table = BlockTable(pool, sink_window())
    table.stand_at(2)
    table.trusted = False
    assert table.refill({0: b"first", 1: b"second"}) is not None
    block = pool.allocate()
    assert block is not None
    table.append(block, b"forged")
    table.publish({0: b"first"})
    assert (pool.find(b"forged"), pool.find(b"first")) == (None, None)
    table.close()
    assert (pool.cached_count, pool.free_count) == (0, 8)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda pool: pool._index.update(other=0), "that do not agree"),
        (lambda pool: pool._known.pop(0), "that do not agree|cached without a key"),
        (lambda pool: pool._free.append(0), "are free and cached"),
    ],
)
def test_an_index_that_does_not_agree_is_noticed(break_it: Callable[[BlockPool], object], said: str) -> None:
    pool = BlockPool(4)
    known(pool, b"a").close()
    pool.check_integrity()
    break_it(pool)
    with pytest.raises(AssertionError, match=said):
        pool.check_integrity()
