"""All services as children of this process: started in order, ended in order, never left behind."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from worldtree.cli.child import Child

READY_TIMEOUT_S = 180.0
DRAIN_LIMIT_S = 25.0  # a little more than the services' own drain_timeout_s
WATCH_S = 0.2


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What `up` was asked for. None: as worldtree.yaml, the WORLDTREE_* variables or the defaults say."""

    port: int | None = None
    metrics_port: int | None = None
    host: str | None = None
    models: str | None = None
    redis_url: str | None = None
    config: Path | None = None
    log_level: str | None = None
    journal_folder: Path | None = None
    insecure: bool = False

    def video_arguments(self) -> list[str]:
        # Whoever moves the gateway wants a second stack beside the first: its services take free ports.
        ports = [] if self.port is None else ["--port", "0", "--metrics-port", "0"]
        journal = _flag("--journal-folder", self.journal_folder)
        return [*ports, *self._shared(), *_flag("--models", self.models), *journal]

    def multitask_arguments(self) -> list[str]:
        ports = [] if self.port is None else ["--port", "0", "--metrics-port", "0"]
        # Where sessions outlive the process, merges that have a name do.
        kept = self.journal_folder / "merges" if self.journal_folder else None
        return [*ports, *self._shared(), *_flag("--models", self.models), *_flag("--merges-folder", kept)]

    def reward_arguments(self) -> list[str]:
        ports = [] if self.port is None else ["--port", "0", "--metrics-port", "0"]
        return [*ports, *self._shared(), *_flag("--models", self.models)]

    def navigator_arguments(self, *, video: str, reward: str) -> list[str]:
        ports = [] if self.port is None else ["--port", "0", "--metrics-port", "0"]
        asked = ["--video", video, "--reward", reward]
        return [*ports, *self._shared(), *_flag("--models", self.models), *asked]

    def gateway_arguments(self, *, video: str, multitask: str, reward: str, navigator: str) -> list[str]:
        metrics_port = 0 if self.port == 0 and self.metrics_port is None else self.metrics_port
        return [
            *_flag("--port", self.port),
            *_flag("--metrics-port", metrics_port),
            *(["--openpi-port", "0"] if self.port == 0 else []),
            *_flag("--host", self.host),
            *(["--insecure"] if self.insecure else []),
            "--video",
            video,
            "--multitask",
            multitask,
            "--reward",
            reward,
            "--navigator",
            navigator,
            *self._shared(),
        ]

    def _shared(self) -> list[str]:
        return [
            *_flag("--redis-url", self.redis_url),
            *_flag("--config", self.config),
            *_flag("--log-level", self.log_level),
        ]


class Stack:
    """The running services. Entering starts them and waits until they serve; leaving drains and ends them."""

    def __init__(
        self,
        options: StackOptions,
        *,
        on_log: Callable[[str], None],
        on_stage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._options = options
        self._on_log = on_log
        self._on_stage = on_stage
        self._children: list[Child] = []

    @property
    def grpc_address(self) -> str:
        return self._children[-1].grpc_address

    @property
    def metrics_address(self) -> str:
        return self._children[-1].metrics_address

    @property
    def openpi_address(self) -> str | None:
        return self._children[-1].openpi_address

    def __enter__(self) -> "Stack":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def watch(self) -> None:
        """Returns never; raises ServiceFailed when a service ends."""
        while True:
            for child in self._children:
                child.check()
            time.sleep(WATCH_S)

    def close(self) -> None:
        """Ends the services, the gateway first so that nothing new comes in. A second interrupt ends them at once."""
        limit = time.monotonic() + DRAIN_LIMIT_S
        try:
            for child in reversed(self._children):
                child.terminate()
                child.wait(max(limit - time.monotonic(), 0.1))
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            for child in self._children:
                child.kill()

    def _start(self) -> None:
        self._on_stage("starting the video, the multi-task and the reward service")
        video = self._spawn("video", self._options.video_arguments())
        multitask = self._spawn("multitask", self._options.multitask_arguments())
        reward = self._spawn("reward", self._options.reward_arguments())
        for child in (video, multitask, reward):  # they load their models side by side
            child.wait_ready(READY_TIMEOUT_S)
        self._on_stage("starting the navigator and the gateway")
        asked = {"video": video.grpc_address, "reward": reward.grpc_address}
        navigator = self._spawn("navigator", self._options.navigator_arguments(**asked))
        navigator.wait_ready(READY_TIMEOUT_S)
        behind = {**asked, "multitask": multitask.grpc_address, "navigator": navigator.grpc_address}
        self._spawn("gateway", self._options.gateway_arguments(**behind)).wait_ready(READY_TIMEOUT_S)

    def _spawn(self, service: str, arguments: list[str]) -> Child:
        child = Child(service, arguments, on_log=self._on_log)
        self._children.append(child)
        return child


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM and SIGHUP leave every `with` on their way out, as Ctrl-C does."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flag(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]
