"""The digest of the version that a model's name stands for, asked of a backend and held for a moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc.aio
from google.protobuf.message import DecodeError
from worldtree.common.v1 import common_pb2
from worldtree_runtime.errors import WorldtreeError

from worldtree_gateway.domain import Describe

_NAME_COUNT_MAX = 1024

# Asks the describing method; raw bytes both ways. Raises AioRpcError or WorldtreeError.
Ask = Callable[[bytes], Awaitable[bytes]]
_Name = tuple[str, str]


class ModelDigests:
    """A new version is noticed `ttl_s` seconds after it is served, at the latest.

    A name may be empty where the service has a model for it: what it means is the backend's to say.
    """

    def __init__(
        self, describe: Describe, ask: Ask, *, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._describe = describe
        self._ask = ask
        self._ttl_s = ttl_s
        self._clock = clock
        self._known: dict[_Name, tuple[str, float]] = {}  # digest, held until
        self._asking: dict[_Name, asyncio.Task[str | None]] = {}

    async def resolve(self, model: common_pb2.ModelRef) -> str | None:
        """None: no backend told. The call itself then finds out why."""
        name = (model.name, model.version)
        digest, held_until_s = self._known.get(name, ("", 0.0))
        if digest and self._clock() < held_until_s:
            return digest
        task = self._asking.get(name)
        if task is None:
            task = asyncio.create_task(self._resolve(name), name="resolve model digest")
            self._asking[name] = task
            task.add_done_callback(lambda _: self._asking.pop(name))
        # one caller's cancellation isn't the end of the question for the others
        return await asyncio.shield(task)

    def forget(self, model: common_pb2.ModelRef) -> None:
        """For a digest that a backend has just refused."""
        self._known.pop((model.name, model.version), None)

    async def _resolve(self, name: _Name) -> str | None:
        request = self._describe.request(common_pb2.ModelRef(name=name[0], version=name[1]))
        asked_s = self._clock()
        try:
            digest = self._describe.digest(await self._ask(request))
        except (grpc.aio.AioRpcError, WorldtreeError, DecodeError):
            return None
        if not digest:
            return None
        if len(self._known) >= _NAME_COUNT_MAX:
            self._known.clear()
        self._known[name] = (digest, asked_s + self._ttl_s)
        return digest
