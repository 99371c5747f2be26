"""A play over one connection after the other: what was asked for and is not done is asked again at the next."""

import logging
import random
import time
from collections.abc import Callable
from threading import Lock

from worldtree._play_plan import PlayPlan
from worldtree.errors import DataLoss, SessionBusy, Unavailable, WorldtreeError
from worldtree.play_log import PlayLog
from worldtree.video.v1 import video_generator_pb2 as pb

RECONNECT_S = 15.0  # a gateway that stays away for longer ends the play
FIRST_DELAY_S, MAX_DELAY_S = 0.05, 1.0

_log = logging.getLogger("worldtree")


class PlayLink:
    """Any thread may call. `connect` begins the play at a new stream, `broke` says that it has ended."""

    def __init__(self, plan: PlayPlan, *, clock: Callable[[], float] = time.monotonic) -> None:
        first = plan.begin()
        self._lock = Lock()
        self._log = PlayLog(first.SerializeToString(), first)
        self._clock = clock
        self._write: Callable[[pb.PlayRequest | None], object] | None = None
        self._cancel: Callable[[], object] | None = None
        self._replica = plan.session.rpartition(".")[2]  # where the session lives, as far as is known
        self._opening = False
        self._lost_s: float | None = None
        self._delay_s = FIRST_DELAY_S

    def connect(self, write: Callable[[pb.PlayRequest | None], object], cancel: Callable[[], object]) -> None:
        """`write` takes a message, or None for the end of them, and does not wait."""
        with self._lock:
            self._write, self._cancel, self._opening = write, cancel, True
            write(pb.PlayRequest.FromString(self._log.begin()))

    def ask(self, request: pb.PlayRequest) -> None:
        """One more control."""
        with self._lock:
            self._log.add(request.SerializeToString())
            self._send()

    def end(self) -> None:
        """No more of them."""
        with self._lock:
            self._log.end()
            self._send()

    def abort(self) -> None:
        """Cancels the stream, so that whoever reads it wakes."""
        with self._lock:
            cancel = self._cancel
        if cancel is not None:
            cancel()

    def close(self) -> None:
        """The play is over: nothing is written any more."""
        with self._lock:
            if self._write is not None:
                self._write(None)
            self._write = self._cancel = None

    def heard(self, message: pb.PlayResponse) -> bool:
        """Whether a message is for the program. Its counts are changed to those of the play as a whole.

        Raises DataLoss where the play did not go on where it had been.
        """
        with self._lock:
            expected, opening, self._opening = self._log.next_index, self._opening, False
            kept = self._log.read(message)
            self._send()
            last, self._replica = self._replica, message.resumed.replica or self._replica
            if self._lost_s is None:
                return kept
            pause_s, self._lost_s, self._delay_s = self._clock() - self._lost_s, None, FIRST_DELAY_S
        if not opening or expected is None:
            return kept
        resumed = message.resumed
        if not message.HasField("resumed") or resumed.chunk_index != expected:
            raise DataLoss(
                f"the play should go on at chunk {expected}, and did not",
                reason="PLAY_NOT_CONTINUED",
                metadata={"chunk_index": str(expected)},
            )
        _log.info("the play of %s goes on at another gateway after %.2f s", self._log.session, pause_s)
        return kept and resumed.replica not in ("", last)  # to the program nothing has happened but such a move

    def broke(self, error: WorldtreeError) -> float | None:
        """After so many seconds the play may go on at another stream. None: the error is the play's end."""
        with self._lock:
            if not self._goes_on(error):
                return None
            now_s = self._clock()
            self._lost_s = now_s if self._lost_s is None else self._lost_s
            if now_s - self._lost_s > RECONNECT_S:
                return None
            if self._write is not None:
                self._write(None)  # whoever sends for the old stream waits for more
            self._write = self._cancel = None
            self._log.restart()
            delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, MAX_DELAY_S)
            return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - so that all plays of a gateway don't come at once

    def _goes_on(self, error: WorldtreeError) -> bool:
        if isinstance(error, Unavailable) and error.reason == "GATEWAY_DRAINING":
            return True
        if self._lost_s is not None:  # what the old gateway had of the session may not have ended yet
            return isinstance(error, Unavailable | SessionBusy)
        return isinstance(error, Unavailable) and error.reason == "CONNECTION_FAILED" and self._log.begun

    def _send(self) -> None:
        if self._write is None:
            return
        while (asked := self._log.take()) is not None:
            self._write(None if asked.is_end else pb.PlayRequest.FromString(asked.raw))
