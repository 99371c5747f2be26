"""Live control of a play, from any thread."""

from collections.abc import Callable
from threading import Lock

from worldtree.actions import ActionsLike, actions_to_pb
from worldtree.convert import integer
from worldtree.errors import FailedPrecondition, InvalidRequest
from worldtree.video.v1 import video_generator_pb2 as pb

# What a play hears: a control, or None for the end of them.
Listener = Callable[[pb.PlayRequest | None], object]


class LiveActions:
    """Steers one play while it runs. Any thread may call; what is said before the play begins waits for it.

    A control takes effect at the next chunk that has not been started.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._listener: Listener | None = None
        self._attached = False
        self._closed = False
        self._waiting: list[pb.PlayRequest | None] = []

    def put(self, actions: ActionsLike) -> None:
        """Queues one action or a list of them."""
        self._say(pb.PlayRequest(act=pb.PlayRequest.Act(actions=actions_to_pb(actions))))

    def replace(self, actions: ActionsLike) -> None:
        """Forgets the queued actions that have not been started, and queues these."""
        self._say(pb.PlayRequest(act=pb.PlayRequest.Act(actions=actions_to_pb(actions), replace=True)))

    def pause(self) -> None:
        self._say(pb.PlayRequest(pause=pb.PlayRequest.Pause()))

    def resume(self) -> None:
        self._say(pb.PlayRequest(resume=pb.PlayRequest.Resume()))

    def rewind(self, chunk_count: int = 1) -> None:
        """Goes back; queued actions are forgotten."""
        _at_least_one(chunk_count, field="chunk_count")
        self._say(pb.PlayRequest(rewind=pb.PlayRequest.Rewind(chunk_count=chunk_count)))

    def fork(self, count: int = 1) -> None:
        """Forks the world as it stands; the children come with a Forked event."""
        _at_least_one(count, field="count", bits=32)
        self._say(pb.PlayRequest(fork=pb.PlayRequest.Fork(count=count)))

    def stop(self) -> None:
        """Ends the play after the chunk in flight; queued actions are not played."""
        self._say(pb.PlayRequest(stop=pb.PlayRequest.Stop()))

    def close(self) -> None:
        """No more controls: the play ends once the queued actions are done. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._deliver(None)

    def _say(self, request: pb.PlayRequest) -> None:
        with self._lock:
            if self._closed:
                raise FailedPrecondition("these live actions are closed", reason="LIVE_ACTIONS_CLOSED")
            self._deliver(request)

    def _deliver(self, request: pb.PlayRequest | None) -> None:
        if self._listener is None:
            self._waiting.append(request)
        else:
            self._listener(request)

    def attach(self, listener: Listener) -> None:
        """Called by a play as it begins. Raises FailedPrecondition when another play has these actions."""
        with self._lock:
            if self._attached:
                raise FailedPrecondition(
                    "these live actions already steer a play",
                    reason="LIVE_ACTIONS_IN_USE",
                    remedy="make one LiveActions for each play",
                )
            self._attached = True
            self._listener = listener
            for request in self._waiting:
                listener(request)
            self._waiting.clear()

    def detach(self) -> None:
        """Called by the play at its end. Later controls go nowhere."""
        with self._lock:
            self._listener = lambda _: None


def _at_least_one(value: int, *, field: str, bits: int = 64) -> None:
    if integer(value, field=field, bits=bits) < 1:
        raise InvalidRequest(f"{field} must be 1 or more, got {value}", field=field, metadata={field: str(value)})
