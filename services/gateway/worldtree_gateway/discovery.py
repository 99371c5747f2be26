"""Where the replicas of a service are: said once, told by DNS, or by a file; asked again while the gateway runs."""

import asyncio
import logging
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from worldtree_runtime.address import joined

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/]+):(?P<port>[0-9]{1,5})")
_DNS, _FILE = "dns:", "file:"

_log = logging.getLogger(__name__)


def check_address(address: str) -> str:
    """HOST:PORT as it is. Raises ValueError."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise ValueError(f'each backend is a HOST:PORT with a port of 1 to 65535, got "{address}"')
    return address


class Source(Protocol):
    """Some of a service's replicas."""

    async def addresses(self) -> Sequence[str]:
        """HOST:PORT of each that there is now. Raises OSError where that can't be told."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """One replica, always there."""

    address: str

    async def addresses(self) -> Sequence[str]:
        return [self.address]


@dataclass(frozen=True, slots=True)
class ByName:
    """A replica at each address of a name, as a headless Service of Kubernetes has them."""

    host: str
    port: int

    async def addresses(self) -> Sequence[str]:
        found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        hosts = {str(address[0]) for *_, address in found}
        return [joined(host, self.port) for host in sorted(hosts)]


@dataclass(frozen=True, slots=True)
class Listed:
    """A HOST:PORT a line; what follows a # is a remark. A file with a line that is none, or with none at all, counts as
    unread: it may be half written. Write it anew beside it, and rename it.
    """

    path: Path

    async def addresses(self) -> Sequence[str]:
        lines = [line.partition("#")[0].strip() for line in self.path.read_text().splitlines()]
        try:
            found = [check_address(line) for line in lines if line]
        except ValueError as error:
            raise OSError(f"{self.path}: {error}") from error
        if not found:
            raise OSError(f"{self.path} lists no HOST:PORT")
        return found


def to_source(text: str) -> Source:
    """HOST:PORT, dns:HOST:PORT or file:PATH. Raises ValueError."""
    if text.startswith(_FILE):
        path = text.removeprefix(_FILE)
        if not path:
            raise ValueError(f'a list of backends is a file:PATH, got "{text}"')
        return Listed(Path(path))
    address = check_address(text.removeprefix(_DNS))
    if not text.startswith(_DNS):
        return Fixed(address)
    host, _, port = address.rpartition(":")
    return ByName(host.strip("[]"), int(port))


class Discovery:
    """All sources of one service. One that can't be asked is as it was when it last could."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises ValueError."""
        self._sources = [to_source(text) for text in texts]
        self._texts = list(texts)
        self._last: list[Sequence[str]] = [()] * len(texts)
        self._failed: set[int] = set()

    @property
    def fixed(self) -> list[str]:
        """What is known without asking anybody."""
        return [source.address for source in self._sources if isinstance(source, Fixed)]

    @property
    def changes(self) -> bool:
        """Whether there is anything to be asked again."""
        return len(self.fixed) < len(self._sources)

    async def addresses(self) -> list[str]:
        """Each once, in the order of the sources."""
        self._last = await asyncio.gather(*(self._ask(index) for index in range(len(self._sources))))
        return list(dict.fromkeys(address for own in self._last for address in own))

    async def _ask(self, index: int) -> Sequence[str]:
        try:
            found = await self._sources[index].addresses()
        except (OSError, UnicodeError) as error:  # a name may be none that DNS could have
            if index not in self._failed:
                _log.warning(
                    "backends can't be looked up; those of the last time are kept",
                    extra={"source": self._texts[index], "reason": str(error), "backends": list(self._last[index])},
                )
            self._failed.add(index)
            return self._last[index]
        self._failed.discard(index)
        return found
