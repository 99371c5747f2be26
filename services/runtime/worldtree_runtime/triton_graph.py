"""A graph that a Triton server runs in this process's place: compared with the package's own, and watched."""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from worldtree_runtime.errors import Unavailable
from worldtree_runtime.inference import TensorSpec, compare_tensors
from worldtree_runtime.model_package import Backend, PackageError
from worldtree_runtime.triton_memory import TritonMemory

Feeds = Mapping[str, NDArray[Any]]

_CONTROL_S = 2.0  # for what a server answers at once
_DEADLINE = "StatusCode.DEADLINE_EXCEEDED"  # as tritonclient writes it
_TOLERANCE = 1e-4  # of the largest value
_DTYPES = {
    "FP16": "float16",
    "FP32": "float",
    "FP64": "double",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
}
# A server that was away is looked for again soon, not after the two minutes that gRPC would wait in the end.
_CHANNEL = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)

log = logging.getLogger(__name__)


class BackendAway(Unavailable):
    """The server that runs a graph does not, for now."""

    def __init__(self, backend: Backend, why: str) -> None:
        super().__init__("BACKEND_AWAY", f"{backend.url}: {why}", retry_after_s=1.0, backend=backend.url)


class _Deadline:
    """Of all that one piece of work asks of a server, one thing after the other."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._ends_s = time.monotonic() + within_s

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._ends_s

    def left_s(self, most_s: float = math.inf) -> float:
        """What the next thing may take. Raises InferenceServerException where nothing is left."""
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise InferenceServerException(f"no answer within {self._within_s:g} s")
        return min(left_s, most_s)


@dataclass(frozen=True)
class Trial:
    """A run that the package's own graph has made: what it was given, and what it answered."""

    feeds: Feeds
    answers: Feeds


