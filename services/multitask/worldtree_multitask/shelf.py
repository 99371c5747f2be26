"""Things of known size under a budget of bytes, the longest unused given up first. It never looks into them."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """For one thread. What was taken from it stays whole for as long as the taker holds it: giving up only forgets.

    The thing put last stays, even one that is larger than the budget: whoever needs it now must have it.
    """

    def __init__(self, budget_bytes: int, *, given_up: Callable[[str], None] = lambda _: None) -> None:
        self.budget_bytes = budget_bytes
        self.byte_count = 0
        self._given_up = given_up
        self._things: OrderedDict[str, tuple[T, int]] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, key: str) -> bool:
        return key in self._things

    def get(self, key: str) -> T | None:
        """The thing, which counts as used now."""
        found = self._things.get(key)
        if found is None:
            return None
        self._things.move_to_end(key)
        return found[0]

    def put(self, key: str, thing: T, byte_count: int) -> None:
        """In place of what stood under the key. Others leave until it fits."""
        self.discard(key)
        self._things[key] = (thing, byte_count)
        self.byte_count += byte_count
        while self.byte_count > self.budget_bytes and len(self._things) > 1:
            oldest = next(iter(self._things))
            self.discard(oldest)
            self._given_up(oldest)

    def discard(self, key: str) -> None:
        """Forgets it, if it is there."""
        found = self._things.pop(key, None)
        if found is not None:
            self.byte_count -= found[1]

    def check_integrity(self) -> None:
        """Recounts. Raises AssertionError with both numbers."""
        counted = sum(byte_count for _, byte_count in self._things.values())
        assert counted == self.byte_count, f"{counted} bytes lie here, {self.byte_count} are counted"
        assert self.byte_count <= self.budget_bytes or len(self._things) <= 1, (
            f"{self.byte_count} bytes in {len(self._things)} things, budget {self.budget_bytes}"
        )
