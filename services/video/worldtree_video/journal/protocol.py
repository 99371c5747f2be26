"""What every journal promises."""

from collections.abc import Sequence
from typing import Protocol

from worldtree_video.journal.entries import Adopted, Entry, Head, History


class Journal(Protocol):
    """A session's recipe and steps, written by the one replica that owns it.

    Each method is one round trip, and repeating it changes nothing more. All but the last four are fenced: they
    raise JournalLost, and change nothing, when the session has another owner, or was adopted again since; and
    JournalBehind when the journal lacks what the write builds on, so the session must be written anew (`create`).
    Any may raise StoreUnavailable: then the write may have been made, or be made yet, but not after a newer one of its
    session. Writes of one session are made one after another; a journal is for one event loop.
    """

    async def create(self, head: Head, history: History, lease_end_s: float) -> None:
        """Writes a session in full, in the place of what this replica has written of it."""

    async def append(
        self, session: str, first: int, entries: Sequence[Entry], *, request_id: str, lease_end_s: float
    ) -> None:
        """Adds generated chunks, the first of which has the index `first`; what stood from there on is replaced."""

    async def rewind(self, session: str, length: int) -> None:
        """Forgets all but the first `length` generated chunks."""

    async def mark_snapshot(self, session: str, length: int) -> None:
        """Notes that the blocks in view at `length` are in the store, and drops the frames before it."""

    async def fork(self, parent: str, head: Head, length: int, lease_end_s: float) -> None:
        """Writes the session of `head` with the first `length` chunks of its parent, which do not travel."""

    async def touch(self, session: str, lease_end_s: float) -> None:
        """Moves the end of the lease."""

    async def release(self, session: str) -> None:
        """Gives a session up to whoever adopts it next."""

    async def close(self, session: str) -> None:
        """Forgets a session."""

    async def adopt(self, session: str, *, dead: str | None) -> Adopted | None:
        """Makes a session this replica's; None: the journal knows no such session.

        It may be its own (a restart), released, or of the replica `dead`; else raises SessionMoved with the owner. Of
        several that adopt at once exactly one succeeds. Raises JournalCorrupt.
        """
        ...

    async def owned(self) -> list[str]:
        """Sessions whose owner is this replica."""
        ...

    async def missing(self, sessions: Sequence[str]) -> list[str]:
        """Those of these sessions of this replica's that the journal does not know as such: lost, or adopted since."""
        ...

    async def aclose(self) -> None:
        """Gives back connections, files and the folder; nothing is forgotten."""