class TritonGraph:
    """In the place of an ONNX Runtime session. `run` is for one thread, everything else for any.

    What a server runs is taken for the package's graph when its model has the inputs and outputs that the package says,
    and makes of a trial what the package's own graph made of it. That is looked at first, and each time that the
    server was away. In between, `run` fails with BackendAway.
    """

    def __init__(
        self,
        file: Path,
        backend: Backend,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        trial: Trial,
        *,
        max_rows: int,
        timeout_s: float,
        look_s: float,
    ) -> None:
        """Raises PackageError where another graph is run there; that nobody answers is waited out.

        `file`: what names the backend. `max_rows`: of a run. `look_s`: between two looks whether the server is there.
        """
        self._file = file
        self._backend = backend
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._trial = trial
        self._max_rows = max_rows
        self._timeout_s = timeout_s
        self._look_s = look_s
        self._client = triton.InferenceServerClient(backend.address, channel_args=_CHANNEL)
        self._memory: TritonMemory | None = None
        self._away: str | None = "not looked for yet"
        self._join_count = 0
        self._lock = threading.Lock()  # over what follows one on another at the server, and over whether it is away
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        try:
            self._join(_Deadline(timeout_s))
        except BackendAway:
            pass  # is logged, and shows in `ready`
        except PackageError:
            self.close()
            raise
        self._watcher = threading.Thread(target=self._watch, name=f"watch {backend.url}", daemon=True)
        self._watcher.start()

    @property
    def ready(self) -> bool:
        return self._away is None

    @property
    def shares_memory(self) -> bool:
        """Whether tensors go by memory that the server has mapped, not by messages."""
        return self._memory is not None

    def run(self, names: Sequence[str], feeds: Feeds) -> list[NDArray[Any]]:
        """As of an ONNX Runtime session, within the time for a run. Raises BackendAway."""
        self._check_there()  # before the lock too: who joins a server again has it for as long as that takes
        with self._lock:
            self._check_there()
            deadline = _Deadline(self._timeout_s)
            try:
                return self._infer(names, feeds, deadline)
            except InferenceServerException as error:
                log.warning("a run failed at its backend", extra={"backend": self._backend.url, "why": _told(error)})
                if deadline.is_over or error.status() == _DEADLINE:
                    # Whoever is slow is not asked once more; and it may yet write into the memory of this run.
                    self._lose(_told(error))
                    raise BackendAway(self._backend, _told(error)) from error
            # Once more: a server that was started anew has forgotten the memory that it was told of.
            try:
                self._join(deadline)
                return self._infer(names, feeds, deadline)
            except InferenceServerException as error:
                self._lose(_told(error))
                raise BackendAway(self._backend, _told(error)) from error
            except PackageError as error:
                raise BackendAway(self._backend, str(error)) from error

    def close(self) -> None:
        """Ends the watch; nothing may run any more. Safe to call again."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        self._drop_memory(_Deadline(_CONTROL_S))
        self._client.close()

    def _watch(self) -> None:
        while not self._closing.wait(self._look_s):
            with suppress(BackendAway, PackageError):
                if self._away is not None:
                    with self._lock:
                        self._join(_Deadline(self._timeout_s))
                    continue
                seen = self._join_count  # outside the lock, which a run needs: so it may be old news
                why = self._absence(_Deadline(_CONTROL_S))
                if why is not None:
                    with self._lock:
                        if self._join_count == seen:
                            self._lose(why)

    def _check_there(self) -> None:
        if (why := self._away) is not None:
            raise BackendAway(self._backend, why)

    def _lose(self, why: str) -> None:
        if self._away != why:
            log.warning("a backend is away", extra={"backend": self._backend.url, "why": why})
        self._away = why

    def _absence(self, deadline: _Deadline) -> str | None:
        """What keeps the model from being asked. None: nothing."""
        model, version = self._backend.model, self._backend.version
        try:
            ready = self._client.is_model_ready(model, version, client_timeout=deadline.left_s(_CONTROL_S))
        except InferenceServerException as error:
            return _told(error)
        return None if ready else f"no model {model} is ready there"

    def _join(self, deadline: _Deadline) -> None:
        """Looks whether the server runs the graph. Raises BackendAway, and PackageError where it runs another."""
        try:
            if (why := self._absence(deadline)) is not None:
                raise BackendAway(self._backend, why)
            self._compare_contract(deadline)
            self._open_memory(deadline)
            differs = self._compare_trial(deadline)
        except InferenceServerException as error:
            self._lose(_told(error))
            raise BackendAway(self._backend, _told(error)) from error
        except BackendAway as error:
            self._lose(error.message)
            raise
        except PackageError as error:
            self._lose(str(error))
            raise
        self._away = None
        self._join_count += 1
        told = {"backend": self._backend.url, "shared_memory": self.shares_memory, "largest_difference": differs}
        log.info("a backend runs the graph", extra=told)

    def _compare_contract(self, deadline: _Deadline) -> None:
        model, version = self._backend.model, self._backend.version
        metadata = self._client.get_model_metadata(model, version, client_timeout=deadline.left_s(_CONTROL_S))
        compare_tensors(self._file, "backend: input", self._inputs, list(map(_spec, metadata.inputs)))
        compare_tensors(self._file, "backend: output", self._outputs, list(map(_spec, metadata.outputs)))

    def _open_memory(self, deadline: _Deadline) -> None:
        self._drop_memory(deadline)
        if not self._backend.is_local:
            return
        specs = [*self._inputs, *self._outputs]
        try:
            within_s = deadline.left_s(_CONTROL_S)
            self._memory = TritonMemory(self._client, specs, max_rows=self._max_rows, timeout_s=within_s)
        except (OSError, InferenceServerException) as error:
            # In a container of its own it does not see our memory; and it may be told to let nobody do this.
            log.info("no shared memory with a backend", extra={"backend": self._backend.url, "why": _told(error)})

    def _drop_memory(self, deadline: _Deadline) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            with suppress(InferenceServerException):
                memory.forget(deadline.left_s(_CONTROL_S))
            memory.close()

    def _compare_trial(self, deadline: _Deadline) -> float:
        """How far the server's answers are from the package's own."""
        names, largest = list(self._trial.answers), 0.0
        for name, found in zip(names, self._infer(names, self._trial.feeds, deadline), strict=True):
            own = self._trial.answers[name]
            off = float(np.abs(found - own).max()) if found.shape == own.shape else np.inf
            if not off <= _TOLERANCE * max(1.0, float(np.abs(own).max())):
                expected = f"must be that of the package's own graph, run with 32 bits; it is off by {off:g}"
                raise PackageError(self._file, f"backend: output {name}", expected)
            largest = max(largest, off)
        return largest

    def _infer(self, names: Sequence[str], feeds: Feeds, deadline: _Deadline) -> list[NDArray[Any]]:
        rows, memory = len(next(iter(feeds.values()))), self._memory
        if memory is not None:
            self._ask(memory.given(feeds), memory.wanted(names, rows), deadline)
            return [memory.answer(name, rows) for name in names]
        given, wanted = [_plain(*each) for each in feeds.items()], [triton.InferRequestedOutput(n) for n in names]
        answer = self._ask(given, wanted, deadline)
        found = [answer.as_numpy(name) for name in names]
        if missing := [name for name, each in zip(names, found, strict=True) if each is None]:
            raise InferenceServerException(f"the answer lacks output {missing[0]}")
        return found

    def _ask(
        self, inputs: list[triton.InferInput], outputs: list[triton.InferRequestedOutput], deadline: _Deadline
    ) -> triton.InferResult:
        return self._client.infer(
            self._backend.model,
            inputs,
            model_version=self._backend.version,
            outputs=outputs,
            client_timeout=deadline.left_s(),
        )


def _plain(name: str, array: NDArray[Any]) -> triton.InferInput:
    given = triton.InferInput(name, list(array.shape), triton.np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    return given


def _spec(tensor: Any) -> TensorSpec:
    shape = tuple(None if side < 0 else side for side in tensor.shape)
    return TensorSpec(tensor.name, _DTYPES.get(tensor.datatype, tensor.datatype), shape)


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
