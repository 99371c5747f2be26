"""What a status says about its replica is read from its details, never from its words alone."""

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status
from worldtree_gateway.verdicts import Failure, Verdict, judge
from worldtree_runtime.errors import (
    Aborted,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Unavailable,
    WorldtreeError,
)
from worldtree_runtime.status import to_status

CODES = {code.value[0]: code for code in grpc.StatusCode}


def ended(error: WorldtreeError) -> grpc.aio.AioRpcError:
    """The status that one of our servers makes of it."""
    status = to_status(error, request_id="r")
    trailers = grpc.aio.Metadata(*rpc_status.to_status(status).trailing_metadata)
    return grpc.aio.AioRpcError(CODES[status.code], grpc.aio.Metadata(), trailers, status.message)


def made_up(code: grpc.StatusCode, text: str, *trailers: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), text)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (Unavailable("DRAINING", "leaving", retry_after_s=1), Failure(Verdict.RELEASED)),
        (Unavailable("ENGINE_BROKEN", "ended", retry_after_s=1), Failure(Verdict.LOST)),
        (Unavailable("MODEL_LOADING", "failed to connect to all addresses", retry_after_s=1), Failure(Verdict.OTHER)),
        (FailedPrecondition("SESSION_MOVED", "x", subject="s", replica="b"), Failure(Verdict.MOVED, "b")),
        (FailedPrecondition("SESSION_MOVED", "x", subject="s"), Failure(Verdict.OTHER)),
        (FailedPrecondition("KV_WINDOW_FULL", "x", subject="s", replica="b"), Failure(Verdict.OTHER)),
        (Exhausted("KV_CACHE_FULL", "x", retry_after_s=1), Failure(Verdict.FULL)),
        (Unavailable("STORE_UNAVAILABLE", "x", retry_after_s=1), Failure(Verdict.FULL)),
        (Unavailable("MODEL_NOT_LOADED", "x", retry_after_s=1), Failure(Verdict.FULL)),
        (Aborted("SESSION_BUSY", "x"), Failure(Verdict.BUSY)),
        (Aborted("SESSION_CLOSED", "x"), Failure(Verdict.OTHER)),
        (NotFound("session", "s.a"), Failure(Verdict.NOT_FOUND)),
        (NotFound("model", "m"), Failure(Verdict.OTHER)),
        (InvalidRequest("session", "x"), Failure(Verdict.OTHER)),
    ],
)
def test_a_status_of_ours_says_it_by_its_reason(error: WorldtreeError, failure: Failure) -> None:
    assert judge(ended(error)) == failure


def test_a_status_without_details_is_the_transports() -> None:
    refused = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:9: Connection refused"
    assert judge(made_up(grpc.StatusCode.UNAVAILABLE, refused)).verdict is Verdict.UNREACHED
    assert judge(made_up(grpc.StatusCode.UNAVAILABLE, "Socket closed")).verdict is Verdict.LOST
    assert judge(made_up(grpc.StatusCode.CANCELLED, "")).verdict is Verdict.LOST
    assert judge(made_up(grpc.StatusCode.DEADLINE_EXCEEDED, "")).verdict is Verdict.OTHER
    assert judge(made_up(grpc.StatusCode.INTERNAL, "")).verdict is Verdict.OTHER
    too_large = "CLIENT: Received message larger than max (5 vs. 4)"
    assert judge(made_up(grpc.StatusCode.RESOURCE_EXHAUSTED, too_large)).verdict is Verdict.OTHER


def test_details_that_are_no_status_are_none() -> None:
    error = made_up(grpc.StatusCode.UNAVAILABLE, "", ("grpc-status-details-bin", b"\xff\xff"))
    assert judge(error).verdict is Verdict.LOST


async def test_grpc_still_says_it_in_these_words_when_nobody_listens() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:9") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary("/any.Service/Any")(b"")
    assert judge(raised.value).verdict is Verdict.UNREACHED
