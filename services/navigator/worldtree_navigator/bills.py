"""What a call has had made for it, as its caller is charged: frames, each counted once for each of its evaluations."""

from contextvars import ContextVar
from typing import Any

from worldtree_runtime.messages import COST_KEY


class _Bill:
    def __init__(self, context: Any) -> None:
        self.context = context
        self.total = self.told = 0


_bill: ContextVar[_Bill | None] = ContextVar("worldtree_navigator_bill", default=None)


def open_bill(context: Any) -> None:
    """From here on what this task, and each that it starts, has made is told in the trailers of its call."""
    _bill.set(_Bill(context))


def charge(frames: int) -> None:
    """So many more."""
    bill = _bill.get()
    if bill is not None and frames:
        bill.total += frames
        bill.context.set_trailing_metadata(((COST_KEY, str(bill.total)),))


def charged() -> int:
    """All of the call so far."""
    bill = _bill.get()
    return 0 if bill is None else bill.total


def newly_charged() -> int:
    """What came since this was last asked."""
    bill = _bill.get()
    if bill is None:
        return 0
    found, bill.told = bill.total - bill.told, bill.total
    return found
