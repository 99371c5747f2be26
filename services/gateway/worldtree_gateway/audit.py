"""The audit log: for each call, who asked what of which session, and how it ended. Never a secret, never a frame.

One line a call, among the other logs and of their form, under the name `worldtree_gateway.audit`:

    tenant, key, role    who it was; absent where that could not be established
    method, peer         what was asked, and from which address
    session, opened      the session that was named, and those that came of it
    outcome, reason      the canonical code, and why it was refused
    left_out             refusals that were not written since the last one that was, as there were too many
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import grpc.aio
from google.rpc import code_pb2  # type: ignore[import-untyped]
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.interceptors import Context, code_of
from worldtree_runtime.logs import current_request_id
from worldtree_runtime.status import to_status

from worldtree_gateway.identity import Caller
from worldtree_gateway.rate import Rate

_NAME_CHARS_MAX = 253  # of what a caller says a session is called
_REFUSALS = Rate(per_s=50, burst=100)  # who is not let in can ask as often as it likes

_log = logging.getLogger(__name__)
# Who asks for fewer logs does not mean this one: it has a setting of its own.
_log.setLevel(logging.INFO)


@dataclass(slots=True)
class Entry:
    """What is learnt of a call while it runs."""

    session: str | None = None
    opened: tuple[str, ...] = ()


_entry: ContextVar[Entry | None] = ContextVar("worldtree_audit_entry", default=None)


def note_session(session: str) -> None:
    """The call that this task works for turned out to be on `session`."""
    entry = _entry.get()
    if entry is not None:
        entry.session = session


class AuditLog:
    """`audited`: all calls, those that were refused for who asked them, or none."""

    def __init__(
        self, audited: Literal["all", "refused", "off"], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._audited = audited
        self._clock = clock
        self._arrival_s = float("-inf")  # of refusals, as their rate counts them
        self._left_out_count = 0

    @contextmanager
    def call(self, caller: Caller, method: str, context: Context) -> Iterator[Entry]:
        """Around a call that was let in."""
        entry = Entry()
        if self._audited != "all":
            yield entry
            return
        _entry.set(entry)  # a call is a task of its own, and ends with it
        outcome, reason = "OK", None
        try:
            yield entry
            outcome = code_of(context).name
        except asyncio.CancelledError:
            outcome = grpc.StatusCode.CANCELLED.name
            raise
        except grpc.aio.AbortError:
            outcome = code_of(context).name
            raise
        except Exception as error:
            outcome, reason = _told(error)
            raise
        finally:
            self._write(caller, method, context.peer(), entry, outcome, reason)

    def refused(self, caller: Caller | None, method: str, peer: str, error: WorldtreeError) -> None:
        """A call was not let in. `caller`: None where nobody knows who it was."""
        if self._audited == "off":
            return
        arrival_s, wait_s = _REFUSALS.used(self._arrival_s, self._clock(), 1)
        if wait_s > 0:
            self._left_out_count += 1
            return
        self._arrival_s = arrival_s
        left_out_count, self._left_out_count = self._left_out_count, 0
        self._write(caller, method, peer, Entry(), *_told(error), left_out_count)

    @staticmethod
    def _write(
        caller: Caller | None,
        method: str,
        peer: str,
        entry: Entry,
        outcome: str,
        reason: str | None,
        left_out_count: int = 0,
    ) -> None:
        who = (
            {} if caller is None else {"tenant": caller.tenant, "key": caller.key_id, "role": caller.role.name.lower()}
        )
        about = {
            **({} if entry.session is None else {"session": entry.session[:_NAME_CHARS_MAX]}),
            **({"opened": list(entry.opened)} if entry.opened else {}),
            **({} if reason is None else {"reason": reason}),
            **({"left_out": left_out_count} if left_out_count else {}),
        }
        _log.info("call", extra={**who, "method": method, **about, "outcome": outcome, "peer": peer})


def _told(error: Exception) -> tuple[str, str | None]:
    """The code that an error ends a call with, and its reason."""
    status = to_status(error, request_id=current_request_id() or "")
    reason = error.reason if isinstance(error, WorldtreeError) else None
    return str(code_pb2.Code.Name(status.code)), reason
