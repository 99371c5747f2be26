"""A real server on a free port, asked by a plain grpcio client."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import prometheus_client
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from worldtree_runtime import errors
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.logs import JsonFormatter, current_request_id
from worldtree_runtime.server import RunningServer, start_server
from worldtree_runtime.settings import ServiceSettings

SERVICE = "worldtree.test.v1.Echo"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Behaviour = Callable[[bytes], Awaitable[bytes]]


async def echo(request: bytes) -> bytes:
    return request


class FourKinds:
    """The same behaviour behind each kind of RPC, on raw bytes. A stream answers "first" before it asks `behave`."""

    def __init__(self, behave: Behaviour = echo) -> None:
        self.behave = behave
        self.closed: list[str] = []

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        try:
            return await self.behave(request)
        finally:
            self.closed.append("unary_unary")

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            yield await self.behave(request)
        finally:
            self.closed.append("unary_stream")

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        try:
            return await self.behave(b"".join([request async for request in requests]))
        finally:
            self.closed.append("stream_unary")

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            async for request in requests:
                yield await self.behave(request)
        finally:
            self.closed.append("stream_stream")

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        handlers = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(self, kind)) for kind in KINDS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        return [SERVICE]


@asynccontextmanager
async def serving(
    behave: Behaviour | FourKinds = echo, **options: Any
) -> AsyncIterator[tuple[RunningServer, grpc.aio.Channel]]:
    handlers = behave if isinstance(behave, FourKinds) else FourKinds(behave)
    settings = ServiceSettings(**options.pop("settings", {}))
    register = options.pop("register", handlers.register)
    async with (
        start_server(settings, service="echo", register=register, **options) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield server, channel


def start_call(channel: grpc.aio.Channel, kind: str, request: bytes = b"x", **options: Any) -> Any:
    requests: Any = request if kind.startswith("unary_") else iter([request])
    return getattr(channel, kind)(f"/{SERVICE}/{kind}")(requests, **options)


async def answers(call: Any, received: list[bytes] | None = None) -> list[bytes]:
    received = [] if received is None else received
    if not hasattr(call, "__aiter__"):
        return [await call]
    async for answer in call:
        received.append(answer)
    return received


async def refusal(call: Any, *, after: Sequence[bytes] | None = None) -> tuple[status_pb2.Status, dict[str, Any]]:
    """The status of a call that fails, and its details by type name. `after`: what it must have streamed before."""
    received: list[bytes] = []
    with pytest.raises(grpc.RpcError) as caught:
        await answers(call, received)
    assert after is None or received == list(after)
    status = await rpc_status.aio.from_call(call)
    assert status is not None, caught.value
    details = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        detail = getattr(error_details_pb2, name)()
        assert packed.Unpack(detail)
        assert name not in details
        details[name] = detail
    return status, details


def raising(error: BaseException) -> Behaviour:
    async def behave(request: bytes) -> bytes:
        raise error

    return behave


async def http(address: str, request: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    writer.write(f"{request}\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split(" ")[1]), body


async def series(server: RunningServer) -> dict[str, float]:
    status, page = await http(server.metrics_address, "GET /metrics HTTP/1.1")
    assert status == 200
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(100):
        if await check():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("did not come true within 2 s")


ERRORS: list[tuple[WorldtreeError, grpc.StatusCode, dict[str, str], str]] = [
    (
        errors.InvalidRequest("seed", "seed must be 0 to 9, got 10", value=10, maximum=9),
        grpc.StatusCode.INVALID_ARGUMENT,
        {"field": "seed", "value": "10", "maximum": "9"},
        "BadRequest",
    ),
    (
        errors.NotFound("model", "minigird", known=["minigrid", "maze"]),
        grpc.StatusCode.NOT_FOUND,
        {"resource_type": "model", "name": "minigird", "known_count": "2", "known": "minigrid, maze"},
        "ResourceInfo",
    ),
    (
        errors.Exhausted("KV_CACHE_FULL", "9 blocks needed, 4 free", retry_after_s=1.5, needed=9, free=4),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        {"needed": "9", "free": "4", "retry_after_s": "1.5"},
        "RetryInfo",
    ),
    (
        errors.Exhausted("SESSIONS_FULL", "8 of 8 sessions", retry_after_s=2, subject="key:abc", limit=8),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        {"limit": "8", "retry_after_s": "2"},
        "QuotaFailure",
    ),
    (
        errors.Aborted("SESSION_BUSY", "another step runs", session="s1"),
        grpc.StatusCode.ABORTED,
        {"session": "s1"},
        "",
    ),
    (
        errors.FailedPrecondition("SESSION_CLOSED", "the session is closed", subject="sessions/s1"),
        grpc.StatusCode.FAILED_PRECONDITION,
        {},
        "PreconditionFailure",
    ),
    (
        errors.Unavailable("BACKEND_DOWN", "video is down", retry_after_s=0.25),
        grpc.StatusCode.UNAVAILABLE,
        {"retry_after_s": "0.25"},
        "RetryInfo",
    ),
    (errors.DataLoss("SNAPSHOT_CORRUPT", "snapshot s1 is corrupt"), grpc.StatusCode.DATA_LOSS, {}, ""),
    (errors.Unimplemented("NO_PROMPTS", "minigrid takes no prompt"), grpc.StatusCode.UNIMPLEMENTED, {}, ""),
    (errors.DeadlineExceeded("TOO_LATE", "needs 9 s, has 1 s", needed=9), grpc.StatusCode.DEADLINE_EXCEEDED, {}, ""),
    (errors.Unauthenticated("NO_KEY", "an API key is needed"), grpc.StatusCode.UNAUTHENTICATED, {}, ""),
    (errors.PermissionDenied("NOT_YOURS", "not your session"), grpc.StatusCode.PERMISSION_DENIED, {}, ""),
]


@pytest.mark.parametrize(("error", "code", "metadata", "detail"), ERRORS, ids=lambda value: str(value)[:24])
async def test_each_error_of_the_family_arrives_with_its_code_and_details(
    error: WorldtreeError, code: grpc.StatusCode, metadata: dict[str, str], detail: str
) -> None:
    async with serving(raising(error)) as (_, channel):
        call = start_call(channel, "unary_unary")
        status, details = await refusal(call)
        assert await call.code() is code
    assert status.message == error.message
    info = details.pop("ErrorInfo")
    assert (info.reason, info.domain) == (error.reason, "worldtree")
    assert metadata.items() <= dict(info.metadata).items()
    assert (detail in details) if detail else (not details)
    if "BadRequest" in details:
        (violation,) = details["BadRequest"].field_violations
        assert (violation.field, violation.description, violation.reason) == ("seed", error.message, error.reason)
    if "ResourceInfo" in details:
        assert details["ResourceInfo"].resource_type == "model"
        assert details["ResourceInfo"].resource_name == "minigird"
        assert "known: minigrid, maze" in status.message
    if "QuotaFailure" in details:
        assert details["QuotaFailure"].violations[0].subject == "key:abc"
    if "PreconditionFailure" in details:
        (failed,) = details["PreconditionFailure"].violations
        assert (failed.type, failed.subject) == (error.reason, "sessions/s1")
    if error.retry_after_s is not None:
        expected = Duration()
        expected.FromMilliseconds(int(error.retry_after_s * 1000))
        assert details["RetryInfo"].retry_delay == expected


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_answers_and_fails_alike_also_in_mid_stream(kind: str) -> None:
    async def behave(request: bytes) -> bytes:
        if request == b"bad":
            raise errors.InvalidRequest("request", "request must not be bad")
        return request

    before = [b"first"] if kind.endswith("_stream") else []
    async with serving(behave) as (_, channel):
        assert await answers(start_call(channel, kind, b"good")) == [*before, b"good"]
        call = start_call(channel, kind, b"bad", metadata=[("x-request-id", "r-7")])
        await refusal(call, after=before)
        status = await rpc_status.aio.from_call(call)
        assert [packed.TypeName() for packed in status.details] == ["google.rpc.ErrorInfo", "google.rpc.BadRequest"]
        assert ("x-request-id", "r-7") in tuple(await call.trailing_metadata())
        assert await answers(start_call(channel, kind, b"good")) == [*before, b"good"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bug_keeps_its_text_to_itself_and_to_the_log(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(raising(RuntimeError("the secret text"))) as (_, channel):
        call = start_call(channel, kind, metadata=[("x-request-id", "r-bug")])
        status, details = await refusal(call)
        trailers = repr(tuple(await call.trailing_metadata()))
    assert await call.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in repr(status) + trailers
    assert "r-bug" in status.message
    assert (details["ErrorInfo"].reason, details["RequestInfo"].request_id) == ("BUG", "r-bug")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "the secret text" in repr(record.exc_info[1])


async def test_an_error_of_the_family_is_no_error_in_our_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(raising(errors.InvalidRequest("seed", "seed must be 0"))) as (_, channel):
        await refusal(start_call(channel, "unary_unary"))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_a_task_group_wraps_is_seen_and_a_bug_among_them_wins() -> None:
    group = ExceptionGroup("g", [errors.InvalidRequest("seed", "seed must be 0")])
    async with serving(raising(group)) as (_, channel):
        status, _ = await refusal(start_call(channel, "unary_unary"))
        assert status.message == "seed must be 0"
    mixed = ExceptionGroup("g", [errors.InvalidRequest("seed", "seed must be 0"), RuntimeError("bug")])
    async with serving(raising(mixed)) as (_, channel):
        status, details = await refusal(start_call(channel, "unary_unary"))
        assert details["ErrorInfo"].reason == "BUG"


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("f" * 5000, "é" * 100_000, **{f"k{i}": "v" * 500 for i in range(50)}),
        errors.NotFound("model", "💥" * 5000, known=["m" * 200] * 10),
        errors.Exhausted("FULL", "%" * 9000, retry_after_s=1e12, subject="s" * 9000),
        errors.FailedPrecondition("CLOSED", "\x00\n\ud800" * 900, subject="\ud800"),
    ],
    ids=["accents", "emoji", "percent", "surrogates"],
)
async def test_a_huge_or_odd_message_still_arrives_as_its_status(error: WorldtreeError) -> None:
    async with serving(raising(error)) as (_, channel):
        call = start_call(channel, "unary_unary")
        status, details = await refusal(call)
    assert details["ErrorInfo"].reason == error.reason
    assert status.message
    assert await call.code() is not grpc.StatusCode.INTERNAL


async def test_a_request_id_is_echoed_or_made_and_is_in_the_logs_of_the_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    lines: list[dict[str, Any]] = []

    async def behave(request: bytes) -> bytes:
        logging.getLogger("handler").info("at work")
        lines.append(json.loads(JsonFormatter().format(caplog.records[-1])))
        # a task that the handler starts belongs to the same request
        return str(await asyncio.create_task(asyncio.to_thread(current_request_id))).encode()

    async with serving(behave) as (_, channel):
        call = start_call(channel, "unary_unary", metadata=[("x-request-id", "abc-1")])
        assert await call == b"abc-1"
        assert tuple(await call.trailing_metadata()) == (("x-request-id", "abc-1"), ("worldtree-load", "1"))
        assert (lines[-1]["message"], lines[-1]["request_id"]) == ("at work", "abc-1")
        for bad in ("", "a b", "x" * 129):
            call = start_call(channel, "unary_unary", metadata=[("x-request-id", bad)])
            made = (await call).decode()
            assert made not in ("", bad)
            assert dict(await call.trailing_metadata())["x-request-id"] == made
    assert current_request_id() is None


async def test_trailers_of_a_handler_stay_and_a_proxied_request_id_is_not_doubled() -> None:
    async def handle(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("worldtree-cache", "hit"), ("x-request-id", "from-behind")))
        if request == b"bad":
            raise errors.Aborted("SESSION_BUSY", "busy")
        return request

    handlers = FourKinds()
    handlers.unary_unary = handle  # type: ignore[method-assign]
    async with serving(handlers) as (_, channel):
        for request in (b"good", b"bad"):
            call = start_call(channel, "unary_unary", request, metadata=[("x-request-id", "mine")])
            await asyncio.gather(call, return_exceptions=True)
            trailers = [item for item in tuple(await call.trailing_metadata()) if item[0] != "grpc-status-details-bin"]
            assert trailers == [("worldtree-cache", "hit"), ("x-request-id", "mine"), ("worldtree-load", "1")]


async def test_a_status_that_a_handler_aborts_with_passes_and_is_counted() -> None:
    async def handle(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "as it came", (("k", "v"),))
        raise AssertionError("not reached")

    handlers = FourKinds()
    handlers.unary_unary = handle  # type: ignore[method-assign]
    async with serving(handlers) as (server, channel):
        call = start_call(channel, "unary_unary")
        with pytest.raises(grpc.RpcError):
            await call
        assert (await call.code(), await call.details()) == (grpc.StatusCode.OUT_OF_RANGE, "as it came")
        assert ("k", "v") in tuple(await call.trailing_metadata())
        assert count(await series(server), "unary_unary", "OUT_OF_RANGE") == 1


def count(found: dict[str, float], method: str, code: str) -> float:
    labels = f'{{code="{code}",method="{SERVICE}/{method}",service="echo"}}'
    return found.get(f"worldtree_rpc_seconds_count{labels}", 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_are_counted_by_method_and_code_and_are_in_flight_while_they_run(kind: str) -> None:
    release = asyncio.Event()

    async def behave(request: bytes) -> bytes:
        if request == b"bad":
            raise errors.InvalidRequest("request", "request must not be bad")
        if request == b"slow":
            await release.wait()
        return request

    async with serving(behave) as (server, channel):
        for request in (b"good", b"good", b"bad"):
            await asyncio.gather(answers(start_call(channel, kind, request)), return_exceptions=True)
        slow = asyncio.create_task(answers(start_call(channel, kind, b"slow")))
        in_flight = 'worldtree_rpc_in_flight{service="echo"}'

        async def one_runs() -> bool:
            return (await series(server))[in_flight] == 1

        await eventually(one_runs)
        release.set()
        await slow
        found = await series(server)
    assert found[in_flight] == 0
    assert (count(found, kind, "OK"), count(found, kind, "INVALID_ARGUMENT")) == (3, 1)


async def test_a_failing_observer_is_logged_and_the_call_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("the registry is broken")

    monkeypatch.setattr(prometheus_client.Histogram, "observe", explode)
    async with serving() as (server, channel):
        assert await start_call(channel, "unary_unary") == b"x"
        found = await series(server)
    assert found['worldtree_observer_failures_total{service="echo"}'] >= 1
    assert found['worldtree_rpc_in_flight{service="echo"}'] == 0
    assert "an observation failed" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_leaves_ends_the_handler_and_is_no_error(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    entered = asyncio.Event()

    async def behave(request: bytes) -> bytes:
        entered.set()
        await asyncio.Event().wait()
        return request

    handlers = FourKinds(behave)
    async with serving(handlers) as (server, channel):
        call = start_call(channel, kind)
        waiting = asyncio.create_task(answers(call))
        await asyncio.wait_for(entered.wait(), 2)
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        async def counted() -> bool:
            return count(await series(server), kind, "CANCELLED") == 1

        await eventually(counted)
        assert handlers.closed == [kind]
        assert (await series(server))['worldtree_rpc_in_flight{service="echo"}'] == 0
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_bug_after_the_caller_left_is_still_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()

    async def behave(request: bytes) -> bytes:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("clean-up went wrong")

    async with serving(behave) as (server, channel):
        call = start_call(channel, "unary_unary")
        waiting = asyncio.create_task(answers(call))
        await asyncio.wait_for(entered.wait(), 2)
        call.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        async def counted() -> bool:
            return count(await series(server), "unary_unary", "INTERNAL") == 1

        await eventually(counted)
    # once, with its request, and no second time by grpc for the status that it could not send
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "a call failed by a bug"


async def test_a_handler_that_writes_on_after_its_caller_left_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()

    async def stubborn(request: bytes, context: Any) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await context.write(b"late")

    handlers = FourKinds()
    handlers.unary_stream = stubborn  # type: ignore[assignment, method-assign]
    async with serving(handlers) as (server, channel):
        call = start_call(channel, "unary_stream")
        await asyncio.wait_for(entered.wait(), 2)
        call.cancel()

        async def counted() -> bool:
            return count(await series(server), "unary_stream", "CANCELLED") == 1

        await eventually(counted)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_stream_whose_reader_left_is_closed_although_it_never_waits(caplog: pytest.LogCaptureFixture) -> None:
    handlers = FourKinds()

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1000)
        finally:
            handlers.closed.append("endless")

    handlers.unary_stream = endless  # type: ignore[method-assign]
    async with serving(handlers) as (server, channel):
        call = start_call(channel, "unary_stream")
        assert await call.read() == bytes(1000)
        call.cancel()

        async def counted() -> bool:
            return count(await series(server), "unary_stream", "CANCELLED") == 1

        await eventually(counted)
    assert handlers.closed == ["endless"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("kind", ["a generator", "a coroutine that writes"])
async def test_a_stream_whose_reader_takes_nothing_is_over_here_and_its_status_waits_for_the_reader(kind: str) -> None:
    handlers = FourKinds()

    async def generate(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(1 << 20)

    async def write(request: bytes, context: Any) -> None:
        for _ in range(64):
            await context.write(bytes(1 << 20))

    handlers.unary_stream = generate if kind == "a generator" else write  # type: ignore[assignment, method-assign]
    async with serving(handlers, settings={"unread_s": 0.2}) as (server, channel):
        call = start_call(channel, "unary_stream")
        assert len(await anext(aiter(call))) == 1 << 20

        async def over() -> bool:
            found = await series(server)
            ended = count(found, "unary_stream", "DEADLINE_EXCEEDED")
            return ended == 1 and found['worldtree_rpc_in_flight{service="echo"}'] == 0

        await eventually(over)
        assert dict(await start_call(channel, "unary_unary").trailing_metadata())["worldtree-load"] == "1", "its own"
        await asyncio.sleep(1.2)  # nobody holds the call any more that sent the status
        _, details = await refusal(call)
        assert details["ErrorInfo"].reason == "UNREAD"


async def test_a_stream_that_has_nothing_to_say_is_not_unread() -> None:
    handlers = FourKinds()

    async def write(request: bytes, context: Any) -> None:
        await context.write(b"first")
        await asyncio.sleep(0.5)
        await context.write(b"second")

    handlers.unary_stream = write  # type: ignore[assignment, method-assign]
    async with serving(handlers, settings={"unread_s": 0.1}) as (_, channel):
        assert await answers(start_call(channel, "unary_stream")) == [b"first", b"second"]


async def test_a_deadline_that_passes_is_counted_as_such_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async def behave(request: bytes) -> bytes:
        await asyncio.Event().wait()
        return request

    async with serving(behave) as (server, channel):
        call = start_call(channel, "unary_unary", timeout=0.1)
        with pytest.raises(grpc.RpcError):
            await call
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        async def counted() -> bool:
            return count(await series(server), "unary_unary", "DEADLINE_EXCEEDED") == 1

        await eventually(counted)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def typed(request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
    return health_pb2.HealthCheckResponse(status=1)


async def typed_stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
    async for _ in requests:
        yield health_pb2.HealthCheckResponse(status=1)


async def broken(request: bytes, context: Any) -> str:
    return "not a message"


async def broken_stream(request: bytes, context: Any) -> AsyncIterator[str]:
    yield "not a message"


def register_typed(server: grpc.aio.Server) -> Sequence[str]:
    decode, encode = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
    handlers = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(typed, decode, encode),
        "stream_stream": grpc.stream_stream_rpc_method_handler(typed_stream, decode, encode),
        "unary_stream": grpc.unary_stream_rpc_method_handler(broken_stream, decode, encode),
        "stream_unary": grpc.stream_unary_rpc_method_handler(broken, decode, encode),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return [SERVICE]


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(kind: str) -> None:
    async with serving(register=register_typed) as (_, channel):
        good = health_pb2.HealthCheckRequest(service="x").SerializeToString()
        (answer,) = await answers(start_call(channel, kind, good))
        assert health_pb2.HealthCheckResponse.FromString(answer).status == 1
        status, details = await refusal(start_call(channel, kind, b"\xff\xff\xff"))
        assert details["ErrorInfo"].reason == "UNDECODABLE_REQUEST"
        assert details["BadRequest"].field_violations[0].field == "request"
        assert status.code == 3


@pytest.mark.parametrize("kind", ["stream_unary", "unary_stream"])
async def test_an_answer_that_is_no_message_is_a_bug_and_tells_nothing(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(register=register_typed) as (_, channel):
        _, details = await refusal(start_call(channel, kind, b""))
        assert details["ErrorInfo"].reason == "BUG"
    assert "a call failed by a bug" in caplog.text


class Doorkeeper(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if ("authorization", "yes") not in tuple(handler_call_details.invocation_metadata):
            raise errors.Unauthenticated("NO_KEY", "an API key is needed")
        return await continuation(handler_call_details)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_an_inner_interceptor_refuses_has_a_status_and_is_counted(kind: str) -> None:
    async with serving(interceptors=[Doorkeeper()]) as (server, channel):
        _, details = await refusal(start_call(channel, kind))
        assert details["ErrorInfo"].reason == "NO_KEY"
        assert await answers(start_call(channel, kind, metadata=[("authorization", "yes")]))
        assert count(await series(server), kind, "UNAUTHENTICATED") == 1


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving() as (_, channel):
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_and_one_below_passes() -> None:
    async with serving(settings={"max_message_bytes": 64 * 1024}) as (_, channel):
        assert await start_call(channel, "unary_unary", bytes(60 * 1024)) == bytes(60 * 1024)
        with pytest.raises(grpc.RpcError) as caught:
            await start_call(channel, "unary_unary", bytes(70 * 1024))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_over_the_limit_is_an_error_that_says_so(kind: str) -> None:
    async def behave(request: bytes) -> bytes:
        return bytes(70 * 1024)

    async with serving(behave, settings={"max_message_bytes": 64 * 1024}) as (_, channel):
        call = start_call(channel, kind)
        with pytest.raises(grpc.RpcError):
            await answers(call)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "65536" in await call.details()


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_follows_set_serving_and_readiness_for_every_name() -> None:
    state = {"ready": True}
    async with serving(ready=lambda: state["ready"]) as (server, channel):
        stub = health_pb2_grpc.HealthStub(channel)

        async def health() -> set[int]:
            names = ("", SERVICE)
            found = {(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}
            status, _ = await http(server.metrics_address, "GET /readyz HTTP/1.1")
            assert (status == 200) == (found == {SERVING})
            if hasattr(stub, "List"):  # newer versions of grpcio-health-checking have it
                listed = (await stub.List(health_pb2.HealthListRequest())).statuses
                assert {name: answer.status for name, answer in listed.items()} == dict.fromkeys(
                    names, found.copy().pop()
                )
            return found

        assert await health() == {SERVING}
        server.set_serving(False)
        assert await health() == {NOT_SERVING}
        server.set_serving(True)
        state["ready"] = False
        assert await health() == {NOT_SERVING}
        state.clear()  # a readiness check that fails by itself is not ready, and no crash
        assert await health() == {NOT_SERVING}
        state["ready"] = True
        assert await health() == {SERVING}
        _, details = await refusal(stub.Check(health_pb2.HealthCheckRequest(service="nothing")))
        assert details["ErrorInfo"].reason == "SERVICE_NOT_FOUND"


async def test_every_watcher_sees_each_flip_and_the_drain_and_holds_up_nothing() -> None:
    state = {"ready": True}
    settings = ServiceSettings(drain_timeout_s=20)
    handlers = FourKinds()
    block = start_server(settings, service="echo", register=handlers.register, ready=lambda: state["ready"])
    server = await block.__aenter__()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", SERVICE, SERVICE)]

        async def seen() -> list[int]:
            return [(await asyncio.wait_for(watch.read(), 3)).status for watch in watches]

        assert await seen() == [SERVING] * 3
        server.set_serving(False)
        assert await seen() == [NOT_SERVING] * 3
        server.set_serving(True)
        assert await seen() == [SERVING] * 3
        watches.pop().cancel()  # one that leaves doesn't take the others' news with it
        state["ready"] = False
        assert await seen() == [NOT_SERVING] * 2
        state["ready"] = True
        assert await seen() == [SERVING] * 2
        started_s = time.monotonic()
        ending = asyncio.create_task(block.__aexit__(None, None, None))
        assert await seen() == [NOT_SERVING] * 2
        assert [await watch.read() for watch in watches] == [grpc.aio.EOF] * 2
        await ending
        assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("path", ["v1alpha", "v1"])
async def test_reflection_lists_the_services_and_describes_them(path: str) -> None:
    async with serving() as (_, channel):
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
        ]
        if path == "v1alpha":
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))
        else:
            call = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter(requests))
        listed, described = [answer async for answer in call]
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert b"HealthCheckRequest" in described.file_descriptor_response.file_descriptor_proto[0]


async def test_a_drain_waits_for_the_call_that_runs_and_refuses_new_ones() -> None:
    entered, release, drained = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def behave(request: bytes) -> bytes:
        if request == b"slow":
            entered.set()
            await release.wait()
        return request

    async def on_drain() -> None:
        # calls still are answered while a service saves its sessions
        assert await start_call(channel, "unary_unary", b"during") == b"during"
        drained.set()

    handlers = FourKinds(behave)
    settings = ServiceSettings(drain_timeout_s=20)
    block = start_server(settings, service="echo", register=handlers.register, on_drain=on_drain)
    server = await block.__aenter__()
    channel = grpc.aio.insecure_channel(server.address)
    slow = asyncio.create_task(answers(start_call(channel, "unary_unary", b"slow")))
    await asyncio.wait_for(entered.wait(), 2)
    ending = asyncio.create_task(block.__aexit__(None, None, None))
    await asyncio.wait_for(drained.wait(), 2)
    assert (await http(server.metrics_address, "GET /readyz HTTP/1.1"))[0] == 503
    await asyncio.sleep(0.2)
    async with grpc.aio.insecure_channel(server.address) as late:
        with pytest.raises(grpc.RpcError) as caught:
            await start_call(late, "unary_unary", b"late")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not ending.done()
    release.set()
    assert await slow == [b"slow"]
    await asyncio.wait_for(ending, 2)
    await server.wait_closed()
    await channel.close()


@pytest.mark.parametrize("drain", ["hangs", "fails", "none"])
async def test_a_drain_ends_in_its_time_whatever_a_service_does(drain: str, caplog: pytest.LogCaptureFixture) -> None:
    async def forever(request: bytes = b"") -> bytes:
        await asyncio.Event().wait()
        return b""

    async def on_drain() -> None:
        if drain == "hangs":
            await forever()
        raise RuntimeError("could not save")

    async with serving(forever, settings={"drain_timeout_s": 0.3}, on_drain=None if drain == "none" else on_drain) as (
        _,
        channel,
    ):
        call = start_call(channel, "unary_unary")
        waiting = asyncio.create_task(answers(call))
        await asyncio.sleep(0.05)
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 2
    (failure,) = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(failure, grpc.RpcError | asyncio.CancelledError)
    expected = {"hangs": "the drain took more than its 0.3 s", "fails": "the drain failed", "none": ""}
    assert expected[drain] in caplog.text


async def test_a_taken_port_is_an_error_that_names_the_address() -> None:
    async with serving() as (server, _):
        taken = int(server.address.rpartition(":")[2])
        with pytest.raises(OSError, match=f"127.0.0.1:{taken}"):
            async with serving(settings={"port": taken}):
                pass
        taken = int(server.metrics_address.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with serving(settings={"metrics_port": taken}):
                pass


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0", 200),
        ("GET /healthz HTTP/1.1", 200),
        ("GET /readyz?verbose HTTP/1.0", 200),
        ("HEAD /metrics HTTP/1.1", 200),
        ("POST /metrics HTTP/1.1", 405),
        ("GET /etc/passwd HTTP/1.1", 404),
        ("\x00\x01 nonsense", 405),
    ],
)
async def test_the_http_port_answers_what_it_has(request_text: str, status: int) -> None:
    async with serving() as (server, _):
        found, body = await http(server.metrics_address, request_text)
        assert found == status
        if "openmetrics" in request_text:
            assert body.endswith("# EOF\n")
        if request_text.startswith("HEAD"):
            assert body == ""


async def test_an_http_client_that_sends_nothing_or_too_much_holds_up_nobody() -> None:
    async with serving() as (server, _):
        address = server.metrics_address.rsplit(":", 1)
        _, silent = await asyncio.open_connection(*address)
        reader, flood = await asyncio.open_connection(*address)
        flood.write(b"x" * 100_000)
        assert await asyncio.wait_for(reader.read(), 2) == b""
        assert (await http(server.metrics_address, "GET /healthz HTTP/1.1"))[0] == 200
        started_s = time.monotonic()
    assert time.monotonic() - started_s < 2
    silent.close()
    flood.close()


async def test_a_traced_call_is_the_exemplar_of_its_bucket() -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with serving() as (server, channel):
        for traceparent in ("nonsense", f"00-{trace_id}-00f067aa0ba902b7-01"):
            await start_call(channel, "unary_unary", metadata=[("traceparent", traceparent)])
        accept = "Accept: application/openmetrics-text; version=1.0.0"
        _, page = await http(server.metrics_address, f"GET /metrics HTTP/1.1\r\n{accept}")
        assert f'# {{trace_id="{trace_id}"}}' in page
        assert "nonsense" not in page
        assert 'worldtree_observer_failures_total{service="echo"} 0.0' in page


async def test_two_servers_in_one_process_count_their_own() -> None:
    async with serving() as (first, channel), serving() as (second, _):
        await start_call(channel, "unary_unary")
        assert count(await series(first), "unary_unary", "OK") == 1
        assert count(await series(second), "unary_unary", "OK") == 0
