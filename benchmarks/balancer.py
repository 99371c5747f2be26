"""A TCP load balancer: each connection to the next server that takes it, bytes passed both ways."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

_CONNECT_S = 1.0
_READ_BYTES = 1 << 16


class Balancer:
    """Listens on a free port of loopback. `servers` is asked anew for each connection: HOST:PORT of each."""

    def __init__(self, servers: Callable[[], Sequence[str]]) -> None:
        self.address = ""
        self._servers = servers
        self._turn = 0
        self._listening: asyncio.Server | None = None

    async def __aenter__(self) -> "Balancer":
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._listening.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listening
        self._listening.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await self._connected()
        if server is None:
            writer.close()
            return
        server_reader, server_writer = server
        with suppress(asyncio.CancelledError):  # by the end of the loop, which would call that a mistake of ours
            await asyncio.gather(_pass_on(reader, server_writer), _pass_on(server_reader, writer))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        servers = self._servers()
        self._turn += 1
        for index in range(len(servers)):
            host, _, port = servers[(self._turn + index) % len(servers)].rpartition(":")
            with suppress(OSError, TimeoutError):
                return await asyncio.wait_for(asyncio.open_connection(host, int(port)), _CONNECT_S)
        return None


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side ends; then the other does."""
    with suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
