"""Every failure of the video service: one page. Kinds and details come from the runtime's error family."""

from worldtree_runtime.errors import (
    Aborted,
    DataLoss,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Unavailable,
)


class SessionNotFound(NotFound):
    """No such session here: never made, closed, or its lease has ended."""

    def __init__(self, session: str) -> None:
        super().__init__("session", session)


class SnapshotNotFound(NotFound):
    """No such snapshot: never made, or forgotten."""

    def __init__(self, snapshot: str) -> None:
        super().__init__("snapshot", snapshot)


class SessionBusy(Aborted):
    """Another call is running on the session."""

    def __init__(self, session: str, running: str) -> None:
        super().__init__("SESSION_BUSY", f"session {session} is busy with a {running}; one at a time", session=session)


class SessionClosed(Aborted):
    """The session was closed while a call was running on it."""

    def __init__(self, session: str) -> None:
        super().__init__("SESSION_CLOSED", f"session {session} was closed", session=session)


class ChunkIndexMismatch(Aborted):
    """The session does not stand where the caller believes."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(
            "CHUNK_INDEX_MISMATCH",
            f"expected_chunk_index is {expected}, the session stands at {actual}",
            expected=str(expected),
            actual=str(actual),
        )


class KvCacheFull(Exhausted):
    """No block is free, or none for a new session, and none can be taken from a reserve."""

    def __init__(self, block_count: int, *, headroom_blocks: int = 0) -> None:
        problem = (
            f"fewer than {headroom_blocks} of the {block_count} blocks of the KV pool are free, "
            "and those are kept for the sessions that are open"
            if headroom_blocks
            else f"all {block_count} blocks of the KV pool are in use"
        )
        super().__init__(
            "KV_CACHE_FULL",
            f"{problem}; close sessions or try again later",
            retry_after_s=1.0,
            block_count=str(block_count),
            headroom_blocks=str(headroom_blocks),
        )


class KvWindowFull(FailedPrecondition):
    """A session with the policy `full` has filled the model's window."""

    def __init__(self, window_chunks: int) -> None:
        super().__init__(
            "KV_WINDOW_FULL",
            f"kv policy full holds at most {window_chunks} chunks; use sliding or sink_window for a longer session",
            subject="kv.kind",
            window_chunks=str(window_chunks),
        )


class FpsUnavailable(Exhausted):
    """A play cannot be held at its target beside the others.

    `own`: the share of the engine's time that it would take; `load`: what the others are promised of it.
    `fps_possible`: what could be held now, 0 when none could.
    """

    def __init__(self, fps: float, fps_possible: float, *, own: float, load: float, load_max: float) -> None:
        possible = f"{fps_possible:g} fps could be" if fps_possible else "no fps could be"
        super().__init__(
            "FPS_UNAVAILABLE",
            f"{fps:g} fps cannot be held now, {possible}: it would take {own:.2f} of the engine's time, "
            f"plays are promised {load:.2f} of it, and at most {load_max:.2f} may be",
            retry_after_s=1.0,
            fps=f"{fps:g}",
            fps_possible=f"{fps_possible:g}",
            play_share=f"{own:.2f}",
            play_load=f"{load:.2f}",
            play_load_max=f"{load_max:.2f}",
        )


class QueueFull(Exhausted):
    """So much is waiting to be made that the answer would come too late for whoever asks.

    `wait_s`: until it would be there; `limit_s`: how long that may be, by its deadline or by the settings.
    """

    def __init__(self, wait_s: float, limit_s: float) -> None:
        super().__init__(
            "QUEUE_FULL",
            f"the answer would take {wait_s:.2f} s with all that waits before it, and at most {limit_s:.2f} s are left",
            retry_after_s=max(0.1, wait_s - limit_s),
            wait_s=f"{wait_s:.2f}",
            limit_s=f"{limit_s:.2f}",
        )


class TooManySessions(Exhausted):
    """The replica holds as many sessions as its settings allow."""

    def __init__(self, session_count: int, limit: int) -> None:
        super().__init__(
            "SESSION_LIMIT",
            f"this replica holds {session_count} sessions, its limit is {limit}",
            retry_after_s=5.0,
            session_count=str(session_count),
            limit=str(limit),
        )


class ScenesBusy(Exhausted):
    """So many scenes wait to be drawn from prompts that one more would wait too long."""

    def __init__(self, waiting_count: int, limit: int) -> None:
        super().__init__(
            "SCENES_BUSY",
            f"{waiting_count} prompts wait for their scenes, the limit is {limit}",
            retry_after_s=1.0,
            waiting_count=str(waiting_count),
            limit=str(limit),
        )


class SceneNotFinite(DataLoss):
    """What the model drew from a prompt held a NaN or an infinity."""

    def __init__(self) -> None:
        super().__init__("MODEL_OUTPUT_NOT_FINITE", "the model gave no finite frames for the prompt's scene")


class NotFinite(DataLoss):
    """The model's answer held a NaN or an infinity for this member of a batch; its neighbours are untouched."""

    def __init__(self, chunk_index: int) -> None:
        super().__init__(
            "MODEL_OUTPUT_NOT_FINITE",
            f"the model gave no finite frames for chunk {chunk_index}",
            chunk_index=str(chunk_index),
        )


