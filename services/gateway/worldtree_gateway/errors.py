"""What the gateway itself may answer; what a backend answers passes through untouched."""

from collections.abc import Sequence

from worldtree_runtime.errors import DataLoss, Exhausted, InvalidRequest, NotFound, Unavailable, Unimplemented


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
