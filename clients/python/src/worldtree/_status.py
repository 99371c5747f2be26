"""Reads a failed call's google.rpc.Status into the SDK's error family. Knows no channel, sync or async."""

from collections.abc import Iterable
from math import isfinite
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from worldtree.errors import (
    Aborted,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FpsUnavailable,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SessionBusy,
    SessionClosed,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    WorldtreeError,
)

STATUS_TRAILER = "grpc-status-details-bin"
REQUEST_ID_TRAILER = "x-request-id"
_OWN_CANCELLATIONS = ("Locally cancelled", "Channel")  # as grpcio words them: of the call, of its channel

KINDS: tuple[type[WorldtreeError], ...] = (
    InvalidRequest,
    NotFound,
    Aborted,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    DataLoss,
    DeadlineExceeded,
    Unimplemented,
    Unauthenticated,
    PermissionDenied,
    Cancelled,
    InternalError,
)
BY_CODE = {kind.code: kind for kind in KINDS} | {"OUT_OF_RANGE": InvalidRequest}
BY_REASON: dict[str, type[WorldtreeError]] = {
    "SESSION_BUSY": SessionBusy,
    "SESSION_CLOSED": SessionClosed,
    "FPS_UNAVAILABLE": FpsUnavailable,
}

Detail = TypeVar("Detail", bound=Message)
Trailers = Iterable[tuple[str, str | bytes]]


def error_from_rpc(error: grpc.RpcError) -> WorldtreeError:
    """The error behind what either kind of gRPC channel raises."""
    assert isinstance(error, (grpc.Call, grpc.aio.AioRpcError)), f"{type(error).__name__} carries no status"
    return error_from_call(error.code().name, error.details() or "", error.trailing_metadata() or ())


def error_from_call(code: str, message: str, trailers: Trailers) -> WorldtreeError:
    """The error that a call ended with: `code` by name, `message` as gRPC gives it, details out of the trailers."""
    request_id = ""
    status = status_pb2.Status()
    for key, value in trailers:
        if key == STATUS_TRAILER and isinstance(value, bytes):
            status = _parse(value)
        elif key == REQUEST_ID_TRAILER:
            request_id = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    info = _detail(status, error_details_pb2.ErrorInfo())
    request = _detail(status, error_details_pb2.RequestInfo())
    help_ = _detail(status, error_details_pb2.Help())
    reason = info.reason if info else ""
    if not reason and not status.code and (code == "UNAVAILABLE" or _is_cut(code, message)):
        # No server wrote this status: the channel itself found nobody, or lost whom it had.
        code, reason = "UNAVAILABLE", "CONNECTION_FAILED"
    error = _error_class(code, reason)(
        status.message or message or f"the call ended with {code}",
        code=code,
        reason=reason,
        metadata=dict(info.metadata) if info else {},
        remedy=help_.links[0].description if help_ and help_.links else "",
        request_id=request.request_id if request else request_id,
    )
    _add_details(error, status)
    return error


def _is_cut(code: str, message: str) -> bool:
    """Whether the other side gave the call up, as a server does that stops while a call reaches it."""
    return code == "CANCELLED" and not message.startswith(_OWN_CANCELLATIONS)


def _error_class(code: str, reason: str) -> type[WorldtreeError]:
    kind = BY_CODE.get(code, WorldtreeError)
    special = BY_REASON.get(reason)
    return special if special is not None and issubclass(special, kind) else kind


def _add_details(error: WorldtreeError, status: status_pb2.Status) -> None:
    retry = _detail(status, error_details_pb2.RetryInfo())
    retry_after_s = retry.retry_delay.ToTimedelta().total_seconds() if retry else None
    match error:
        case InvalidRequest():
            bad = _detail(status, error_details_pb2.BadRequest())
            if bad and bad.field_violations:
                error.violations = {violation.field: violation.description for violation in bad.field_violations}
                error.field = bad.field_violations[0].field
        case NotFound():
            resource = _detail(status, error_details_pb2.ResourceInfo())
            if resource:
                error.resource_type, error.resource_name = resource.resource_type, resource.resource_name
        case FailedPrecondition():
            failure = _detail(status, error_details_pb2.PreconditionFailure())
            if failure and failure.violations:
                error.subject = failure.violations[0].subject
        case ResourceExhausted():
            error.retry_after_s = retry_after_s
            quota = _detail(status, error_details_pb2.QuotaFailure())
            if quota and quota.violations:
                error.subject = quota.violations[0].subject
            if isinstance(error, FpsUnavailable):
                _add_possible_fps(error)
        case Unavailable():
            error.retry_after_s = retry_after_s
    if retry_after_s is not None and not error.remedy and "try again" not in error.message:
        error.remedy = f"try again in {retry_after_s:.3g} s"


def _add_possible_fps(error: FpsUnavailable) -> None:
    try:
        fps = float(error.metadata.get("fps_possible", ""))
    except ValueError:
        fps = 0.0
    # A play at fps 0 is one as fast as it goes, so a server that says 0 says that none could be held.
    error.fps_possible = fps if isfinite(fps) and fps > 0 else None
    if not error.remedy:
        at = "" if error.fps_possible is None else f"play at fps={error.fps_possible:g} or less, or "
        error.remedy = f"{at}play a world of fewer evaluations (nfe), or wait until another play ends"


def _parse(data: bytes) -> status_pb2.Status:
    try:
        return status_pb2.Status.FromString(data)
    except DecodeError:
        # A proxy in between may have cut the trailer; the code and the message still stand.
        return status_pb2.Status()


def _detail(status: status_pb2.Status, detail: Detail) -> Detail | None:
    """Fills `detail` from the status, or None when the status holds none of its type."""
    for packed in status.details:
        if packed.Is(detail.DESCRIPTOR) and packed.Unpack(detail):
            return detail
    return None
