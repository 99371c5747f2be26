"""Handlers of calls, whatever their kind, called as one that streams its responses."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from worldtree_runtime.errors import InvalidRequest
from worldtree_runtime.interceptors import Context

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


async def responses_to(handler: Handler, request: Any, context: Context) -> AsyncGenerator[Any, None]:
    """What a handler answers. `request`: the message, or the messages where it takes a stream.

    None where it writes to the context itself. It is not called before the first response is asked for, so who asks for
    none leaves no coroutine behind that nobody awaits.
    """
    if not handler.response_streaming:
        answer: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        yield await answer(request, context)
        return
    stream: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
    responses = stream(request, context)
    if not hasattr(responses, "__aiter__"):
        await responses
        return
    async with aclosing(responses):
        async for response in responses:
            yield response


async def request_of(handler: Handler, messages: Any) -> Any:
    """What a handler takes of a stream of messages: the stream, or its one message. Raises InvalidRequest."""
    if handler.request_streaming:
        return messages
    message = await anext(aiter(messages), None)
    if message is None:
        raise InvalidRequest("request", "a call of this method has one message, got none")
    return message
