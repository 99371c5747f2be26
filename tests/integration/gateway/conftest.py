"""Real gateways before echo backends, all on loopback."""

import asyncio
import importlib.util
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from inference_servers import Servers
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import RunningGateway, start_gateway

_ECHO = Path(__file__).with_name("echo_backend.py")


def _load_echo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("echo_backend", _ECHO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_echo = _load_echo()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("oip"))
    yield servers
    servers.no_session_is_left()
    servers.close()


class BackendProcess:
    """An echo backend that can be killed the hard way."""

    def __init__(self, replica: str, port: int = 0) -> None:
        command = [sys.executable, str(_ECHO), "--replica", replica, "--port", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        self.port = int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Client:
    """A stub, its channel, and the gateway behind it."""

    def __init__(self, gateway: RunningGateway, channel: grpc.aio.Channel) -> None:
        self.gateway = gateway
        self.channel = channel
        self.stub: Any = VideoGeneratorStub(channel)

    @staticmethod
    async def until(condition: Callable[[], object], timeout_s: float = 8.0) -> None:
        """Returns when it holds; fails when it never does."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, "it did not come true"
            await asyncio.sleep(0.01)

    async def landed(self) -> None:
        """Returns when every flight has ended: the callers have their answers a moment before they leave."""
        await self.until(lambda: not self.gateway.flights._flights and self.gateway.flights.held_bytes == 0)
        self.gateway.flights.check_integrity()

    @staticmethod
    def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
        """The details of a status, by the name of their type."""
        status = rpc_status.from_call(error)
        assert status is not None, f"{error.code().name} {error.details()} has no details"
        found: dict[str, Any] = {}
        for detail in status.details:
            name = detail.type_url.rpartition(".")[2]
            found[name] = getattr(error_details_pb2, name)()
            detail.Unpack(found[name])
        return found

    async def metric(self, name: str, **labels: str) -> float:
        """One sample as a scraper sees it; 0 where there is none."""
        url = f"http://{self.gateway.server.metrics_address}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in text.splitlines():
            sample, _, value = line.rpartition(" ")
            found, _, inside = sample.partition("{")
            if found == name and wanted <= set(inside.rstrip("}").split(",")):
                return float(value)
        return 0.0


@pytest.fixture
def echo_module() -> ModuleType:
    return _echo


@pytest.fixture
async def start_backend() -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """`await start_backend("a")`: an echo backend in this process."""
    async with AsyncExitStack() as stack:

        async def start(replica: str = "a", **options: Any) -> Any:
            return await stack.enter_async_context(_echo.EchoBackend(replica, **options))

        yield start


@pytest.fixture
def spawn_backend() -> Iterator[Callable[..., BackendProcess]]:
    """`spawn_backend("a")`: an echo backend in a process of its own."""
    processes: list[BackendProcess] = []

    def spawn(replica: str, port: int = 0) -> BackendProcess:
        processes.append(BackendProcess(replica, port))
        return processes[-1]

    yield spawn
    for process in processes:
        process.kill()


@asynccontextmanager
async def _gateway(*addresses: str, services: Any = None, wait: bool = True, **settings: Any) -> AsyncIterator[Client]:
    options = {
        "port": 0,
        "metrics_port": 0,
        "drain_timeout_s": 0.0,
        "probe_interval_s": 0.1,
        "rehome_timeout_s": 0.5,
        **settings,
    }
    given = {} if services is None else {"services": services}
    async with start_gateway(GatewaySettings(video=list(addresses), **options), **given) as gateway:
        if wait:
            await gateway.wait_ready()
        async with grpc.aio.insecure_channel(gateway.server.address) as channel:
            yield Client(gateway, channel)
        gateway.cache.check_integrity()


@pytest.fixture
def open_gateway() -> Callable[..., Any]:
    """`async with open_gateway(address, ..., **settings) as client`."""
    return _gateway
