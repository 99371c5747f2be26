"""The access log: for each call, what was asked, how it ended, how long it took and what it cost. Never a secret.

One line a call, among the other logs and of their form, under the name `worldtree_runtime.access_log`:

    service, method, code, seconds    always
    tenant, session                   for whom, and on what; where it is known
    cost                              frames, each counted once for each of its function evaluations
    cache                             how the answer was had: hit, miss or bypass
    request_bytes, response_bytes     of calls with one message each way
"""

import logging
from dataclasses import fields

from worldtree_runtime.call_notes import CallNotes

_log = logging.getLogger(__name__)
# Who asks for fewer logs does not mean this one: it has a setting of its own.
_log.setLevel(logging.INFO)
_NOTED = tuple(field.name for field in fields(CallNotes))


def write(
    service: str, method: str, *, code: str, seconds: float, notes: CallNotes, request_id: str, trace_id: str | None
) -> None:
    """One line."""
    known = {name: value for name in _NOTED if (value := getattr(notes, name)) is not None}
    ids = {"request_id": request_id, **({} if trace_id is None else {"trace_id": trace_id})}
    asked = {"service": service, "method": method, "code": code, "seconds": round(seconds, 6)}
    _log.info("call", extra={**asked, **known, **ids})
