"""What every store promises."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

from worldtree_runtime.errors import Unavailable

Fault: TypeAlias = Literal["timeout", "unreachable", "denied", "full", "other"]


class StoreUnavailable(Unavailable):
    """The store can't be reached or didn't answer in time. Whether a write arrived is not known. `fault`: what is wrong
    with it, for metrics.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0, fault: Fault = "other") -> None:
        super().__init__("STORE_UNAVAILABLE", message, retry_after_s=retry_after_s)
        self.fault: Fault = fault


class Store(Protocol):
    """Values live for `ttl_s` seconds at most; a store may drop one earlier for want of room.

    Every method may raise StoreUnavailable, and ValueError for a `ttl_s` that isn't a positive number. A store is for
    the tasks of one event loop.
    """

    async def get(self, key: str) -> bytes | None: ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The value of each key, in their order, in as few round trips as stay small."""
        ...

    async def set(self, key: str, value: bytes, ttl_s: float) -> None: ...

    async def set_many(self, items: Mapping[str, bytes], ttl_s: float) -> None:
        """Sets each value; when it raises, some may have been set."""

    async def delete(self, key: str) -> None:
        """Deletes what is there, if anything."""

    async def set_if_absent(self, key: str, value: bytes, ttl_s: float) -> bool:
        """Sets the value unless the key has one. Of several callers, exactly one is told True."""
        ...

    async def close(self) -> None:
        """Gives back connections and memory; the store is not used afterwards."""


def ttl_milliseconds(ttl_s: float) -> int:
    """Redis counts in milliseconds, so all stores do. A positive time never becomes zero, which would be for ever."""
    if not 0 < ttl_s <= 10 * 365 * 86_400:
        raise ValueError(f"ttl_s must be more than 0 and at most 10 years, got {ttl_s!r}")
    return max(1, round(ttl_s * 1000))
