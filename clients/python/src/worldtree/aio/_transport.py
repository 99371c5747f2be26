"""Runs calls over a grpc.aio channel."""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

import grpc

from worldtree import _calls
from worldtree._calls import Call, StreamCall
from worldtree._channel import ChannelSettings, client_closed
from worldtree._retry import Attempts
from worldtree._status import error_from_rpc
from worldtree._stubs import Service, Stubs
from worldtree._transport import Transport as ThreadedTransport
from worldtree.aio._stream import Stream
from worldtree.errors import NotFound
from worldtree.types import Seconds, SessionInfo

T = TypeVar("T")


class Transport:
    """One channel, for one event loop: the loop that the first call runs on."""

    def __init__(self, settings: ChannelSettings) -> None:
        self.settings = settings
        self._channel: grpc.aio.Channel | None = None
        self._stubs: Stubs | None = None
        self._threaded: ThreadedTransport | None = None
        self._closed = False
        self._action_names: dict[str, tuple[str, ...]] = {}

    async def call(self, call: Call[T], *, timeout: Seconds | None = None) -> T:
        attempts = self.settings.attempts(
            safe=call.retry, timeout=self.settings.timeout_s if timeout is None else timeout
        )
        method = self._method(call.method, call.service)
        while True:
            try:
                under_way = method(call.request, timeout=attempts.remaining_s, metadata=self.settings.metadata)
                answer = await under_way
            except grpc.RpcError as error:
                await self._wait_or_raise(attempts, error)
            else:
                value = call.read(answer)
                if call.heed is None:
                    return value
                head, tail = await under_way.initial_metadata(), await under_way.trailing_metadata()
                return call.heed(value, (*head, *tail))

    async def gather(self, call: StreamCall[T], *, timeout: Seconds | None = None) -> T:
        """Runs a stream to its end. Without a timeout it may take as long as its frames do."""
        attempts = self.settings.attempts(safe=True, timeout=timeout)
        method = self._method(call.method, call.service)
        while True:
            fold = call.fold()
            begun = False
            stream = method(call.request, timeout=attempts.remaining_s, metadata=self.settings.metadata)
            try:
                async for message in stream:
                    begun = True
                    fold.add(message)
            except grpc.RpcError as error:
                if begun:
                    raise error_from_rpc(error) from error
                await self._wait_or_raise(attempts, error)
            else:
                return fold.result()
            finally:
                # A fold or a progress callback that raises must not leave the server generating.
                stream.cancel()

    def stream(self, method: str, *, service: Service = "video") -> Stream:
        """Opens a bidirectional stream; the caller writes, reads and cancels it."""
        if self._closed:
            raise client_closed()
        if self._threaded is None:
            self._threaded = ThreadedTransport(self.settings)
        threaded = self._threaded
        return Stream(lambda requests: threaded.stream(method, requests, service=service))

    async def action_names(self, session: SessionInfo) -> Sequence[str]:
        """The names by id of a session's actions: asked for once a model. Empty where the model is gone."""
        if session.digest not in self._action_names:
            try:
                self._action_names[session.digest] = await self.call(_calls.action_names(session))
            except NotFound:
                # Its sessions end on the old version although nobody can look it up any more.
                return ()
        return self._action_names[session.digest]

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None:
            await self._channel.close()
        if self._threaded is not None:
            self._threaded.close()

    def _method(self, name: str, service: Service = "video") -> Any:
        if self._closed:
            raise client_closed()
        if self._stubs is None:
            # Not in __init__: the channel belongs to the loop that is running now.
            settings = self.settings
            self._channel = (
                grpc.aio.insecure_channel(settings.address, settings.options)
                if settings.credentials is None
                else grpc.aio.secure_channel(settings.address, settings.credentials, settings.options)
            )
            self._stubs = Stubs(self._channel)
        return self._stubs.method(service, name)

    async def _wait_or_raise(self, attempts: Attempts, error: grpc.RpcError) -> None:
        known = error_from_rpc(error)
        delay_s = attempts.delay_after(known)
        if delay_s is None:
            raise known from error
        await asyncio.sleep(delay_s)
