"""What a call can raise. Every error names the server's reason, the numbers it was about and what to do next."""
# ruff: noqa: N818 - the names are what callers read in a status, and the suffix would say nothing

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# What to do about a reason, where the server does not say it itself.
REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "SESSION_BUSY": "wait for the Step, Play or Rewind that runs on the session, or fork it and use the child",
        "SESSION_CLOSED": "the session was deleted or its lease ended: open a new world, or restore a snapshot",
        "SESSION_NOT_FOUND": "the session was deleted or its lease ended: open a new world, or restore a snapshot",
        "SESSION_MOVED": "the session lives on another replica now: call through the gateway, which follows it",
        "MODEL_NOT_FOUND": "list what is served with client.models() or `worldtree models`",
        "START_NOT_FOUND": "list the starts with client.models()[0].starts or `worldtree models`",
        "SNAPSHOT_NOT_FOUND": "snapshots expire: keep one with world.save(include_data=True) and restore its bytes",
        "TASK_NOT_FOUND": "list the tasks with client.multitask.tasks() or `worldtree merge tasks`",
        "MERGE_NOT_FOUND": "list the merges with client.multitask.merges() or `worldtree merge list`",
        "MERGE_NAME_TAKEN": "choose another name, or none: the method and the digest then name it",
        "NOT_A_FRONT": "make a front with client.multitask.create_merge('mm_mo') or `worldtree merge create mm_mo`",
        "CONNECTION_FAILED": "start a server with `worldtree up`, or name one with address= or WORLDTREE_ADDRESS",
    }
)


class WorldtreeError(Exception):
    """The one error family of the SDK.

    `code` is the canonical gRPC code by name, `reason` the server's UPPER_SNAKE reason, `metadata` each number of the
    message by name, `remedy` what to do next (may be empty), `request_id` what the server's log knows the call by.
    """

    code = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        remedy: str = "",
        request_id: str = "",
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.reason = reason or self.code
        self.metadata: dict[str, str] = dict(metadata or {})
        self.remedy = remedy or REMEDIES.get(self.reason, "")
        self.request_id = request_id

    def __str__(self) -> str:
        label = self.code if self.reason == self.code else f"{self.code}, {self.reason}"
        text = f"{self.message} ({label})"
        return f"{text}; {self.remedy}" if self.remedy else text


class InvalidRequest(WorldtreeError):
    """The request asks for something that no state of the server makes right. `field` is the first field at fault."""

    code = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        violations: Mapping[str, str] | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        remedy: str = "",
        request_id: str = "",
        code: str | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, remedy=remedy, request_id=request_id, code=code)
        self.violations: dict[str, str] = dict(violations or ({field: message} if field else {}))
        self.field = field or next(iter(self.violations), "")


class ObservationRefused(InvalidRequest):
    """An observation of a robot that cannot be used; the stream goes on. `observation`: which of the stream's, from 0.

    With a `field`, what it says was executed is to be said again with the next. Without, the observation was booked,
    and no plan could be made of it.
    """

    observation = 0

    @classmethod
    def of(cls, refusal: Any) -> "ObservationRefused":
        error = cls(refusal.message, field=refusal.field, reason=refusal.reason)
        error.observation = refusal.observation
        return error


class NotFound(WorldtreeError):
    """No such model, start, session, snapshot, task or merge."""

    code = "NOT_FOUND"
    resource_type = ""
    resource_name = ""


class Aborted(WorldtreeError):
    """Something else got in the way; the call may be right a moment later."""

    code = "ABORTED"


class SessionBusy(Aborted):
    """Another Step, Play or Rewind is running on the session."""


class SessionClosed(Aborted):
    """The session was closed while the call ran."""


class FailedPrecondition(WorldtreeError):
    """The request is right in itself but not in this state. `subject` names what stands in the way."""

    code = "FAILED_PRECONDITION"
    subject = ""


class ResourceExhausted(WorldtreeError):
    """No room or no quota. `retry_after_s` says when to try again, `subject` whose limit it was (may be empty)."""

    code = "RESOURCE_EXHAUSTED"
    retry_after_s: float | None = None
    subject = ""


class FpsUnavailable(ResourceExhausted):
    """A play that could not hold its fps beside the plays that are running. `fps_possible` is what could be held now;
    None: the server did not say, or none could."""

    fps_possible: float | None = None


class Unavailable(WorldtreeError):
    """Nobody could answer. Safe calls were already retried. `retry_after_s` says when to try again, if known."""

    code = "UNAVAILABLE"
    retry_after_s: float | None = None


class DataLoss(WorldtreeError):
    """A snapshot is corrupt or cut short."""

    code = "DATA_LOSS"


class DeadlineExceeded(WorldtreeError):
    """The answer did not come within the timeout."""

    code = "DEADLINE_EXCEEDED"


class Unimplemented(WorldtreeError):
    """This server does not serve the method."""

    code = "UNIMPLEMENTED"


class Unauthenticated(WorldtreeError):
    """No valid API key or token."""

    code = "UNAUTHENTICATED"


class PermissionDenied(WorldtreeError):
    """The key is known but may not do this."""

    code = "PERMISSION_DENIED"


class Cancelled(WorldtreeError):
    """The call was cancelled."""

    code = "CANCELLED"


class InternalError(WorldtreeError):
    """A bug of the server. Its text is in the server's log under `request_id`."""

    code = "INTERNAL"


class MissingExtra(WorldtreeError, ImportError):
    """A feature needs a package that an extra brings."""

    code = "FAILED_PRECONDITION"

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            reason="EXTRA_MISSING",
            metadata={"package": package, "extra": extra},
            remedy=f"install it with: pip install 'worldtree[{extra}]'",
        )
