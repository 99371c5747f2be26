"""Every status that a server may answer with, as the error that a program catches."""

from datetime import timedelta
from typing import Any

import pytest
import worldtree
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from worldtree._status import STATUS_TRAILER, error_from_call


def status_of(*parts: Any, message: str = "message") -> list[tuple[str, str | bytes]]:
    status = status_pb2.Status(code=1, message=message)
    for part in parts:
        packed = Packed()
        packed.Pack(part)
        status.details.append(packed)
    return [("x-request-id", "abc"), (STATUS_TRAILER, status.SerializeToString())]


def info(reason: str, **metadata: str) -> details.ErrorInfo:
    return details.ErrorInfo(reason=reason, domain="worldtree", metadata=metadata)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", worldtree.InvalidRequest),
        ("OUT_OF_RANGE", worldtree.InvalidRequest),
        ("NOT_FOUND", worldtree.NotFound),
        ("ABORTED", worldtree.Aborted),
        ("FAILED_PRECONDITION", worldtree.FailedPrecondition),
        ("RESOURCE_EXHAUSTED", worldtree.ResourceExhausted),
        ("UNAVAILABLE", worldtree.Unavailable),
        ("DATA_LOSS", worldtree.DataLoss),
        ("DEADLINE_EXCEEDED", worldtree.DeadlineExceeded),
        ("UNIMPLEMENTED", worldtree.Unimplemented),
        ("UNAUTHENTICATED", worldtree.Unauthenticated),
        ("PERMISSION_DENIED", worldtree.PermissionDenied),
        ("CANCELLED", worldtree.Cancelled),
        ("INTERNAL", worldtree.InternalError),
        ("UNKNOWN", worldtree.WorldtreeError),
        ("ALREADY_EXISTS", worldtree.WorldtreeError),
    ],
)
def test_each_code_has_its_error(code: str, kind: type[worldtree.WorldtreeError]) -> None:
    error = error_from_call(code, "plain", status_of(info("SOME_REASON", limit="4"), message="from the status"))
    assert type(error) is kind
    assert (error.code, error.reason, error.metadata) == (code, "SOME_REASON", {"limit": "4"})
    assert error.message == "from the status"
    assert error.request_id == "abc"


def test_a_bad_request_names_its_fields() -> None:
    bad = details.BadRequest(
        field_violations=[
            details.BadRequest.FieldViolation(field="nfe", description="must be 1, 2 or 4"),
            details.BadRequest.FieldViolation(field="seed", description="must be 0 or more"),
        ]
    )
    error = error_from_call("INVALID_ARGUMENT", "", status_of(info("INVALID_FIELD"), bad))
    assert isinstance(error, worldtree.InvalidRequest)
    assert error.field == "nfe"
    assert error.violations == {"nfe": "must be 1, 2 or 4", "seed": "must be 0 or more"}


def test_not_found_names_the_resource_and_a_remedy() -> None:
    resource = details.ResourceInfo(resource_type="start", resource_name="atlantis")
    error = error_from_call("NOT_FOUND", "", status_of(info("START_NOT_FOUND"), resource))
    assert isinstance(error, worldtree.NotFound)
    assert (error.resource_type, error.resource_name) == ("start", "atlantis")
    assert "worldtree models" in error.remedy
    assert error.remedy in str(error)


@pytest.mark.parametrize(
    ("reason", "kind"), [("SESSION_BUSY", worldtree.SessionBusy), ("SESSION_CLOSED", worldtree.SessionClosed)]
)
def test_aborts_of_sessions_have_classes_of_their_own(reason: str, kind: type[worldtree.Aborted]) -> None:
    assert type(error_from_call("ABORTED", "", status_of(info(reason)))) is kind


def test_a_reason_never_lifts_an_error_out_of_its_code() -> None:
    assert type(error_from_call("NOT_FOUND", "", status_of(info("SESSION_BUSY")))) is worldtree.NotFound


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_retry_info_says_when(code: str) -> None:
    delay = Duration()
    delay.FromTimedelta(timedelta(milliseconds=1500))
    error = error_from_call(code, "", status_of(info("POOL_FULL"), details.RetryInfo(retry_delay=delay)))
    assert isinstance(error, worldtree.ResourceExhausted | worldtree.Unavailable)
    assert error.retry_after_s == 1.5
    assert error.remedy == "try again in 1.5 s"


