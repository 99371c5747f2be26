"""What a failed call says about the replica that it failed at."""

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

STATUS_DETAILS_KEY = "grpc-status-details-bin"

# what grpc's core says when no connection was made, so that no byte of the call has left
_NOT_SENT = "failed to connect to all addresses"


class Verdict(Enum):
    """What can be done about it."""

    LOST = auto()  # the replica went away in the middle: nobody knows how far the call came
    UNREACHED = auto()  # it was away before the call was sent
    RELEASED = auto()  # it is about to leave, and has let its sessions go
    MOVED = auto()  # another replica has the session
    FULL = auto()  # it cannot take the session on now: no room, no answer of its journal, its model not loaded yet
    QUEUED = auto()  # it has taken the session on, and more to do than can wait
    BUSY = auto()  # another call holds the session
    NOT_FOUND = auto()  # it knows no such session
    OTHER = auto()  # the caller's own affair


@dataclass(frozen=True, slots=True)
class Failure:
    """A verdict, and for MOVED the replica's name."""

    verdict: Verdict
    replica: str | None = None


def judge(error: grpc.aio.AioRpcError) -> Failure:
    """Reads a status that a call ended with. One without details was made up by the transport."""
    info = error_info(error)
    reason = None if info is None else info.reason
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if info is None:
            return Failure(Verdict.UNREACHED if _NOT_SENT in (error.details() or "") else Verdict.LOST)
        case grpc.StatusCode.CANCELLED if info is None:
            return Failure(Verdict.LOST)  # the gateway cancels no call that it still waits for: its server stopped
        case grpc.StatusCode.UNAVAILABLE if reason == "DRAINING":
            return Failure(Verdict.RELEASED)
        case grpc.StatusCode.UNAVAILABLE if reason == "ENGINE_BROKEN":
            return Failure(Verdict.LOST)
        case grpc.StatusCode.UNAVAILABLE if reason in ("STORE_UNAVAILABLE", "MODEL_NOT_LOADED"):
            return Failure(Verdict.FULL)
        case grpc.StatusCode.FAILED_PRECONDITION if info is not None and reason == "SESSION_MOVED":
            replica = info.metadata.get("replica")
            return Failure(Verdict.MOVED, replica) if replica else Failure(Verdict.OTHER)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if reason == "QUEUE_FULL":
            return Failure(Verdict.QUEUED)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if info is not None:
            return Failure(Verdict.FULL)
        case grpc.StatusCode.ABORTED if reason == "SESSION_BUSY":
            return Failure(Verdict.BUSY)
        case grpc.StatusCode.NOT_FOUND if reason == "SESSION_NOT_FOUND":
            return Failure(Verdict.NOT_FOUND)
    return Failure(Verdict.OTHER)


def is_sick(error: grpc.aio.AioRpcError) -> bool | None:
    """Whether a call failed by a fault of its replica: a bug, or a connection that broke. None: that can't be told, as
    of one that was not answered in time.
    """
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return True
    if judge(error).verdict in (Verdict.LOST, Verdict.UNREACHED):
        return True
    return None if error_info(error) is None else False


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo of a status; None where it has none."""
    for detail in status_of(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info
    return None


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """A status with its details, where it has some that can be read."""
    packed = next((value for key, value in error.trailing_metadata() or () if key == STATUS_DETAILS_KEY), None)
    if isinstance(packed, bytes):
        with suppress(DecodeError):  # a backend's that is none of ours
            return status_pb2.Status.FromString(packed)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or error.code().name)
