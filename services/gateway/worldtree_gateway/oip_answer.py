"""One answer to a request of the inference protocol, and what a service's call tells of where its time went."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from worldtree_gateway.cached_calls import CACHE_KEY
from worldtree_gateway.oip_statistics import Spent
from worldtree_gateway.oip_tensors import Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    """`final`: the last to its request. `session`: of its sequence, for callers that speak our own API too. `version`:
    of the model that answered; None: the one that was found for the request, empty: nobody knows.
    """

    outputs: Mapping[str, Tensor]
    spent: Spent = field(default_factory=Spent)
    final: bool = True
    session: str = ""
    version: str | None = None


Answers: TypeAlias = AsyncGenerator[Answer]


def seconds(duration: Any) -> float:
    return float(duration.ToNanoseconds()) / 1e9


async def is_cached(call: Any) -> bool:
    """Whether the gateway's cache has answered a call that has ended well."""
    return any(key == CACHE_KEY and value == "hit" for key, value in await call.trailing_metadata())
