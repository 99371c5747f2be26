"""The blocks of one storage format: who holds each, and which chunk it holds. Plain integers: no tensor is seen here.

pool:      0 .. block_count-1, each in exactly one of four states
           free        in `_free`, or never given out yet: from `_fresh` on
           in flight   allocated to a chunk being made; in `_in_flight`; reference count 0
           held        in one or more tables; reference count = number of tables that list it
           cached      in no table, but known by its key; in `_cached`, least recently held first
index:     key of a record -> the one block that holds that chunk; every cached block is in it, held ones may be
           indexed     made here from a trusted history, or read back from where we wrote it
           never       in flight, or after blocks that a client brought: see `BlockTable.trusted`

           allocate           adopt               release, the last that held it
    free ----------> in flight -----> held -------------------------------> free, or cached if it is known
      ^                  |              ^                                               |
      +----- abandon ----+              +---------------------- share ------------------+
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from worldtree_video.domain import Storage, Summary


class Lister(Protocol):
    """What lists blocks, for recounts: a block table."""

    @property
    def blocks(self) -> Mapping[int, int]:
        """Block by position."""


class _Known(NamedTuple):
    """What the pool knows of an indexed block."""

    key: bytes
    summary: Summary | None


class BlockPool:
    """Hands out the ids of the blocks of one storage format, counts who holds them, and finds them by key.

    Without `prefix_cache` no block is known by its key, so a block that nobody holds is free at once.

    Whoever makes chunks calls `allocate` and `abandon`; `adopt`, `share`, `release` and `learn` are for the tables that
    joined: each of these moves is one in what a table lists.
    """

    def __init__(self, block_count: int, storage: Storage = Storage.FP32, *, prefix_cache: bool = True) -> None:
        if block_count < 1:
            raise ValueError(f"block_count must be 1 or more, got {block_count}")
        self.block_count = block_count
        self.storage = storage
        self.prefix_cache = prefix_cache
        # A stack: the block freed last is the one most likely still in the processor's cache.
        self._free: list[int] = []
        self._fresh = 0  # no list of them: a large pool is mostly untouched for a long time
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._in_flight: set[int] = set()
        self._references: dict[int, int] = {}  # of the blocks held
        self._index: dict[bytes, int] = {}
        self._known: dict[int, _Known] = {}  # the index, the other way round
        self._tables: set[Lister] = set()

    @property
    def free_count(self) -> int:
        """Blocks that can be allocated: free ones, and cached ones that nobody would miss but for speed."""
        return self.block_count - self.held_count - self.in_flight_count

    @property
    def cached_count(self) -> int:
        """Of these, blocks that are known by their key."""
        return len(self._cached)

    @property
    def in_flight_count(self) -> int:
        return len(self._in_flight)

    @property
    def held_count(self) -> int:
        return len(self._references)

    def shared_count(self) -> int:
        """Blocks that more than one table lists."""
        return sum(1 for count in self._references.values() if count > 1)

    def references(self, block_id: int) -> int:
        """Tables that list a block."""
        return self._references.get(block_id, 0)

    def find(self, key: bytes) -> int | None:
        """The block that holds the chunk of this key; None: not here."""
        return self._index.get(key)

    def allocate(self) -> int | None:
        """Takes a block for a chunk to be made: a free one, else the cached one that was left alone longest.

        None when all are held or in flight.
        """
        if self._free:
            block_id = self._free.pop()
        elif self._fresh < self.block_count:
            block_id = self._fresh
            self._fresh += 1
        elif self._cached:
            block_id, _ = self._cached.popitem(last=False)
            del self._index[self._known.pop(block_id).key]
        else:
            return None
        self._in_flight.add(block_id)
        return block_id

    def abandon(self, block_id: int) -> None:
        """Gives back a block whose chunk was not finished."""
        self._in_flight.remove(block_id)
        self._free.append(block_id)

    def join(self, table: Lister) -> None:
        """Counts a table in."""
        self._tables.add(table)

    def leave(self, table: Lister) -> None:
        """Forgets a table that lists nothing any more."""
        self._tables.discard(table)

    def adopt(self, block_id: int) -> None:
        """A block in flight is held by its first table."""
        self._in_flight.remove(block_id)
        self._references[block_id] = 1

    def learn(self, block_id: int, key: bytes, summary: Summary | None) -> None:
        """Makes a held block known by its key, now that it holds this chunk. The first to be known stays: the others
        hold the same."""
        if self.prefix_cache and key not in self._index and block_id not in self._known:
            self._index[key] = block_id
            self._known[block_id] = _Known(key, summary)

    def summary(self, block_id: int) -> Summary | None:
        """What can be compared of the chunk in a block that is known by its key."""
        return self._known[block_id].summary

    def share(self, block_id: int) -> None:
        """One more table lists a block that is held or cached."""
        self._cached.pop(block_id, None)
        self._references[block_id] = self._references.get(block_id, 0) + 1

    def release(self, block_id: int) -> bool:
        """One table less lists a block; True when it can be allocated again."""
        self._references[block_id] -= 1
        if self._references[block_id]:
            return False
        del self._references[block_id]
        if block_id in self._known:
            self._cached[block_id] = None
        else:
            self._free.append(block_id)
        return True

    def check_integrity(self) -> None:
        """Recounts every block. Raises AssertionError with the numbers when one is lost or held wrongly.

        Costs as much as there are blocks that were ever used.
        """
        listed = Counter(block for table in self._tables for block in table.blocks.values())
        states = {
            "free": set(self._free),
            "cached": set(self._cached),
            "in flight": self._in_flight,
            "held": set(listed),
        }
        assert len(states["free"]) == len(self._free), (
            f"{len(self._free) - len(states['free'])} blocks are in the free list twice"
        )
        names = list(states)
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                both = states[one] & states[other]
                assert not both, f"blocks {sorted(both)} are {one} and {other}"
        total = self.block_count - self._fresh + sum(map(len, states.values()))
        assert total == self.block_count, f"{self.block_count - total} of {self.block_count} blocks are lost"
        for block_id in self._references.keys() | listed.keys():
            count = self.references(block_id)
            assert count == listed[block_id], f"block {block_id} counts {count} tables, {listed[block_id]} list it"
        used = set().union(*states.values())
        assert not used or max(used) < self._fresh, f"block {max(used)} is in use and was never given out"
        indexed = {block_id: known.key for block_id, known in self._known.items()}
        assert {key: block_id for block_id, key in indexed.items()} == self._index, (
            f"the index has {len(self._index)} keys and {len(indexed)} blocks that do not agree"
        )
        assert len(indexed) == len(self._index), f"{len(indexed)} blocks are known by {len(self._index)} keys"
        unknown = states["cached"] - set(indexed)
        assert not unknown, f"blocks {sorted(unknown)} are cached without a key"
        early = set(indexed) - states["cached"] - states["held"]
        assert not early, f"blocks {sorted(early)} are known by a key, but neither held nor cached"
