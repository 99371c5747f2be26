"""What one branch sees of its history: its blocks by position. Plain integers: no tensor is seen here.

table:     one entry a chunk of a history, by position; none where the block was given back
           [ start ........ | generated ........................... ]
             sink: in view  | dropped        | reserve | in view
           kept      what the KV policy may ever show again: never given back while the table lives, unless spilled
           reserve   the chunks just before, kept so that a rewind is integer work; first to go when the pool is short

What a block's states are, and how it goes from one to another: see the pool.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from worldtree_video.domain import Action, KvPolicy, Record, Summary
from worldtree_video.errors import PolicyBroken
from worldtree_video.kv_cache.pool import BlockPool
from worldtree_video.policies import resolve


class Seen(NamedTuple):
    """A block in view, and with how many evaluations its chunk was made (0: its frames were given)."""

    block_id: int
    nfe: int


class BlockTable:
    """The blocks of one branch by position, and the history that its policy looks at. Closing it gives back all.

    `trusted`: whether all of its blocks were made here, or came back from where we put them. The blocks of a client's
    snapshot may hold anything, whatever their keys say, and so may every block made from them: shared by key, one
    client's forgery would be in another's world. So none of them is ever known by a key, nor are their descendants'.
    """

    def __init__(self, pool: BlockPool, policy: KvPolicy, *, reserve_chunks: int = 0) -> None:
        self.pool = pool
        self.policy = policy
        self.reserve_chunks = reserve_chunks
        self.trusted = True
        self.blocks: dict[int, int] = {}  # block by position
        self.records: Sequence[Record] = ()  # its branch's own: what made each chunk
        self._rules = resolve(policy)
        self._length = 0
        self._summaries: dict[int, Summary] = {}  # of the positions held, and of those that were when it was spilled
        pool.join(self)

    def __len__(self) -> int:
        return self._length

    @property
    def held_count(self) -> int:
        return len(self.blocks)

    def shared_count(self) -> int:
        """Of the blocks held, those that another table lists too."""
        return sum(1 for block in self.blocks.values() if self.pool.references(block) > 1)

    def action(self, position: int) -> Action | None:
        """What steered a chunk: of the History that a policy sees."""
        return self.records[position].action if position < len(self.records) else None

    def summary(self, position: int) -> Summary | None:
        """What can be compared of a chunk: of the History that a policy sees."""
        return self._summaries.get(position)

    def summaries(self) -> dict[int, Summary]:
        """What can be compared, by position."""
        return dict(self._summaries)

    @property
    def can_grow(self) -> bool:
        """Whether it may get one more chunk. Raises PolicyBroken."""
        return self._rules.can_grow(self._length)

    def visible(self) -> list[int]:
        """Positions that the next chunk sees, ascending. Only for a table that is `complete`. Raises PolicyBroken."""
        return self._rules.visible(self)

    def needed(self) -> list[int]:
        """Positions whose blocks it takes to go on, ascending: those in view, and those that may be later."""
        return sorted(self._rules.kept(self._length))

    @property
    def complete(self) -> bool:
        """Whether every block that is needed is here (one that went back past its reserve, or is spilled, has holes).

        Raises PolicyBroken.
        """
        return all(position in self.blocks for position in self._rules.kept(self._length))

    def context(self) -> tuple[Seen, ...]:
        """The blocks that the next chunk sees, oldest first. Only for a table that is `complete`.

        Raises PolicyBroken.
        """
        positions = self.visible()
        gone = [position for position in positions if position not in self.blocks]
        if gone and self.policy.plugin:
            raise PolicyBroken(self.policy.plugin, f"chunks {gone[:8]} are in view again, after it had let them go")
        assert not gone, f"{len(gone)} of {len(positions)} blocks in view are gone"
        return tuple(Seen(self.blocks[position], self._nfe(position)) for position in positions)

    @property
    def last(self) -> int:
        """The newest block."""
        assert self._length - 1 in self.blocks, "the newest block is gone"
        return self.blocks[self._length - 1]

    def append(self, block_id: int, key: bytes | None = None, summary: Summary | None = None) -> None:
        """Takes over an allocated block as the newest chunk, and gives back what left view and reserve.

        `key`: its record's, by which others may share it. Raises PolicyBroken, and changes nothing.
        """
        keeps = self._rules.kept(max(0, self._length + 1 - self.reserve_chunks))
        self.pool.adopt(block_id)
        if key is not None and self.trusted:
            self.pool.learn(block_id, key, summary)
        self._add(block_id, summary, keeps)

    def share_known(self, key: bytes) -> bool:
        """Takes the block that is known by this key as the newest chunk; False, and no change, where there is none.

        Raises PolicyBroken, and changes nothing.
        """
        block_id = self.pool.find(key)
        if block_id is None:
            return False
        keeps = self._rules.kept(max(0, self._length + 1 - self.reserve_chunks))
        self.pool.share(block_id)
        self._add(block_id, self.pool.summary(block_id), keeps)
        return True

    def stand_at(self, length: int, summaries: Mapping[int, Summary] | None = None) -> None:
        """Makes an empty table what it would be if it had been spilled after `length` chunks."""
        assert not self._length, f"the table already lists {self._length} chunks"
        self._length = length
        self._summaries = dict(summaries or {})

    def spill(self) -> int:
        """Gives back every block and remembers the rest; returns how many can be allocated again.

        Its owner has put what is `needed` elsewhere, or will make it again.
        """
        return self._drop(list(self.blocks))

    def describe(self, summaries: Mapping[int, Summary]) -> None:
        """Says what can be compared of refilled blocks."""
        self._summaries.update(summaries)

    def refill(self, keys: Mapping[int, bytes]) -> dict[int, int] | None:
        """Takes blocks for some positions of a spilled table: those still known by their key, and fresh ones.

        Returns the fresh ones by position, for their contents to be written; `publish` makes these known afterwards.
        None, and no change, when the pool has too few. If the contents cannot be had, `spill` gives all back.
        """
        wanted = [position for position in sorted(keys) if position not in self.blocks]
        known = {position: self.pool.find(keys[position]) for position in wanted}
        shared = {position: block for position, block in known.items() if block is not None}
        missing = [position for position in wanted if position not in shared]
        # First, or a block that is only cached might be allocated for another position.
        for block_id in shared.values():
            self.pool.share(block_id)
        fresh = self._take(len(missing))
        if fresh is None:
            for block_id in shared.values():
                self.pool.release(block_id)
            return None
        written = dict(zip(missing, fresh, strict=True))
        self.blocks.update(shared)
        self.blocks.update(written)
        for position, block_id in shared.items():
            summary = self.pool.summary(block_id)
            if summary is not None:
                self._summaries[position] = summary
        return written

    def publish(self, keys: Mapping[int, bytes]) -> None:
        """Makes refilled blocks known by their keys, now that their contents are written. Not for untrusted tables."""
        if self.trusted:
            for position, key in keys.items():
                self.pool.learn(self.blocks[position], key, self._summaries.get(position))

    def fork(self) -> "BlockTable":
        """A second table that shares every block: integer work, whatever the blocks hold."""
        child = BlockTable(self.pool, self.policy, reserve_chunks=self.reserve_chunks)
        child.trusted = self.trusted
        child.blocks = dict(self.blocks)
        child._length = self._length
        child._summaries = dict(self._summaries)
        for block in child.blocks.values():
            self.pool.share(block)
        return child

    def truncate(self, length: int) -> None:
        """Goes back to the first `length` chunks."""
        if not 0 <= length <= self._length:
            raise ValueError(f"length must be 0 to {self._length}, got {length}")
        self._drop([position for position in self.blocks if position >= length])
        self._summaries = {position: summary for position, summary in self._summaries.items() if position < length}
        self._length = length

    def drop_reserve(self) -> int:
        """Gives back the blocks that are not needed; returns how many can be allocated again."""
        try:
            return self._forget_except(self._length, self._rules.kept(self._length))
        except PolicyBroken:
            return 0  # it will fail its own run, not the one that is short of blocks

    def close(self) -> int:
        """Gives back everything; returns how many can be allocated again. The table lists nothing afterwards."""
        freed = self._drop(list(self.blocks))
        self._length = 0
        self._summaries.clear()
        self.pool.leave(self)
        return freed

    def _nfe(self, position: int) -> int:
        return self.records[position].nfe if position < len(self.records) else 0

    def _add(self, block_id: int, summary: Summary | None, keeps: Collection[int]) -> None:
        self.blocks[self._length] = block_id
        if summary is not None:
            self._summaries[self._length] = summary
        self._length += 1
        # What was kept `reserve_chunks` ago is what a rewind by so many needs.
        self._forget_except(self._length - self.reserve_chunks, keeps)

    def _take(self, count: int) -> list[int] | None:
        if count > self.pool.free_count:
            return None
        taken = []
        for _ in range(count):
            block_id = self.pool.allocate()
            assert block_id is not None, f"the pool said that {count} blocks were free"
            self.pool.adopt(block_id)
            taken.append(block_id)
        return taken

    def _forget_except(self, below: int, keeps: Collection[int]) -> int:
        """Gives back the positions before `below` that are not among `keeps`."""
        gone = [position for position in self.blocks if position < below and position not in keeps]
        freed = self._drop(gone)
        for position in gone:
            self._summaries.pop(position, None)
        return freed

    def _drop(self, positions: list[int]) -> int:
        # The newest first, so that of a history that nobody holds the beginning, which others share, is evicted last.
        return sum(self.pool.release(self.blocks.pop(position)) for position in sorted(positions, reverse=True))
