"""Blocks, who holds them, and the tables that list them. Plain integers: no tensor is ever seen here.

pool:      0 .. block_count-1, each in exactly one of three states
           free        in `_free`
           in flight   allocated to a chunk being made; in `_in_flight`; reference count 0
           held        in one or more tables; reference count = number of tables that list it
table:     one entry a chunk of a history, oldest first; None where the block was given back
           [ start ........ | generated ........................... ]
             sink: in view  | dropped: None | reserve | in view
           in view   what the KV policy shows the model: never given back while the table lives
           reserve   the chunks just before, kept so that a rewind is integer work; first to go when the pool is short
"""

from collections import Counter
from collections.abc import Iterable

from worldtree_video.domain import KvPolicy, Storage


class BlockPool:
    """Hands out the ids of the blocks of one storage format, and counts who holds them."""

    def __init__(self, block_count: int, storage: Storage = Storage.FP32) -> None:
        if block_count < 1:
            raise ValueError(f"block_count must be 1 or more, got {block_count}")
        self.block_count = block_count
        self.storage = storage
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._free = list(range(block_count - 1, -1, -1))
        self._in_flight: set[int] = set()
        self._references = [0] * block_count
        self._tables: set[BlockTable] = set()

    @property
    def free_count(self) -> int:
        return len(self._free)

    @property
    def in_flight_count(self) -> int:
        return len(self._in_flight)

    @property
    def held_count(self) -> int:
        return self.block_count - self.free_count - self.in_flight_count

    def shared_count(self) -> int:
        """Blocks that more than one table lists."""
        return sum(1 for count in self._references if count > 1)

    def references(self, block_id: int) -> int:
        """Tables that list a block."""
        return self._references[block_id]

    def allocate(self) -> int | None:
        """Takes a free block for a chunk to be made; None when the pool is dry."""
        if not self._free:
            return None
        block_id = self._free.pop()
        self._in_flight.add(block_id)
        return block_id

    def abandon(self, block_id: int) -> None:
        """Gives back a block whose chunk was not finished."""
        self._in_flight.remove(block_id)
        self._free.append(block_id)

    def check_integrity(self) -> None:
        """Recounts every block. Raises AssertionError with the numbers when one is lost or held wrongly."""
        listed = Counter(block for table in self._tables for block in table.block_ids if block is not None)
        free, held = set(self._free), set(listed)
        assert len(free) == len(self._free), f"{len(self._free) - len(free)} blocks are in the free list twice"
        assert not free & held, f"blocks {sorted(free & held)} are free and held"
        assert not free & self._in_flight, f"blocks {sorted(free & self._in_flight)} are free and in flight"
        assert not held & self._in_flight, f"blocks {sorted(held & self._in_flight)} are held and in flight"
        total = len(free) + len(held) + len(self._in_flight)
        assert total == self.block_count, f"{self.block_count - total} of {self.block_count} blocks are lost"
        for block_id, count in enumerate(self._references):
            assert count == listed[block_id], f"block {block_id} counts {count} tables, {listed[block_id]} list it"

    def _adopt(self, block_id: int) -> None:
        self._in_flight.remove(block_id)
        self._references[block_id] = 1

    def _share(self, block_id: int) -> None:
        self._references[block_id] += 1

    def _release(self, block_id: int) -> bool:
        """Takes one reference away; True when the block became free."""
        self._references[block_id] -= 1
        if self._references[block_id]:
            return False
        self._free.append(block_id)
        return True


