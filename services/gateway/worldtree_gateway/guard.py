"""Lets calls in: nobody without credentials, nobody to what is not for its role; and writes down who did what."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from worldtree_runtime.errors import Kind, WorldtreeError
from worldtree_runtime.interceptors import Context

from worldtree_gateway import session_id
from worldtree_gateway.access import Access
from worldtree_gateway.audit import AuditLog, Entry
from worldtree_gateway.authenticator import Authenticator
from worldtree_gateway.errors import CredentialsChanged, OperatorsOnly
from worldtree_gateway.handlers import Handler, MaybeHandler, request_of, responses_to
from worldtree_gateway.identity import Caller, Role, set_caller
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.tokens import EXPIRED

_Shown = tuple[tuple[str, str | bytes], ...]
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]]


class Guard(grpc.aio.ServerInterceptor):
    """In front of every handler of a server, whatever protocol it speaks.

    A call that is refused never has its messages read, so a stranger's cost nothing but their headers. One that is let
    in has its Caller from here on (`current_caller`). A stream that runs is ended when its credentials hold no more,
    looked at each `stream_look_s`; that a token has expired since ends nothing that it began.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        access: Access,
        audit: AuditLog,
        metrics: GatewayMetrics,
        *,
        stream_look_s: float,
    ) -> None:
        self._stream_look_s = stream_look_s
        self._authenticator = authenticator
        self._access = access
        self._audit = audit
        self._metrics = metrics

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> MaybeHandler:
        method = handler_call_details.method
        needed = self._access.needed(method)
        if needed is None:
            return await continuation(handler_call_details)
        metadata = tuple(handler_call_details.invocation_metadata or ())
        caller: Caller | None = None
        try:
            caller = self._authenticator.recognize(metadata)
            if caller is not None:
                _check_role(caller, needed, method)
        except WorldtreeError as error:
            return self._refusal(caller, method, error)
        handler = await continuation(handler_call_details)
        if caller is None:
            return self._verifying(handler or _UNKNOWN, needed, method, metadata)
        return None if handler is None else self._guarded(handler, caller, method, metadata)

    def _refusal(self, caller: Caller | None, method: str, error: WorldtreeError) -> Handler:
        async def refuse(_requests: object, context: Context) -> None:
            self._refused(caller, method, context, error)
            raise error

        # it reads nothing by itself, so it can end a call of any kind
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _refused(self, caller: Caller | None, method: str, context: Context, error: WorldtreeError) -> None:
        self._metrics.refused_callers.labels(error.reason).inc()
        self._audit.refused(caller, method, context.peer(), error)

    def _verifying(self, handler: Handler, needed: Role, method: str, metadata: _Shown) -> Handler:
        """A call with a key that is yet to be verified. That is done where the calls of its address are counted, and as
        a stream whatever its kind is, so that nothing is read before."""

        async def verified(requests: Any, context: Context) -> AsyncIterator[Any]:
            caller: Caller | None = None
            try:
                caller = await self._authenticator.identify(metadata)
                _check_role(caller, needed, method)
            except WorldtreeError as error:
                self._refused(caller, method, context, error)
                raise
            guarded = self._guarded(handler, caller, method, metadata)
            request = await request_of(guarded, requests)
            async with aclosing(responses_to(guarded, request, context)) as responses:
                async for response in responses:
                    yield response

        return grpc.stream_stream_rpc_method_handler(
            verified, handler.request_deserializer, handler.response_serializer
        )

    def _guarded(self, handler: Handler, caller: Caller, method: str, metadata: _Shown) -> Handler:
        decode, encode = handler.request_deserializer, handler.response_serializer
        # what a method that is passed through as bytes names is read off them; the others make calls that do
        naming = self._access.naming(method) if decode is None else None

        def noted(entry: Entry, request: Any) -> None:
            if naming is not None and naming.session and not handler.request_streaming:
                entry.session = session_id.first_string(request)

        if not handler.response_streaming:
            behaviour: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

            async def answer(request: Any, context: Context) -> Any:
                set_caller(caller)
                with self._audit.call(caller, method, context) as entry:
                    noted(entry, request)
                    response = await behaviour(request, context)
                    if naming is not None and naming.opens:
                        entry.opened = tuple(session_id.sessions_in(response))
                    return response

            if handler.request_streaming:
                return grpc.stream_unary_rpc_method_handler(answer, decode, encode)
            return grpc.unary_unary_rpc_method_handler(answer, decode, encode)

        streaming: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def written(request: Any, context: Context, writing: Awaitable[None]) -> None:
            with self._audit.call(caller, method, context) as entry:
                noted(entry, request)
                async with self._while_it_holds(caller, metadata):
                    await writing

        async def iterated(request: Any, context: Context, responses: Any) -> AsyncIterator[Any]:
            with self._audit.call(caller, method, context) as entry:
                noted(entry, request)
                async with aclosing(responses):
                    async for response in responses:
                        yield response

        def stream(request: Any, context: Context) -> Any:
            set_caller(caller)
            responses = streaming(request, context)
            wrapped = iterated if hasattr(responses, "__aiter__") else written
            return wrapped(request, context, responses)

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, decode, encode)
        return grpc.unary_stream_rpc_method_handler(stream, decode, encode)

    @asynccontextmanager
    async def _while_it_holds(self, caller: Caller, metadata: _Shown) -> AsyncIterator[None]:
        """Ends the block with what is wrong, once the credentials are no longer the caller's."""
        refusal: WorldtreeError | None = None

        async def watch(limit: asyncio.Timeout) -> None:
            nonlocal refusal
            while refusal is None:
                await asyncio.sleep(self._stream_look_s)
                refusal = await self._refusal_of(caller, metadata)
            limit.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout(None) as limit:
                watching = asyncio.create_task(watch(limit), name="watch credentials")
                try:
                    yield
                finally:
                    watching.cancel()
        except TimeoutError:
            if refusal is None:
                raise  # the block's own
            self._metrics.refused_callers.labels(refusal.reason).inc()
            raise refusal from None

    async def _refusal_of(self, caller: Caller, metadata: _Shown) -> WorldtreeError | None:
        """None: they hold, or have expired, or nobody can tell now."""
        try:
            now = await self._authenticator.identify(metadata)
        except WorldtreeError as error:
            return error if error.kind is Kind.UNAUTHENTICATED and error.reason != EXPIRED else None
        return None if now == caller else CredentialsChanged()


def _check_role(caller: Caller, needed: Role, method: str) -> None:
    """Raises OperatorsOnly."""
    if caller.role < needed:
        raise OperatorsOnly(method, caller.role.name.lower())


async def _not_found(_requests: object, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # as grpc says it


_UNKNOWN: Handler = grpc.stream_stream_rpc_method_handler(_not_found)
