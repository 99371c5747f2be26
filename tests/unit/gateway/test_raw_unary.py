"""A raw call ends as the same call does that is made the public way."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from worldtree_gateway import raw_unary
from worldtree_gateway.raw_unary import ask

HEAD, TRAILERS = (("said-before", "1"),), (("said-after", "2"), ("worldtree-bytes-bin", b"\x00\xff"))
ASKED = (("asked", "3"),)


class Behind:
    """What answers; it knows how many calls it was left with."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()

    async def answer(self, request: bytes, context: Any) -> bytes:
        self.begun.set()
        heard = [value for key, value in context.invocation_metadata() if key == "asked"]
        await context.send_initial_metadata(HEAD)
        context.set_trailing_metadata(TRAILERS)
        if request == b"refuse":
            await context.abort(grpc.StatusCode.ABORTED, "not now")
        if request == b"wait":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return request + ",".join(heard).encode() + (b"" if context.time_remaining() is None else b" in time")


@asynccontextmanager
async def unary_call() -> AsyncIterator[tuple[Any, Behind]]:
    behind = Behind()
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(behind.answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s.S", {"M": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel.unary_unary("/s.S/M"), behind
    finally:
        await server.stop(None)


@pytest.mark.parametrize("timeout_s", [None, 30.0])
async def test_it_brings_what_the_public_call_brings(timeout_s: float | None) -> None:
    async with unary_call() as (unary, _):
        call = unary(b"hello ", timeout=timeout_s, metadata=ASKED)
        message, head, trailers = await ask(unary, b"hello ", timeout_s=timeout_s, metadata=ASKED)
        assert message == await call
        assert list(head) == list(await call.initial_metadata())
        assert list(trailers) == list(await call.trailing_metadata())


@pytest.mark.parametrize(("request_bytes", "timeout_s"), [(b"refuse", 30.0), (b"wait", 0.2)])
async def test_it_fails_as_the_public_call_fails(request_bytes: bytes, timeout_s: float) -> None:
    async with unary_call() as (unary, _):
        with pytest.raises(grpc.aio.AioRpcError) as public:
            await unary(request_bytes, timeout=timeout_s, metadata=ASKED)
        with pytest.raises(grpc.aio.AioRpcError) as ours:
            await ask(unary, request_bytes, timeout_s=timeout_s, metadata=ASKED)
        assert ours.value.code() == public.value.code()
        if request_bytes == b"refuse":  # at a deadline either side may be the first to say so, in words of its own
            assert ours.value.details() == public.value.details()
            assert list(ours.value.trailing_metadata() or ()) == list(public.value.trailing_metadata() or ())


class Renamed:
    """A call by a grpc whose names, but for the public ones, are others."""

    def __init__(self, unary: Any) -> None:
        self.unary = unary

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.unary(*arguments, **named)


@pytest.mark.parametrize("name", ["cygrpc.build_census_context", "_create_rpc_error", None])
async def test_where_a_name_is_gone_it_is_asked_the_public_way(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unary_call() as (unary, _):
        whole = await ask(unary, b"hello ", timeout_s=30.0, metadata=ASKED)
        if name is None:
            unary = Renamed(unary)
        else:
            with monkeypatch.context() as patched:  # the library asks for it too
                patched.delattr("grpc._cython." + name if "." in name else "grpc.aio._call." + name)
                importlib.reload(raw_unary)
        try:
            assert raw_unary._KNOWS_GRPC is (name is None)
            message, head, trailers = await raw_unary.ask(unary, b"hello ", timeout_s=30.0, metadata=ASKED)
            assert (message, list(head), list(trailers)) == (whole.message, list(whole.head), list(whole.trailers))
            with pytest.raises(grpc.aio.AioRpcError, match="not now"):
                await raw_unary.ask(unary, b"refuse", timeout_s=30.0, metadata=ASKED)
        finally:
            importlib.reload(raw_unary)


async def test_a_server_that_is_not_there_is_told_alike() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as ours:
            await ask(channel.unary_unary("/s.S/M"), b"", timeout_s=30.0, metadata=())
        assert ours.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "failed to connect to all addresses" in (ours.value.details() or "")


async def test_who_is_cancelled_cancels_the_call() -> None:
    async with unary_call() as (unary, behind):
        asking = asyncio.create_task(ask(unary, b"wait", timeout_s=None, metadata=()))
        await behind.begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(30):
            await behind.cancelled.wait()
