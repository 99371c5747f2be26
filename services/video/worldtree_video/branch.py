"""One branch of a world's history: the records that made it and the blocks that hold it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from worldtree_video.domain import Action, Origin, Record, Summary, chain_key
from worldtree_video.kv_cache import BlockTable


@dataclass(slots=True)
class Branch:
    """A history that can grow, go back and fork. `root`: the key its chain begins with (`domain.root_key`)."""

    origin: Origin
    root: bytes
    seed: int
    nfe: int
    table: BlockTable
    records: list[Record] = field(default_factory=list)
    shown: bytes = b""  # pixels of the newest chunk, while its block is not in the pool
    salt: bytes = b""  # sets apart, in the tiers, the blocks of a branch that is not trusted

    def __post_init__(self) -> None:
        self.table.records = self.records

    @property
    def trusted(self) -> bool:
        """Whether others may share what is made here, by its key (see `BlockTable.trusted`)."""
        return self.table.trusted

    @property
    def start_count(self) -> int:
        return len(self.origin.chunks)

    @property
    def chunk_index(self) -> int:
        """Chunks generated since the start; negative while the start's own chunks are being committed."""
        return len(self.records) - self.start_count

    @property
    def key(self) -> bytes:
        """The state hash: equal keys mean equal worlds."""
        return self.records[-1].key if self.records else self.root

    def given_record(self) -> Record:
        """The record of the next chunk of the start."""
        position = len(self.records)
        action = self.origin.actions[position - 1] if position else None
        key = chain_key(self.key, action, seed=0, nfe=0, given=self.origin.chunks[position])
        return Record(self.chunk_index, action, seed=0, nfe=0, key=key)

    def next_record(self, action: Action, *, seed: int | None = None, nfe: int | None = None) -> Record:
        """The record of the chunk that `action` makes next, under the branch's seed and nfe unless told otherwise."""
        seed = self.seed if seed is None else seed
        nfe = self.nfe if nfe is None else nfe
        return Record(self.chunk_index, action, seed, nfe, chain_key(self.key, action, seed=seed, nfe=nfe))

    def append(self, record: Record, block_id: int, summary: Summary | None = None) -> None:
        """Takes over a committed chunk. Raises PolicyBroken, and changes nothing."""
        assert record.chunk_index == self.chunk_index, f"chunk {record.chunk_index} after {self.chunk_index - 1}"
        self.table.append(block_id, record.key, summary)
        self.records.append(record)

    def share_known(self, record: Record) -> bool:
        """Takes a chunk that is in the pool already; False, and no change, where it is not. Raises PolicyBroken."""
        assert record.chunk_index == self.chunk_index, f"chunk {record.chunk_index} after {self.chunk_index - 1}"
        if not self.table.share_known(record.key):
            return False
        self.records.append(record)
        return True

    def keys(self, positions: Iterable[int]) -> dict[int, bytes]:
        """The keys under which the blocks of some positions are known, for `BlockTable.refill` and `publish`."""
        return {position: self.records[position].key for position in positions}

    def fork(self, *, seed: int | None = None) -> "Branch":
        """A branch that shares every block: integer work only."""
        return Branch(
            self.origin,
            self.root,
            self.seed if seed is None else seed,
            self.nfe,
            self.table.fork(),
            list(self.records),
            self.shown,
            self.salt,
        )

    def rewind(self, chunk_count: int) -> None:
        """Goes back. Raises ValueError past the start."""
        if not 0 <= chunk_count <= self.chunk_index:
            raise ValueError(f"chunk_count must be 0 to {self.chunk_index}, got {chunk_count}")
        length = len(self.records) - chunk_count
        self.table.truncate(length)
        del self.records[length:]
        self.shown = b""

    def blank(self) -> "Branch":
        """A branch of the same origin with no chunk yet: what a replay fills."""
        table = BlockTable(self.table.pool, self.table.policy, reserve_chunks=self.table.reserve_chunks)
        # Its root may name another machine's backend (a restored snapshot's): what is made here is not quite that.
        table.trusted = self.table.trusted
        return Branch(self.origin, self.root, self.seed, self.nfe, table, salt=self.salt)

    def close(self) -> int:
        """Gives back its blocks; returns how many became free."""
        return self.table.close()
