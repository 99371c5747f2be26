"""What the gateway itself may answer; what a backend answers passes through untouched."""

from collections.abc import Sequence

from worldtree_runtime.errors import (
    DataLoss,
    DeadlineExceeded,
    Exhausted,
    InvalidRequest,
    Kind,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    WorldtreeError,
)


class SessionNotFound(NotFound):
    """No replica has the name that the session's id gives as its home."""

    def __init__(self, session: str) -> None:
        super().__init__("session", session)


class ReplicaNotFound(NotFound):
    """No replica of the service has this name."""

    def __init__(self, replica: str, known: Sequence[str]) -> None:
        super().__init__("replica", replica, known=known)


class BackendDown(Unavailable):
    """The one backend that could answer doesn't."""

    def __init__(self, section: str, *, replica: str | None, retry_after_s: float) -> None:
        name = f'{section} replica "{replica}"' if replica else f"a {section} replica"
        super().__init__(
            "BACKEND_DOWN",
            f"{name} does not answer; try again in {retry_after_s:g} s",
            retry_after_s=retry_after_s,
            service=section,
            **({"replica": replica} if replica else {}),
        )


class GatewayDraining(Unavailable):
    """A play that is to go on at another gateway, as this one is about to stop."""

    def __init__(self) -> None:
        super().__init__(
            "GATEWAY_DRAINING",
            "this gateway is about to stop: go on at another one, with resume_from, where the play's reader stands",
            retry_after_s=0.1,
        )


class NoBackend(Unavailable):
    """None of a service's backends can take a call."""

    def __init__(self, section: str, *, backend_count: int, retry_after_s: float) -> None:
        super().__init__(
            "NO_BACKEND",
            f"none of the {backend_count} {section} backends can take a call now; try again in {retry_after_s:g} s",
            retry_after_s=retry_after_s,
            service=section,
            backend_count=backend_count,
        )


class QuotaExceeded(Exhausted):
    """A key has used up what it may for now."""

    def __init__(self, key_id: str, unit: str, *, per_s: float, burst: float, wait_s: float) -> None:
        super().__init__(
            "QUOTA_EXCEEDED",
            f"key {key_id} may use {per_s:g} {unit} a second and {burst:g} at once (setting gateway.{unit}_per_s); "
            f"try again in {wait_s:.3g} s",
            retry_after_s=wait_s,
            subject=f"key:{key_id}/{unit}",
            per_s=f"{per_s:g}",
            burst=f"{burst:g}",
        )


class StreamQuotaExceeded(Exhausted):
    """A key has as many streams open as it may."""

    def __init__(self, key_id: str, limit: int) -> None:
        super().__init__(
            "STREAM_QUOTA_EXCEEDED",
            f"key {key_id} has {limit} streams open, as many as it may (setting gateway.streams_per_key): close one",
            retry_after_s=1.0,
            subject=f"key:{key_id}/streams",
            limit=limit,
        )


class TooManyPeerCalls(Exhausted):
    """An address has as many calls under way as it may."""

    def __init__(self, address: str, limit: int) -> None:
        super().__init__(
            "PEER_LIMIT",
            f"{address} has {limit} calls under way, as many as it may (setting gateway.max_peer_calls)",
            retry_after_s=1.0,
            subject=f"peer:{address}/calls",
            limit=limit,
        )


class SessionQuotaExceeded(Exhausted):
    """A tenant has as many sessions as it may."""

    def __init__(self, tenant: str, limit: int, count: int, *, wait_s: float) -> None:
        super().__init__(
            "SESSION_QUOTA_EXCEEDED",
            f"tenant {tenant} has {count} sessions and may have {limit} (setting gateway.sessions_per_tenant): delete "
            "one, or wait for a lease to end",
            retry_after_s=wait_s,
            subject=f"tenant:{tenant}/sessions",
            limit=limit,
        )


class PlayLogFull(Exhausted):
    """A play was asked for more than it can be asked for again."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            "PLAY_LOG_FULL",
            f"more than {limit_bytes} bytes of controls wait to be done (setting gateway.play_log_bytes); "
            "send them as the chunks come",
            retry_after_s=1.0,
            limit_bytes=limit_bytes,
        )


class PlayNotContinued(DataLoss):
    """The replica that a play was begun again at did not go on where its reader stands."""

    def __init__(self, replica: str | None, *, expected: int, actual: int) -> None:
        super().__init__(
            "PLAY_NOT_CONTINUED",
            f'replica "{replica}" goes on at chunk {actual}, its reader waits for chunk {expected}',
            replica=replica,
            expected=expected,
            actual=actual,
        )


class NotConfigured(Unimplemented):
    """The gateway knows the service, but was given no backend for it."""

    def __init__(self, section: str, full_name: str) -> None:
        super().__init__(
            "SERVICE_NOT_CONFIGURED",
            f"{full_name} is not served here: the setting gateway.{section} lists no HOST:PORT",
            service=full_name,
            setting=f"gateway.{section}",
        )


class BadCacheControl(InvalidRequest):
    """The metadata `cache-control` has a directive that can't be read."""

    def __init__(self, directive: str) -> None:
        super().__init__(
            "metadata[cache-control]",
            f'cache-control takes no-cache, no-store and max-age=SECONDS (a whole number), got "{directive}"',
            reason="INVALID_CACHE_CONTROL",
        )


