"""Who gets a call that any replica may answer."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

from worldtree_gateway.placements import ranked
from worldtree_gateway.wire import fields

_EDGE_BYTES = 4096
# So many calls are no load to speak of, as below SGLang's `balance_abs_threshold`: rounded up, a fair share of next to
# nothing is one call, and what begins alike would take turns wherever little is asked for.
_FREE_CALL_COUNT = 4
_FREE_HELD_COUNT = 16  # sessions that no call is made on: they need blocks, and share those of their start


class Candidate(Protocol):
    """What is read off a replica."""

    @property
    def name(self) -> str: ...
    @property
    def pressure(self) -> float: ...
    @property
    def held(self) -> int: ...


C = TypeVar("C", bound=Candidate)


def start_of(request: bytes, model_field: int, origin_field: int) -> bytes | None:
    """What tells apart the worlds that a request may begin in: its model's name, and where the world begins. Their
    blocks are the same under any seed until the first chunk is made. None: it says neither.

    A version is left out, so that a session finds the blocks of whoever named the same by its digest.
    """
    model = origin = b""
    for number, content in fields(request, (model_field, origin_field)):
        if number == model_field:
            model = next((name for _, name in fields(content, (1,))), b"")
        else:
            origin = content
    if not origin:
        return None
    # Of frames their edges do: two starts that look alike there share a replica, which is all that comes of it.
    edges = origin if len(origin) <= 2 * _EDGE_BYTES else origin[:_EDGE_BYTES] + origin[-_EDGE_BYTES:]
    return blake2b(b"%s\0%d\0%s" % (model, len(origin), edges), digest_size=16).digest()


def by_start(start: bytes, candidates: Sequence[C], factor: float) -> tuple[C, bool]:
    """Of one or more, the one that a start falls to, and whether it is the first that it falls to: the next
    is taken instead of one that has `factor` times the mean to do and more than a few calls, or so much of the sessions
    that are held (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2016). All gateways see the
    same order.
    """
    limit = _limit([each.pressure for each in candidates], factor, _FREE_CALL_COUNT)
    held_limit = _limit([each.held for each in candidates], factor, _FREE_HELD_COUNT)
    by_name = {each.name: each for each in candidates}
    order = [by_name[name] for name in ranked(start.hex(), by_name)]
    fit = [each for each in order if each.pressure < limit and each.held < held_limit]
    # With a factor of 1 or more one of them is below each mean, though perhaps not the same one.
    chosen = fit[0] if fit else min(order, key=lambda each: max(each.pressure / limit, each.held / held_limit))
    return chosen, chosen is order[0]


def least_loaded(candidates: Sequence[C]) -> C:
    """Of one or more, the first with the least to do."""
    return min(candidates, key=lambda each: each.pressure)


def emptiest(candidates: Sequence[C]) -> C:
    """The same for a session: of those with the least to do, the one that holds the fewest."""
    return min(candidates, key=lambda each: (each.pressure, each.held))


def _limit(loads: Sequence[float], factor: float, free: int) -> int:
    return max(math.ceil(factor * (sum(loads) + 1) / len(loads)), free)
