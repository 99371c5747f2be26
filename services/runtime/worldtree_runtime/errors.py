"""The one family of errors that callers may see. It knows no transport: status.py gives each its code."""
# ruff: noqa: N818 - the names are what callers read in a status, and the suffix would say nothing

import difflib
import re
from collections.abc import Sequence
from enum import Enum, auto

_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]")
_KNOWN_NAMES_SHOWN = 10
_NAME_CHARS_SHOWN = 100
_KNOWN_BYTES = 160  # of the names in the metadata, which takes no more of one value


class Kind(Enum):
    """What the caller can do about it, which is all that a code says."""

    INVALID = auto()
    NOT_FOUND = auto()
    EXHAUSTED = auto()
    ABORTED = auto()
    PRECONDITION = auto()
    UNAVAILABLE = auto()
    DATA_LOSS = auto()
    UNIMPLEMENTED = auto()
    DEADLINE = auto()
    UNAUTHENTICATED = auto()
    PERMISSION = auto()


class WorldtreeError(Exception):
    """An error with a reason for programs (UPPER_SNAKE) and a message for people.

    The message names the thing, its value and the limit; `metadata` repeats each number of the message, so that a
    program need not parse it. The optional fields become details of the status; None: has no meaning here.
    """

    def __init__(
        self,
        kind: Kind,
        reason: str,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        field: str | None = None,
        resource_type: str | None = None,
        resource_name: str | None = None,
        subject: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        assert _REASON.fullmatch(reason), f"reason must be UPPER_SNAKE of 2 to 63 characters, got {reason!r}"
        self.kind = kind
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.field = field
        self.resource_type = resource_type
        self.resource_name = resource_name
        self.subject = subject
        self.retry_after_s = retry_after_s


class InvalidRequest(WorldtreeError):
    """A field of the request can't be accepted, whatever the state of the server."""

    def __init__(self, field: str, message: str, *, reason: str = "INVALID_FIELD", **metadata: object) -> None:
        texts = {"field": field, **_texts(metadata)}
        super().__init__(Kind.INVALID, reason, message, metadata=texts, field=field)


class NotFound(WorldtreeError):
    """Nothing has this name. With `known`, the message lists the names that exist, or the closest of many; the metadata
    has their count, and as many of them as there is room for.
    """

    def __init__(
        self,
        resource_type: str,
        name: str,
        *,
        known: Sequence[str] | None = None,
        reason: str | None = None,
        **metadata: object,
    ) -> None:
        shown = name if len(name) <= _NAME_CHARS_SHOWN else name[:_NAME_CHARS_SHOWN] + "…"
        texts = {"resource_type": resource_type, "name": shown, **_texts(metadata), **_known(known)}
        super().__init__(
            Kind.NOT_FOUND,
            reason or re.sub(r"[^A-Z0-9]+", "_", resource_type.upper()) + "_NOT_FOUND",
            f'{resource_type} "{shown}" not found{_suggestion(shown, known or ())}',
            metadata=texts,
            resource_type=resource_type,
            resource_name=name,
        )


class Exhausted(WorldtreeError):
    """A limit is reached for now. `subject` names whose quota it was, where it was someone's."""

    def __init__(
        self, reason: str, message: str, *, retry_after_s: float, subject: str | None = None, **metadata: object
    ) -> None:
        texts = {"retry_after_s": f"{retry_after_s:g}", **_texts(metadata)}
        super().__init__(Kind.EXHAUSTED, reason, message, metadata=texts, retry_after_s=retry_after_s, subject=subject)


class Aborted(WorldtreeError):
    """Another call got in between: the caller may try the whole sequence again."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(Kind.ABORTED, reason, message, metadata=_texts(metadata))


class FailedPrecondition(WorldtreeError):
    """`subject` is in a state that doesn't allow this; trying again without changing that state is of no use."""

    def __init__(self, reason: str, message: str, *, subject: str, **metadata: object) -> None:
        super().__init__(Kind.PRECONDITION, reason, message, metadata=_texts(metadata), subject=subject)


class Unavailable(WorldtreeError):
    """Something this service needs is down for now."""

    def __init__(self, reason: str, message: str, *, retry_after_s: float, **metadata: object) -> None:
        texts = {"retry_after_s": f"{retry_after_s:g}", **_texts(metadata)}
        super().__init__(Kind.UNAVAILABLE, reason, message, metadata=texts, retry_after_s=retry_after_s)


class DataLoss(WorldtreeError):
    """Stored data is corrupt or gone."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(Kind.DATA_LOSS, reason, message, metadata=_texts(metadata))


class Unimplemented(WorldtreeError):
    """This server doesn't offer what was asked."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(Kind.UNIMPLEMENTED, reason, message, metadata=_texts(metadata))


class DeadlineExceeded(WorldtreeError):
    """The time that the caller gave is over, or can't be enough."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(Kind.DEADLINE, reason, message, metadata=_texts(metadata))


class Unauthenticated(WorldtreeError):
    """The caller didn't show who it is."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(Kind.UNAUTHENTICATED, reason, message, metadata=_texts(metadata))


class PermissionDenied(WorldtreeError):
    """The caller is known, and may not do this."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(Kind.PERMISSION, reason, message, metadata=_texts(metadata))


def _texts(metadata: dict[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in metadata.items()}


def _known(names: Sequence[str] | None) -> dict[str, str]:
    if names is None:
        return {}
    listed = ""
    for name in names:
        longer = f"{listed}, {name}" if listed else name
        if len(longer.encode(errors="replace")) <= _KNOWN_BYTES:
            listed = longer
    return {"known_count": str(len(names)), **({"known": listed} if listed else {})}


def _suggestion(name: str, known: Sequence[str]) -> str:
    if not known:
        return ""
    if len(known) <= _KNOWN_NAMES_SHOWN:
        return "; known: " + ", ".join(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"; close: {', '.join(close)} ({len(known)} are known)"
    return f"; {len(known)} are known"