@pytest.mark.parametrize(("said", "fps"), [("7.5", 7.5), ("0", None), ("nan", None), ("soon", None), (None, None)])
def test_an_fps_that_cannot_be_held_comes_with_the_one_that_can(said: str | None, fps: float | None) -> None:
    metadata = {} if said is None else {"fps_possible": said}
    error = error_from_call("RESOURCE_EXHAUSTED", "", status_of(info("FPS_UNAVAILABLE", **metadata)))
    assert isinstance(error, worldtree.FpsUnavailable)
    assert error.fps_possible == fps
    assert ("fps=7.5 or less" in str(error)) is (fps is not None)
    assert "a world of fewer evaluations (nfe)" in str(error)


def test_quota_and_precondition_name_their_subject() -> None:
    quota = details.QuotaFailure(violations=[details.QuotaFailure.Violation(subject="key:demo")])
    error = error_from_call("RESOURCE_EXHAUSTED", "", status_of(info("QUOTA"), quota))
    assert isinstance(error, worldtree.ResourceExhausted)
    assert (error.subject, error.retry_after_s) == ("key:demo", None)
    failure = details.PreconditionFailure(violations=[details.PreconditionFailure.Violation(subject="session")])
    error = error_from_call("FAILED_PRECONDITION", "", status_of(info("STATE"), failure))
    assert isinstance(error, worldtree.FailedPrecondition)
    assert error.subject == "session"


def test_a_session_that_lives_elsewhere_names_the_replica_and_the_way_there() -> None:
    error = error_from_call("FAILED_PRECONDITION", "", status_of(info("SESSION_MOVED", replica="video-b")))
    assert isinstance(error, worldtree.FailedPrecondition)
    assert error.metadata == {"replica": "video-b"}
    assert "gateway" in error.remedy


def test_a_bug_of_the_server_carries_the_request_id_of_its_log() -> None:
    request = details.RequestInfo(request_id="in-the-log")
    error = error_from_call("INTERNAL", "", status_of(info("BUG"), request))
    assert error.request_id == "in-the-log"


def test_a_help_detail_is_the_remedy() -> None:
    help_ = details.Help(links=[details.Help.Link(description="close sessions you no longer use")])
    assert error_from_call("ABORTED", "", status_of(help_)).remedy == "close sessions you no longer use"


@pytest.mark.parametrize("trailer", [b"", b"\xff\xff\xff", b"\x08"])
def test_a_broken_trailer_leaves_the_code_and_the_message(trailer: bytes) -> None:
    error = error_from_call("DATA_LOSS", "corrupt", [(STATUS_TRAILER, trailer)])
    assert isinstance(error, worldtree.DataLoss)
    assert error.message == "corrupt"


def test_nobody_there_says_how_to_start_a_server() -> None:
    error = error_from_call("UNAVAILABLE", "connection refused", ())
    assert error.reason == "CONNECTION_FAILED"
    assert "worldtree up" in str(error)


def test_a_call_that_the_other_side_gives_up_has_lost_its_server() -> None:
    error = error_from_call("CANCELLED", "CANCELLED", ())
    assert isinstance(error, worldtree.Unavailable)
    assert (error.code, error.reason) == ("UNAVAILABLE", "CONNECTION_FAILED")


@pytest.mark.parametrize(
    "message", ["Locally cancelled by application!", "Channel closed!", "Channel closed due to invocation"]
)
def test_a_call_that_we_cancel_is_cancelled(message: str) -> None:
    error = error_from_call("CANCELLED", message, ())
    assert isinstance(error, worldtree.Cancelled)
    assert error.reason != "CONNECTION_FAILED"


def test_a_server_that_says_itself_that_a_call_is_cancelled_is_believed() -> None:
    assert isinstance(error_from_call("CANCELLED", "", status_of(info("GIVEN_UP"))), worldtree.Cancelled)


def test_errors_are_one_family() -> None:
    family = [getattr(worldtree, name) for name in worldtree.__all__]
    errors = [kind for kind in family if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(errors) >= 17
    assert all(issubclass(kind, worldtree.WorldtreeError) for kind in errors)