class PlayGap(FailedPrecondition):
    """A play cannot be gone on with: the session ends before the chunks that its reader says it has."""

    def __init__(self, session_index: int, chunk_index: int, delivered_count: int) -> None:
        super().__init__(
            "PLAY_GAP",
            f"the session stands at chunk {session_index}, its reader waits for chunk {chunk_index}, and resume_from "
            f"brings {delivered_count} of the chunks between them",
            subject="begin.resume_from.delivered",
            session_index=str(session_index),
            chunk_index=str(chunk_index),
            delivered_count=str(delivered_count),
        )


class PlayDiverged(DataLoss):
    """What was made again for the reader of a play that broke off is not what it was sent."""

    def __init__(self, chunk_index: int) -> None:
        super().__init__(
            "PLAY_DIVERGED",
            f"the session at chunk {chunk_index} is not the one whose chunks were delivered",
            chunk_index=str(chunk_index),
        )


class Draining(Unavailable):
    """The replica is stopping: its sessions are for others to adopt."""

    def __init__(self) -> None:
        super().__init__("DRAINING", "this replica is stopping; its sessions go on elsewhere", retry_after_s=0.1)


class EngineBroken(Unavailable):
    """A bug ended the engine of this model: nothing is made until the service is started again."""

    def __init__(self, model: str) -> None:
        super().__init__(
            "ENGINE_BROKEN",
            f"the engine of model {model} has ended by a bug; this replica needs a new start",
            retry_after_s=5.0,
            model=model,
        )


class ModelNotLoaded(Unavailable):
    """The repository holds the session's version of its model, and this replica does not serve it: not yet, or the
    package is broken.
    """

    def __init__(self, model: str, version: str) -> None:
        super().__init__(
            "MODEL_NOT_LOADED",
            f"this replica has not loaded version {version} of model {model}; its sessions wait in the journal",
            retry_after_s=1.0,
            model=model,
            version=version,
        )


class SnapshotTooLarge(FailedPrecondition):
    """A snapshot that would be lost: the store would not keep it, or no message could carry it."""

    def __init__(self, size_bytes: int, limit_bytes: int, setting: str) -> None:
        super().__init__(
            "SNAPSHOT_TOO_LARGE",
            f"the snapshot has {size_bytes} bytes, at most {limit_bytes} fit (setting {setting})",
            subject=setting,
            size_bytes=str(size_bytes),
            limit_bytes=str(limit_bytes),
        )


class SnapshotCorrupt(DataLoss):
    """The bytes are no snapshot, were cut short, or do not match their checksum."""

    def __init__(self, problem: str) -> None:
        super().__init__("SNAPSHOT_CORRUPT", f"the snapshot cannot be restored: {problem}")


class BlockCorrupt(DataLoss):
    """The bytes are no stored block, were cut short, or belong to another history, model or format."""

    def __init__(self, problem: str) -> None:
        super().__init__("BLOCK_CORRUPT", f"the stored block cannot be used: {problem}")


class SessionMoved(FailedPrecondition):
    """The journal says that another replica owns the session."""

    def __init__(self, session: str, replica: str) -> None:
        super().__init__(
            "SESSION_MOVED",
            f"session {session} is owned by replica {replica}",
            subject="session",
            session=session,
            replica=replica,
        )
        self.replica = replica


class JournalCorrupt(DataLoss):
    """What the journal holds of a session cannot be read."""

    def __init__(self, session: str, problem: str) -> None:
        super().__init__(
            "JOURNAL_CORRUPT", f"the journal of session {session} cannot be used: {problem}", session=session
        )


class JournalFolderInUse(Unavailable):
    """Another process has the journal's folder: two that wrote there would spoil each other's sessions."""

    def __init__(self, folder: str) -> None:
        super().__init__(
            "JOURNAL_FOLDER_IN_USE",
            f"another process is writing to the journal folder {folder}; give each replica its own, or use Redis",
            retry_after_s=1.0,
            folder=folder,
        )


class JournalLost(Exception):  # noqa: N818 - told to the owner of the session, never to a caller
    """A write was refused: the session was adopted by `owner` meanwhile (empty: closed, or released)."""

    def __init__(self, session: str, owner: str) -> None:
        super().__init__(f"session {session} belongs to replica {owner!r} now")
        self.session = session
        self.owner = owner


class JournalBehind(Exception):  # noqa: N818 - told to the scribe, never to a caller
    """A write was refused: the journal lacks what it builds on, so the session must be written anew."""

    def __init__(self, session: str) -> None:
        super().__init__(f"the journal lacks chunks of session {session}")
        self.session = session


class OutOfRange(InvalidRequest):
    """A number outside its limits."""

    def __init__(self, field: str, value: float, low: float, high: float) -> None:
        super().__init__(
            field, f"{field} must be {low} to {high}, got {value}", value=str(value), low=str(low), high=str(high)
        )


class UnknownPolicy(InvalidRequest):
    """No plug-in of this name is installed here."""

    def __init__(self, plugin: str, known: list[str]) -> None:
        names = ", ".join(known) or "none"
        super().__init__(
            "kv.plugin", f"kv.plugin {plugin[:80]!r} is not installed here, known: {names}", value=plugin[:80]
        )


class PolicyBroken(FailedPrecondition):
    """A KV policy's plug-in raised, or gave an answer that no session can go on with."""

    def __init__(self, plugin: str, problem: str) -> None:
        super().__init__(
            "KV_POLICY_BROKEN", f"the KV policy plug-in {plugin!r}: {problem}", subject="kv.plugin", plugin=plugin
        )
