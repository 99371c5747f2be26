"""Memory that a Triton server on this machine has mapped too, with a place for each tensor of a run."""

import os
import secrets
from collections.abc import Mapping, Sequence
from math import prod
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray

from worldtree_runtime.inference import TensorSpec

DTYPES: dict[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "double": np.dtype(np.float64),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
}
_ALIGNED = 64


class TritonMemory:
    """For runs of up to `max_rows` rows. Each tensor's first extent is the rows of a run, its others are fixed."""

    def __init__(self, client: Any, specs: Sequence[TensorSpec], *, max_rows: int, timeout_s: float) -> None:
        """Raises OSError where there is no room, InferenceServerException where the server does not take part."""
        self._client = client
        self.name = f"worldtree-{os.getpid()}-{secrets.token_hex(8)}"
        self._slots: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        size = 0
        for spec in specs:
            dtype, shape = DTYPES[spec.dtype], (max_rows, *(side or 1 for side in spec.shape[1:]))
            self._slots[spec.name] = (size, dtype, shape)
            size += -(-dtype.itemsize * prod(shape) // _ALIGNED) * _ALIGNED
        self._shared = SharedMemory(self.name, create=True, size=size)
        try:
            # A file system that is full says so here; at the first touch it would end the process.
            with (Path("/dev/shm") / self.name).open("r+b") as file:  # noqa: S108 - where the system keeps such memory
                os.posix_fallocate(file.fileno(), 0, size)
            client.register_system_shared_memory(self.name, f"/{self.name}", size, client_timeout=timeout_s)
        except BaseException:
            self.close()
            raise

    def given(self, feeds: Mapping[str, NDArray[Any]]) -> list[triton.InferInput]:
        """Writes tensors there; how a request says so."""
        inputs = []
        for name, array in feeds.items():
            self._view(name, len(array))[:] = array
            datatype = triton.np_to_triton_dtype(array.dtype)
            inputs.append(triton.InferInput(name, list(array.shape), datatype))
            inputs[-1].set_shared_memory(self.name, array.nbytes, self._slots[name][0])
        return inputs

    def wanted(self, names: Sequence[str], rows: int) -> list[triton.InferRequestedOutput]:
        """Where the answers shall go."""
        outputs = []
        for name in names:
            outputs.append(triton.InferRequestedOutput(name))
            outputs[-1].set_shared_memory(self.name, self._view(name, rows).nbytes, self._slots[name][0])
        return outputs

    def answer(self, name: str, rows: int) -> NDArray[Any]:
        """A copy: the next run writes to the same place."""
        return self._view(name, rows).copy()

    def forget(self, timeout_s: float) -> None:
        """The server is to let go of it. Raises InferenceServerException."""
        self._client.unregister_system_shared_memory(self.name, client_timeout=timeout_s)

    def close(self) -> None:
        self._shared.close()
        self._shared.unlink()

    def _view(self, name: str, rows: int) -> NDArray[Any]:
        offset, dtype, shape = self._slots[name]
        return np.ndarray((rows, *shape[1:]), dtype, self._shared.buf, offset)
