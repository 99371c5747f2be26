"""Where sessions live that have left their home, and who takes one on whose replica is gone."""

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from hashlib import blake2b


class Placements:
    """Sessions by the replica that they moved to, the latest used `limit` of them.

    A forgotten one costs a hop: the replica that is asked instead knows better from the journal.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._replicas: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def get(self, session: str) -> str | None:
        replica = self._replicas.get(session)
        if replica is not None:
            self._replicas.move_to_end(session)
        return replica

    def put(self, session: str, replica: str) -> None:
        self._replicas[session] = replica
        self._replicas.move_to_end(session)
        if len(self._replicas) > self._limit:
            self._replicas.popitem(last=False)

    def forget(self, session: str) -> None:
        self._replicas.pop(session, None)


def chosen(session: str, replicas: Iterable[str]) -> str:
    """The replica, of one or more, that a session falls to.

    So all gateways that see the same replicas agree without a word, a dead replica's sessions spread over the others,
    and a replica that joins or leaves moves no session but those that fall to it.
    """
    return max(replicas, key=partial(_rank, session))


def ranked(name: str, replicas: Iterable[str]) -> list[str]:
    """The replicas in the order in which what is named falls to them."""
    return sorted(replicas, key=partial(_rank, name), reverse=True)


def _rank(name: str, replica: str) -> tuple[bytes, str]:
    """The highest hash of both names wins (rendezvous hashing)."""
    return blake2b(f"{name}\0{replica}".encode(), digest_size=8).digest(), replica