class BlockTable:
    """The blocks of one branch, one entry a chunk. Closing it gives back all it holds."""

    def __init__(self, pool: BlockPool, policy: KvPolicy, *, reserve_chunks: int = 0) -> None:
        self.pool = pool
        self.policy = policy
        self.reserve_chunks = reserve_chunks
        self.block_ids: list[int | None] = []
        self._kept_from = policy.sink_chunks  # positions from the sink up to here were given back
        pool._tables.add(self)

    def __len__(self) -> int:
        return len(self.block_ids)

    @property
    def held_count(self) -> int:
        return sum(1 for block in self.block_ids if block is not None)

    def shared_count(self) -> int:
        """Of the blocks held, those that another table lists too."""
        return sum(1 for block in self.block_ids if block is not None and self.pool.references(block) > 1)

    def context(self) -> tuple[int, ...]:
        """The blocks that the next chunk sees, oldest first. Only for a table that is `complete`."""
        blocks = [self.block_ids[position] for position in self.policy.visible(len(self))]
        present = tuple(block for block in blocks if block is not None)
        assert len(present) == len(blocks), f"{len(blocks) - len(present)} of {len(blocks)} blocks in view are gone"
        return present

    @property
    def complete(self) -> bool:
        """Whether every block in view is here (a rewind past the reserve leaves holes)."""
        return all(self.block_ids[position] is not None for position in self.policy.visible(len(self)))

    @property
    def last(self) -> int:
        """The newest block."""
        block = self.block_ids[-1]
        assert block is not None, "the newest block is gone"
        return block

    def append(self, block_id: int) -> None:
        """Takes over an allocated block as the newest chunk, and gives back what left view and reserve."""
        self.pool._adopt(block_id)
        self.block_ids.append(block_id)
        # What was in view `reserve_chunks` ago is still in view after that rewind.
        self._drop_below(len(self) - self.policy.window_chunks - self.reserve_chunks)

    def restore(self, length: int) -> list[int] | None:
        """Fills an empty table with fresh blocks in view after `length` chunks, for a snapshot to be written into.

        Returns them, oldest first; None, and no change, when the pool has too few.
        """
        assert not self.block_ids, f"the table already lists {len(self)} chunks"
        visible = self.policy.visible(length)
        if len(visible) > self.pool.free_count:
            return None
        self.block_ids = [None] * length
        fresh = []
        for position in visible:
            block_id = self.pool.allocate()
            assert block_id is not None, f"the pool said that {len(visible)} blocks were free"
            self.pool._adopt(block_id)
            self.block_ids[position] = block_id
            fresh.append(block_id)
        return fresh

    def fork(self) -> "BlockTable":
        """A second table that shares every block: integer work, whatever the blocks hold."""
        child = BlockTable(self.pool, self.policy, reserve_chunks=self.reserve_chunks)
        child.block_ids = list(self.block_ids)
        child._kept_from = self._kept_from
        for block in child.block_ids:
            if block is not None:
                self.pool._share(block)
        return child

    def truncate(self, length: int) -> None:
        """Goes back to the first `length` chunks."""
        if not 0 <= length <= len(self):
            raise ValueError(f"length must be 0 to {len(self)}, got {length}")
        self._release(range(length, len(self)))
        del self.block_ids[length:]
        # What grows here from now on has not been given back yet.
        self._kept_from = max(self.policy.sink_chunks, min(self._kept_from, length))

    def drop_reserve(self) -> int:
        """Gives back the blocks out of view; returns how many became free."""
        recent_chunks = self.policy.window_chunks - self.policy.sink_chunks
        return self._drop_below(len(self) - recent_chunks)

    def close(self) -> int:
        """Gives back everything; returns how many blocks became free. The table lists nothing afterwards."""
        freed = self._release(range(len(self)))
        self.block_ids.clear()
        self.pool._tables.discard(self)
        return freed

    def _drop_below(self, position: int) -> int:
        # Starts where the last drop ended: one step a chunk, however long the history grows.
        freed = self._release(range(self._kept_from, position))
        self._kept_from = max(self._kept_from, position)
        return freed

    def _release(self, positions: Iterable[int]) -> int:
        freed = 0
        for position in positions:
            block = self.block_ids[position]
            if block is not None:
                freed += self.pool._release(block)
                self.block_ids[position] = None
        return freed
