"""Runs calls over a synchronous channel."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import grpc

from worldtree import _calls
from worldtree._calls import Call, StreamCall
from worldtree._channel import ChannelSettings, client_closed
from worldtree._retry import Attempts
from worldtree._status import error_from_rpc
from worldtree._stubs import Service, Stubs
from worldtree.errors import NotFound
from worldtree.play_log import RESUMES_KEY
from worldtree.types import Seconds, SessionInfo

T = TypeVar("T")
_CLOSE_S = 2.0


class Transport:
    """One channel, safe to share between threads."""

    def __init__(self, settings: ChannelSettings) -> None:
        self.settings = settings
        self._channel = (
            grpc.insecure_channel(settings.address, settings.options)
            if settings.credentials is None
            else grpc.secure_channel(settings.address, settings.credentials, settings.options)
        )
        self._stubs = Stubs(self._channel)
        self._closed = False
        self._action_names: dict[str, tuple[str, ...]] = {}

    def call(self, call: Call[T], *, timeout: Seconds | None = None) -> T:
        attempts = self.settings.attempts(
            safe=call.retry, timeout=self.settings.timeout_s if timeout is None else timeout
        )
        method = self._method(call.method, call.service)
        while True:
            try:
                answer, done = method.with_call(
                    call.request, timeout=attempts.remaining_s, metadata=self.settings.metadata
                )
            except grpc.RpcError as error:
                self._wait_or_raise(attempts, error)
            else:
                value = call.read(answer)
                if call.heed is None:
                    return value
                return call.heed(value, (*done.initial_metadata(), *done.trailing_metadata()))

    def gather(self, call: StreamCall[T], *, timeout: Seconds | None = None) -> T:
        """Runs a stream to its end. Without a timeout it may take as long as its frames do."""
        attempts = self.settings.attempts(safe=True, timeout=timeout)
        method = self._method(call.method, call.service)
        while True:
            fold = call.fold()
            begun = False
            stream = method(call.request, timeout=attempts.remaining_s, metadata=self.settings.metadata)
            try:
                for message in stream:
                    begun = True
                    fold.add(message)
            except grpc.RpcError as error:
                if begun:
                    raise error_from_rpc(error) from error
                self._wait_or_raise(attempts, error)
            else:
                return fold.result()
            finally:
                # A fold or a progress callback that raises must not leave the server generating.
                stream.cancel()

    def stream(self, method: str, requests: Iterator[Any], *, service: Service = "video") -> Any:
        """Opens a bidirectional stream; the caller iterates it and cancels it."""
        also = ((RESUMES_KEY, "1"),) if method == "Play" else ()
        return self._method(method, service)(requests, metadata=(*self.settings.metadata, *also))

    def action_names(self, session: SessionInfo) -> Sequence[str]:
        """The names by id of a session's actions: asked for once a model. Empty where the model is gone."""
        if session.digest not in self._action_names:
            try:
                self._action_names[session.digest] = self.call(_calls.action_names(session))
            except NotFound:
                # Its sessions end on the old version although nobody can look it up any more.
                return ()
        return self._action_names[session.digest]

    def close(self) -> None:
        """Cancels what is under way. Ctrl-C between the start of a call and that of the thread which serves it leaves
        a call that nobody serves; gRPC has cancelled it, and waits for its end for ever: we do not.
        """
        self._closed = True
        closing = threading.Thread(target=self._channel.close, name="close a channel", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _method(self, name: str, service: Service = "video") -> Any:
        if self._closed:
            raise client_closed()
        return self._stubs.method(service, name)

    def _wait_or_raise(self, attempts: Attempts, error: grpc.RpcError) -> None:
        known = error_from_rpc(error)
        delay_s = attempts.delay_after(known)
        if delay_s is None:
            raise known from error
        time.sleep(delay_s)
