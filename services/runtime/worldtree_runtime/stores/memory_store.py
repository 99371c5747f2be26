"""The store of one process: the least recently used values leave when the room is full."""

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from worldtree_runtime.stores.store import ttl_milliseconds

# what an entry costs beyond its key and value (dict slot, entry, heap slot), measured roughly: it keeps a million
# empty values from counting as nothing
ENTRY_OVERHEAD_BYTES = 300


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes
    expires_s: float
    serial: int


class MemoryStore:
    """Holds at most `max_bytes` of keys, values and overhead. A value larger than that isn't kept at all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_bytes: int = 256 * 1024 * 1024) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        # (expires_s, serial, key) of every entry, and of replaced ones until they come up: the serial tells
        self._expiries: list[tuple[float, int, str]] = []
        self._serial = 0
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def __len__(self) -> int:
        self._expire()
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        self._expire()
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.value

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [await self.get(key) for key in keys]

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        expires_s = self._clock() + ttl_milliseconds(ttl_s) / 1000
        self._expire()
        self._remove(key)
        if _cost_bytes(key, value) > self._max_bytes:
            return
        self._serial += 1
        self._entries[key] = _Entry(bytes(value), expires_s, self._serial)
        self._used_bytes += _cost_bytes(key, value)
        heapq.heappush(self._expiries, (expires_s, self._serial, key))
        while self._used_bytes > self._max_bytes:
            self._remove(next(iter(self._entries)))
        self._compact()

    async def set_many(self, items: Mapping[str, bytes], ttl_s: float) -> None:
        ttl_milliseconds(ttl_s)
        for key, value in items.items():
            await self.set(key, value, ttl_s)

    async def delete(self, key: str) -> None:
        self._expire()
        self._remove(key)

    async def set_if_absent(self, key: str, value: bytes, ttl_s: float) -> bool:
        ttl_milliseconds(ttl_s)
        self._expire()
        if key in self._entries:
            return False
        await self.set(key, value, ttl_s)  # runs to its end without giving way to another task
        return True

    async def close(self) -> None:
        self._entries.clear()
        self._expiries.clear()
        self._used_bytes = 0

    def check_integrity(self) -> None:
        """Recounts; for tests."""
        counted = sum(_cost_bytes(key, entry.value) for key, entry in self._entries.items())
        assert counted == self._used_bytes, f"counted {counted} bytes, booked {self._used_bytes}"
        assert self._used_bytes <= self._max_bytes, f"booked {self._used_bytes} bytes of {self._max_bytes}"
        booked = {(entry.expires_s, entry.serial, key) for key, entry in self._entries.items()}
        assert booked <= set(self._expiries), f"{len(booked - set(self._expiries))} entries would never expire"

    def _expire(self) -> None:
        now_s = self._clock()
        while self._expiries and self._expiries[0][0] <= now_s:
            _, serial, key = heapq.heappop(self._expiries)
            entry = self._entries.get(key)
            if entry is not None and entry.serial == serial:
                self._remove(key)

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._used_bytes -= _cost_bytes(key, entry.value)

    def _compact(self) -> None:
        """A key that is set again and again leaves a heap slot each time; long lifetimes would pile them up."""
        if len(self._expiries) > 2 * len(self._entries) + 64:
            self._expiries = [(entry.expires_s, entry.serial, key) for key, entry in self._entries.items()]
            heapq.heapify(self._expiries)


def _cost_bytes(key: str, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES
