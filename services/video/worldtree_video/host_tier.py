"""Blocks in this process's memory: the first tier below the pools."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from worldtree_video.stored_block import BlockFormat, StoredBlock


@dataclass(frozen=True, slots=True, eq=False)
class HeldBlock:
    """A block with the format that it needs to become bytes."""

    form: BlockFormat
    block: StoredBlock

    @property
    def nbytes(self) -> int:
        return self.block.nbytes


class Shares:
    """What each model has of a tier, by its digest."""

    def __init__(self) -> None:
        self._block_counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def add(self, digest: str, nbytes: int) -> None:
        self._block_counts[digest] += 1
        self._bytes[digest] += nbytes

    def remove(self, digest: str, nbytes: int) -> None:
        self._block_counts[digest] -= 1
        self._bytes[digest] -= nbytes

    def clear(self) -> None:
        self._block_counts.clear()
        self._bytes.clear()

    def block_count(self, digest: str) -> int:
        return self._block_counts[digest]

    def used_bytes(self, digest: str) -> int:
        return self._bytes[digest]

    def check_integrity(self, blocks: Iterable[tuple[str, int]]) -> None:
        """Recounts, from the digest and the bytes of each block that is there; for tests."""
        counted = Shares()
        for digest, nbytes in blocks:
            counted.add(digest, nbytes)
        # Counters are equal where one lacks what the other has none of.
        assert self._block_counts == counted._block_counts, f"{self._block_counts}, not {counted._block_counts}"
        assert self._bytes == counted._bytes, f"{self._bytes} bytes, not {counted._bytes}"


class HostTier:
    """Blocks in this process's memory, at most `max_bytes`; the least recently used leave. For one thread at a time."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[bytes, HeldBlock] = OrderedDict()  # least recently used first
        self._used_bytes = 0
        self.shares = Shares()
        self.hit_count = 0
        self.miss_count = 0
        self.evicted_count = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def put(self, key: bytes, held: HeldBlock) -> list[tuple[bytes, HeldBlock]]:
        """Takes a block; returns what had to leave for it, the block itself when it is larger than the tier."""
        old = self._held.pop(key, None)
        if old:
            self._book_out(old)
        self._held[key] = held
        self._used_bytes += held.nbytes
        self.shares.add(held.form.digest, held.nbytes)
        evicted = []
        while self._used_bytes > self.max_bytes:
            left = self._held.popitem(last=False)
            self._book_out(left[1])
            evicted.append(left)
        self.evicted_count += len(evicted)
        return evicted

    def get(self, key: bytes) -> HeldBlock | None:
        """A block, now the most recently used."""
        held = self._held.get(key)
        if held is None:
            self.miss_count += 1
            return None
        self.hit_count += 1
        self._held.move_to_end(key)
        return held

    def drop(self, digest: str) -> None:
        """Forgets the blocks of one model."""
        for key in [key for key, held in self._held.items() if held.form.digest == digest]:
            self._book_out(self._held.pop(key))

    def check_integrity(self) -> None:
        """Recounts; for tests."""
        counted = sum(held.nbytes for held in self._held.values())
        assert counted == self._used_bytes, f"counted {counted} bytes, booked {self._used_bytes}"
        assert self._used_bytes <= self.max_bytes, f"booked {self._used_bytes} bytes of {self.max_bytes}"
        self.shares.check_integrity((held.form.digest, held.nbytes) for held in self._held.values())

    def _book_out(self, held: HeldBlock) -> None:
        self._used_bytes -= held.nbytes
        self.shares.remove(held.form.digest, held.nbytes)
