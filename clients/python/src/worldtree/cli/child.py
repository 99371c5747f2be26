"""One service as a child process: started, watched, ended."""

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from worldtree.errors import FailedPrecondition, Unavailable

LAUNCHER = Path(__file__).with_name("_launch.py")
READY = re.compile(
    r"worldtree ready service=(?P<service>\S+) grpc=(?P<grpc>\S+) metrics=(?P<metrics>\S+)( openpi=(?P<openpi>\S+))?"
)
TAIL_LINES = 20
POLL_S = 0.05


class ServiceFailed(Unavailable):
    """A service did not start, or ended by itself. `tail` holds the last lines of its log."""

    def __init__(self, message: str, *, reason: str, service: str, tail: Sequence[str], **metadata: str) -> None:
        super().__init__(message, reason=reason, metadata={"service": service, **metadata})
        self.tail = tuple(tail)


class Child:
    """`python -m worldtree_SERVICE`. Its stdout is read for the ready line, its stderr for the log.

    Make it on a thread that lives as long as the process: the kernel ends the child with the thread that started it.
    """

    def __init__(self, service: str, arguments: Sequence[str], *, on_log: Callable[[str], None]) -> None:
        self.service = service
        self.grpc_address = ""
        self.metrics_address = ""
        self.openpi_address: str | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._on_log = on_log
        self._ready = threading.Event()
        module = module_of(service)
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
            [sys.executable, "-P", LAUNCHER, str(os.getpid()), sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # Ctrl-C in the terminal must reach only us, so that the children end in order.
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=read, name=f"{service}-{name}", daemon=True)
            for name, read in (("stdout", self._read_stdout), ("stderr", self._read_stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self, timeout_s: float) -> None:
        """Returns once the service has printed its ready line. Raises ServiceFailed when it dies or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(POLL_S):
            self.check()
            if time.monotonic() >= deadline:
                raise ServiceFailed(
                    f"{self.service} was not ready within {timeout_s:.0f} s",
                    reason="SERVICE_NOT_READY",
                    service=self.service,
                    tail=self.tail,
                    timeout_s=f"{timeout_s:.0f}",
                )

    def check(self) -> None:
        """Raises ServiceFailed, with the last lines of its log, when the service has ended."""
        code = self._process.poll()
        if code is None:
            return
        for reader in self._readers:
            reader.join(1.0)  # what it said last is still in the pipe
        raise ServiceFailed(
            f"{self.service} ended with code {code}",
            reason="SERVICE_ENDED",
            service=self.service,
            tail=self.tail,
            code=str(code),
        )

    def terminate(self) -> None:
        """Asks it to drain and end."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within the time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            match = READY.fullmatch(line.strip())
            if match:
                self.grpc_address, self.metrics_address = match["grpc"], match["metrics"]
                self.openpi_address = match["openpi"]
                self._ready.set()
            else:
                self._log(line)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log(line)

    def _log(self, line: str) -> None:
        line = line.rstrip("\n")
        self.tail.append(line)
        self._on_log(line)


def module_of(service: str) -> str:
    """The module that serves `service`. Looks for it without importing it; raises FailedPrecondition when absent."""
    module = f"worldtree_{service}"
    if find_spec(module) is None:
        raise FailedPrecondition(
            f"{module} is not installed: this is the SDK without the server",
            reason="SERVER_MISSING",
            metadata={"module": module},
            remedy="install the server with: pip install 'worldtree-server[cpu]' (or [gpu])",
        )
    return module