class PurgeUnclear(InvalidRequest):
    """A purge does not say of what."""

    def __init__(self) -> None:
        super().__init__("all", "say which answers: a tenant, a digest or both, or all and neither of them")


class CredentialsMissing(Unauthenticated):
    """The gateway asks for credentials, and the caller showed none."""

    def __init__(self) -> None:
        super().__init__(
            "CREDENTIALS_MISSING",
            "this gateway asks for credentials: an API key or a token, as authorization: Bearer ... or x-api-key: ...",
        )


class CredentialsUnreadable(Unauthenticated):
    """What the caller showed has not the shape of credentials. Not repeated: it may be a secret all the same."""

    def __init__(self, expected: str) -> None:
        super().__init__("CREDENTIALS_UNREADABLE", f"the credentials can't be read: {expected}")


class NotOffered(Unauthenticated):
    """Credentials of a kind that this gateway was not set up for."""

    def __init__(self, kind: str, setting: str) -> None:
        super().__init__("CREDENTIALS_NOT_OFFERED", f"{kind} are not taken here (setting {setting})", setting=setting)


class KeyRefused(Unauthenticated):
    """An API key that is not, or no longer, known. Which of the two, and whether its id is, is nobody's business."""

    def __init__(self, key_id: str) -> None:
        super().__init__("KEY_REFUSED", f"API key wt_{key_id}_... is wrong, or was revoked", key_id=key_id)


class TokenRefused(Unauthenticated):
    """A JSON Web Token that does not hold. `fault` says in which way, for programs."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(f"TOKEN_{fault}", f"the token is refused: {message}")


class CredentialsChanged(Unauthenticated):
    """What let a stream in now stands for another tenant or role."""

    def __init__(self) -> None:
        super().__init__("CREDENTIALS_CHANGED", "the credentials stand for another tenant or role now; begin anew")


class KeysUnread(Unavailable):
    """The gateway has just started, and Redis has not told its keys yet."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            "KEYS_UNREAD",
            f"the API keys can't be read from Redis yet; try again in {retry_after_s:g} s",
            retry_after_s=retry_after_s,
        )


class AuthenticationBusy(Exhausted):
    """So many keys wait to be hashed that one more would wait too long."""

    def __init__(self, limit: int, retry_after_s: float, *, key_id: str | None = None) -> None:
        keys = "keys" if key_id is None else f"keys of the id {key_id}"
        super().__init__(
            "AUTHENTICATION_BUSY",
            f"{limit} {keys} that were not seen before are being verified, the most at a time; "
            f"try again in {retry_after_s:g} s",
            retry_after_s=retry_after_s,
            limit=limit,
        )


class OperatorsOnly(PermissionDenied):
    """A user asked for what changes things for all tenants, or shows what they do."""

    def __init__(self, method: str, role: str) -> None:
        super().__init__("OPERATORS_ONLY", f'{method} is for the role operator, got "{role}"', method=method, role=role)


class FromAWebPage(PermissionDenied):
    """A browser asks, for a page that somebody looks at and that knows no key."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            "FROM_A_WEB_PAGE",
            f"a request of a web page ({origin[:100]!a}) needs credentials: any page could steer else what is reached "
            "from where it is looked at",
        )


class ObservationRefused(WorldtreeError):  # noqa: N818 - named as the SDK's
    """The navigator cannot use an observation. Without a field it has seen it, and could not plan."""

    def __init__(self, field: str, reason: str, message: str) -> None:
        kind = Kind.INVALID if field else Kind.UNAVAILABLE
        super().__init__(kind, reason or "OBSERVATION_REFUSED", message, field=field or None)


class NavigationFailed(Unavailable):
    """A navigation ended in a way that no service of ours explains."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__("NAVIGATION_FAILED", f"{code}: {message}", retry_after_s=1.0, code=code)


class NavigatorTooSlow(DeadlineExceeded):
    """A robot that speaks openpi waited for its chunk long enough."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            "NAVIGATOR_TOO_SLOW", f"no chunk within {limit_s:g} s (setting gateway.openpi_timeout_s)", limit_s=limit_s
        )
