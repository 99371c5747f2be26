"""Several processes of one gateway on one port: who starts them, watches them, and ends them.

The kernel gives each new connection to one of them (SO_REUSEPORT). This process answers no call: it holds the port, so
that nobody else takes it, starts a worker again that has ended, and shows the metrics of all as one page.
"""

import asyncio
import errno
import json
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from prometheus_client import CollectorRegistry
from worldtree_runtime.address import joined
from worldtree_runtime.metrics import MetricsServer

from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.metrics import WorkerMetrics
from worldtree_gateway.worker_pages import WorkerPages

_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.2, 10.0  # before a worker that has ended is started again
_STEADY_S = 60.0  # one that ran so long did not end by what it began with
_KILL_S = 5.0  # what a worker gets beyond its drain

_log = logging.getLogger(__name__)


async def serve_workers(settings: GatewaySettings) -> None:
    """Until cancelled. The ready line comes once all of them are ready, with the addresses that they share.

    Raises OSError where the port is taken, or a worker ends before it was ready for the first time.
    """
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    with _held(settings.host, settings.port) as port:
        own = settings.model_copy(update={"port": port, "metrics_port": 0})
        workers = [Worker(own, index, metrics) for index in range(settings.workers)]
        pages = WorkerPages(lambda: {each.index: each.metrics_address for each in workers if each.said})
        registry.register(pages)
        async with MetricsServer(registry, ready=lambda: pages.ready, before=pages.fetch) as metrics_server:
            await metrics_server.start(settings.host, settings.metrics_port)
            try:
                async with asyncio.TaskGroup() as group:
                    for each in workers:
                        group.create_task(each.keep(), name=f"worker {each.index}")
                    for each in workers:
                        await each.ready.wait()
                    shown = {"metrics": joined(settings.host, metrics_server.port)}
                    said = {**workers[0].said, **shown}
                    print("worldtree ready", *(f"{name}={value}" for name, value in said.items()), flush=True)
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None


class Worker:
    """One of them, and whoever follows it in its place. `said`: what its ready line says, while it is ready."""

    def __init__(self, settings: GatewaySettings, index: int, metrics: WorkerMetrics) -> None:
        self.index = index
        self.said: dict[str, str] = {}
        self.ready = asyncio.Event()  # it was, once
        self._metrics = metrics
        self._kill_s = settings.drain_timeout_s + _KILL_S
        own = settings.model_copy(update={"replica": f"{settings.replica[:36]}-{index}"})
        self._given = json.dumps({"index": index, "settings": own.model_dump(mode="json")}).encode() + b"\n"

    @property
    def metrics_address(self) -> str:
        return self.said["metrics"]

    async def keep(self) -> None:
        """Runs it, and again when it has ended, until cancelled. Raises ChildProcessError where it can't begin."""
        pause_s = _PAUSE_FIRST_S
        while True:
            began_s = time.monotonic()
            async with self._process() as process:
                await self._hear(process)
                code = await process.wait()
            if not self.ready.is_set():
                raise ChildProcessError(f"a worker ended with code {code} before it was ready; the log tells why")
            self._metrics.restarts.inc()
            _log.error("a worker has ended, and is started again", extra={"worker": self.index, "code": code})
            pause_s = _PAUSE_FIRST_S if time.monotonic() - began_s > _STEADY_S else min(2 * pause_s, _PAUSE_MAX_S)
            await asyncio.sleep(pause_s)

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        """Until it says no more."""
        assert process.stdout is not None
        while line := (await process.stdout.readline()).decode():
            if line.startswith("worldtree ready"):
                self.said = dict(field.split("=", 1) for field in line.split()[2:])
                self._metrics.ready.inc()
                self.ready.set()

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        # a session of its own: Ctrl-C is for this process, which tells the others, and twice would be at once
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "worldtree_gateway.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(self._given)  # it stays open: a worker that finds it closed has lost this process
            with suppress(ConnectionError):
                await process.stdin.drain()
            yield process
        finally:
            if self.said:
                self._metrics.ready.dec()
            self.said = {}
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._kill_s):
                await process.wait()
        except TimeoutError:
            _log.error("a worker did not end in time", extra={"worker": self.index})
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextmanager
def _held(host: str, port: int) -> Iterator[int]:
    """The port, free when this began, and nobody's but ours until it ends. Raises OSError."""
    try:
        # without SO_REUSEPORT first, as with it we would share the port of another gateway
        with _bound(host, port) as probe:
            port = int(probe.getsockname()[1])
        held = _bound(host, port, socket.SO_REUSEPORT)  # it does not listen, so it gets no connection
    except OSError as error:
        reason = f"cannot listen on {joined(host, port)} for gRPC: is the port taken?"
        raise OSError(errno.EADDRINUSE, reason) from error
    with held:
        yield port


def _bound(host: str, port: int, *more: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        for option in (socket.SO_REUSEADDR, *more):
            found.setsockopt(socket.SOL_SOCKET, option, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found
