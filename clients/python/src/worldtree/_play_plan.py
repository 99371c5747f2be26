"""How a play begins and what its messages mean: shared by the synchronous and the asyncio play."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from worldtree.actions import ActionLike, action_to_pb
from worldtree.convert import integer, last_frame_from_pb, played_from_pb, resumed_from_pb, session_from_pb
from worldtree.errors import InvalidRequest
from worldtree.types import Begun, Degrade, Idle, Paused, PlayedChunk, Resumed, Rewound, SessionInfo
from worldtree.video.v1 import video_generator_pb2 as pb

DEFAULT_LOOKAHEAD = 2
IDLES = {"wait": pb.PlayRequest.IDLE_WAIT, "repeat": pb.PlayRequest.IDLE_REPEAT}
DEGRADES = {None: pb.PlayRequest.DEGRADE_NONE, "nfe": pb.PlayRequest.DEGRADE_NFE}

_log = logging.getLogger("worldtree")


@dataclass(frozen=True, slots=True)
class ForkedSessions:
    """A play was forked; the client that plays turns these into worlds."""

    sessions: Sequence[SessionInfo]


@dataclass(frozen=True, slots=True)
class PlayPlan:
    """The terms of a play."""

    session: str
    fps: float
    lookahead: int
    idle: Idle
    degrade: Degrade | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.fps) or self.fps < 0:
            raise InvalidRequest(f"fps must be 0 (as fast as it goes) or more, got {self.fps}", field="fps")
        if integer(self.lookahead, field="lookahead", bits=32) < 1:
            raise InvalidRequest(f"lookahead must be 1 or more chunks, got {self.lookahead}", field="lookahead")
        if self.idle not in IDLES:
            raise InvalidRequest(f"idle must be one of {', '.join(IDLES)}, got {self.idle!r}", field="idle")
        if self.degrade not in DEGRADES:
            raise InvalidRequest(f"degrade must be 'nfe' or None, got {self.degrade!r}", field="degrade")

    @property
    def credit(self) -> int:
        """Actions of a plain iterable that may be on their way at once: enough to keep the look-ahead full, few
        enough that an endless or reactive iterable is not drained."""
        return 2 * self.lookahead

    def begin(self) -> pb.PlayRequest:
        return pb.PlayRequest(
            session=self.session,
            begin=pb.PlayRequest.Begin(
                fps=self.fps,
                lookahead_chunks=self.lookahead,
                idle=IDLES[self.idle],
                degrade=DEGRADES[self.degrade],
            ),
        )

    def act(self, action: ActionLike) -> pb.PlayRequest:
        return pb.PlayRequest(act=pb.PlayRequest.Act(actions=[action_to_pb(action)]))

    def used_an_action(self, chunk: PlayedChunk) -> bool:
        return self.idle == "wait" or chunk.control_latency_s is not None


class Rehomings:
    """What a play lived through: moves to another replica after its own was lost, which its chunks do not show."""

    def __init__(self) -> None:
        self.count = 0
        self.last: Resumed | None = None

    def saw(self, session: str, event: Resumed) -> None:
        self.count += 1
        self.last = event
        pause = "" if event.pause_s is None else f" after {event.pause_s:.2f} s"
        _log.info("the play of %s goes on from chunk %d on %s%s", session, event.chunk_index, event.replica, pause)
        if not event.bit_identical:
            _log.warning("%s is another kind of machine: new frames may differ in the last bit", event.replica)


def read_event(
    message: pb.PlayResponse, action_names: Sequence[str]
) -> PlayedChunk | Begun | Rewound | ForkedSessions | Paused | Resumed | None:
    """What a message says. None: an event that this SDK does not know yet, to be passed over."""
    match message.WhichOneof("event"):
        case "played":
            return played_from_pb(message.played, action_names)
        case "begun":
            return Begun(message.begun.session.chunk_index)
        case "rewound":
            return Rewound(message.rewound.chunk_index, last_frame_from_pb(message.rewound.last_frame))
        case "forked":
            return ForkedSessions([session_from_pb(session) for session in message.forked.sessions])
        case "paused":
            return Paused(message.paused.chunk_index)
        case "resumed":
            return resumed_from_pb(message.resumed)
        case _:
            return None
