"""Blocks in this process's memory: the first tier below the pools."""

from collections import OrderedDict
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


class HostTier:
    """Blocks in this process's memory, at most `max_bytes`; the least recently used leave. For one thread at a time."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[bytes, HeldBlock] = OrderedDict()  # least recently used first
        self._used_bytes = 0
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
        self._used_bytes += held.nbytes - (old.nbytes if old else 0)
        self._held[key] = held
        evicted = []
        while self._used_bytes > self.max_bytes:
            left = self._held.popitem(last=False)
            self._used_bytes -= left[1].nbytes
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

    def check_integrity(self) -> None:
        """Recounts; for tests."""
        counted = sum(held.nbytes for held in self._held.values())
        assert counted == self._used_bytes, f"counted {counted} bytes, booked {self._used_bytes}"
        assert self._used_bytes <= self.max_bytes, f"booked {self._used_bytes} bytes of {self.max_bytes}"
