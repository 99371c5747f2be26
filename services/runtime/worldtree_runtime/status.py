"""Where the error family meets its gRPC status: the only place that knows both."""

import math

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from worldtree_runtime.errors import Kind, WorldtreeError

DOMAIN = "worldtree"

# A status travels in trailers, which peers cut off at 8 KiB by default (the call then ends in an unrelated error).
# The message is sent three times (percent-encoded: up to 3 bytes a byte; twice in base64): together 7 KiB at most.
MESSAGE_BYTES_MAX = 960
NAME_BYTES_MAX = 160
METADATA_BYTES_MAX = 720

_CODES = {
    Kind.INVALID: code_pb2.INVALID_ARGUMENT,
    Kind.NOT_FOUND: code_pb2.NOT_FOUND,
    Kind.EXHAUSTED: code_pb2.RESOURCE_EXHAUSTED,
    Kind.ABORTED: code_pb2.ABORTED,
    Kind.PRECONDITION: code_pb2.FAILED_PRECONDITION,
    Kind.UNAVAILABLE: code_pb2.UNAVAILABLE,
    Kind.DATA_LOSS: code_pb2.DATA_LOSS,
    Kind.UNIMPLEMENTED: code_pb2.UNIMPLEMENTED,
    Kind.DEADLINE: code_pb2.DEADLINE_EXCEEDED,
    Kind.UNAUTHENTICATED: code_pb2.UNAUTHENTICATED,
    Kind.PERMISSION: code_pb2.PERMISSION_DENIED,
}
_KINDS = {code: kind for kind, code in _CODES.items()}
_DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.QuotaFailure,
    error_details_pb2.RetryInfo,
)


def to_status(error: BaseException, *, request_id: str) -> status_pb2.Status:
    """The status that tells a caller about `error`.

    What isn't of the family becomes INTERNAL and keeps its text to itself; the caller of this function logs it.
    """
    known = _known(error)
    if known is None:
        return _bug(request_id)
    code = _CODES[known.kind]
    message = _trim(known.message, MESSAGE_BYTES_MAX)
    return _status(code, message, _error_info(known), *_helpful_details(known, message))


def from_status(status: status_pb2.Status) -> WorldtreeError | None:
    """The error that one of our services told, for another that passes it on. None: it was not of the family."""
    found = {kind.DESCRIPTOR.name: kind() for kind in _DETAILS}
    told = {name for packed in status.details for name, detail in found.items() if packed.Unpack(detail)}
    kind, info = _KINDS.get(status.code), found["ErrorInfo"]
    if kind is None or info.domain != DOMAIN:
        return None
    resource = found["ResourceInfo"] if "ResourceInfo" in told else None
    violations = [*found["PreconditionFailure"].violations, *found["QuotaFailure"].violations]
    return WorldtreeError(
        kind,
        info.reason,
        status.message,
        metadata=dict(info.metadata),
        field=found["BadRequest"].field_violations[0].field if "BadRequest" in told else None,
        resource_type=None if resource is None else resource.resource_type,
        resource_name=None if resource is None else resource.resource_name,
        subject=violations[0].subject if violations else None,
        retry_after_s=found["RetryInfo"].retry_delay.ToMilliseconds() / 1000 if "RetryInfo" in told else None,
    )


def kind_of(code: int) -> Kind | None:
    """What the caller can do about a status of this code. None: nothing, it is a bug of somebody's, or no error."""
    return _KINDS.get(code)


def is_known(error: BaseException) -> bool:
    """Whether the status of `error` tells its own text, so that a log line of it is no news to anyone."""
    return _known(error) is not None


def _known(error: BaseException) -> WorldtreeError | None:
    match error:
        case WorldtreeError():
            return error
        case BaseExceptionGroup(exceptions=members):
            # a TaskGroup wraps what its tasks raise; one bug among them makes the whole a bug
            found = [_known(member) for member in members]
            return found[0] if None not in found else None
        case _:
            return None


def _bug(request_id: str) -> status_pb2.Status:
    return _status(
        code_pb2.INTERNAL,
        f"internal error; our log has it under request id {request_id}",
        error_details_pb2.ErrorInfo(reason="BUG", domain=DOMAIN, metadata={"request_id": request_id}),
        error_details_pb2.RequestInfo(request_id=request_id),
    )


def _error_info(error: WorldtreeError) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    left_bytes = METADATA_BYTES_MAX
    for key, value in error.metadata.items():
        text = _trim(value, NAME_BYTES_MAX)
        entry_bytes = len(key) + len(text.encode())
        if entry_bytes <= left_bytes:
            info.metadata[key] = text
            left_bytes -= entry_bytes
    return info


def _helpful_details(error: WorldtreeError, message: str) -> list[Message]:
    details: list[Message] = []
    subject = None if error.subject is None else _trim(error.subject, NAME_BYTES_MAX)
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_trim(error.field, NAME_BYTES_MAX), description=message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.resource_type is not None:
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=_trim(error.resource_type, NAME_BYTES_MAX),
                resource_name=_trim(error.resource_name or "", NAME_BYTES_MAX),
                description=message,
            )
        )
    if error.kind is Kind.PRECONDITION:
        failed = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=subject, description=message
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[failed]))
    elif error.kind is Kind.EXHAUSTED and subject is not None:
        quota = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)
        details.append(error_details_pb2.QuotaFailure(violations=[quota]))
    if error.retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s)))
    return details


def _status(code: int, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _duration(seconds: float) -> Duration:
    milliseconds = math.ceil(min(max(seconds, 0.0), 86_400.0) * 1000)
    duration = Duration()
    duration.FromMilliseconds(milliseconds)
    return duration


def _trim(text: str, bytes_max: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= bytes_max:
        return encoded.decode()
    return encoded[: bytes_max - 3].decode(errors="ignore") + "…"
