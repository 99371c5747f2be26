"""What is learnt of a call while it runs, for its span and its line in the access log."""

from contextvars import ContextVar
from dataclasses import dataclass

_CHARS_MAX = 253  # of what a caller says a session is called


@dataclass(slots=True)
class CallNotes:
    """None: not known. `cost`: frames, each counted once for each of its function evaluations.

    Bytes are those of the messages, where there is one each way.
    """

    tenant: str | None = None
    session: str | None = None
    cost: int | None = None
    cache: str | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None

    def name_session(self, session: object) -> None:
        """Its caller says so: made fit for a line."""
        if isinstance(session, str) and session:
            clipped = session[:_CHARS_MAX]
            self.session = clipped if clipped.isprintable() else ascii(clipped)


_notes: ContextVar[CallNotes | None] = ContextVar("worldtree_call_notes", default=None)


def set_notes(notes: CallNotes) -> None:
    """From here on this task, and each that it starts, works for the call of these notes."""
    _notes.set(notes)


def note_tenant(tenant: str) -> None:
    notes = _notes.get()
    if notes is not None:
        notes.tenant = tenant


def note_session(session: str | None) -> None:
    notes = _notes.get()
    if notes is not None:
        notes.name_session(session)


def note_cache(result: str) -> None:
    """How the answer was had: a result of `worldtree-cache`."""
    notes = _notes.get()
    if notes is not None:
        notes.cache = result


def note_cost(frames: float) -> None:
    """So many more."""
    notes = _notes.get()
    if notes is not None:
        notes.cost = (notes.cost or 0) + round(frames)
