"""A live play over a synchronous channel: a thread draws the controls, chunks come in by iteration."""

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Event, Semaphore, Thread
from types import TracebackType
from typing import Any, Protocol

import grpc

from worldtree._play_link import PlayLink
from worldtree._play_plan import ForkedSessions, PlayPlan, Rehomings, read_event
from worldtree._status import error_from_rpc
from worldtree._world_state import WorldState
from worldtree.actions import ActionLike, one_or_many
from worldtree.live import LiveActions
from worldtree.types import Forked, PlayedChunk, Resumed, Rewound
from worldtree.video.v1 import video_generator_pb2 as pb

# What steers a play: any iterable of actions, a queue (None in it ends the play), or LiveActions.
PlayActions = Iterable[ActionLike] | queue.Queue[Any] | LiveActions
# Called with Begun, Rewound, Forked, Paused and Resumed, in order with the chunks.
OnEvent = Callable[[Any], None]

QUEUE_POLL_S = 0.1


class Opener(Protocol):
    """Opens the stream and turns forked sessions into worlds: what a play needs of its client."""

    def open_play(self, requests: Iterator[pb.PlayRequest]) -> Any: ...

    def action_names(self) -> Sequence[str]: ...

    def adopt(self, sessions: ForkedSessions) -> tuple[Any, ...]: ...


class Play(Iterator[PlayedChunk]):
    """Iterates the chunks of a play as they come. Leaving it, closing it or dropping it ends the play at once."""

    def __init__(
        self, opener: Opener, world: WorldState, plan: PlayPlan, actions: PlayActions, *, on_event: OnEvent | None
    ) -> None:
        self._opener = opener
        self._world = world
        self._plan = plan
        self._on_event = on_event
        self._rehomings = Rehomings()
        self._ended = False
        self._action_names = opener.action_names()
        self._link = PlayLink(plan)
        self._feed = Feed(plan, self._link, actions)
        self._connect()
        self._feed.start()

    @property
    def rehomed_count(self) -> int:
        """How often the session has moved to another replica, because its own was lost. The chunks do not show it."""
        return self._rehomings.count

    @property
    def last_rehoming(self) -> Resumed | None:
        """The last of these moves: where to, and how long the play stood still. None: it never moved."""
        return self._rehomings.last

    def __next__(self) -> PlayedChunk:
        try:
            chunk = self._next_chunk()
        except BaseException:
            # Whatever it was (an interrupt, the program's on_event): nobody iterates on.
            self.close()
            raise
        if chunk is None:
            raise StopIteration
        return chunk

    def _next_chunk(self) -> PlayedChunk | None:
        while not self._ended:
            try:
                message = next(self._stream, None)
            except grpc.RpcError as error:
                if self._ended:  # closed by another thread while we waited
                    break
                if self._feed.error is not None:
                    raise self._feed.error from None
                known = error_from_rpc(error)
                delay_s = self._link.broke(known)
                if delay_s is None:
                    raise known from error
                time.sleep(delay_s)
                self._connect()
                continue
            if self._feed.error is not None:
                raise self._feed.error
            if message is None:
                self._end()
                break
            if not self._link.heard(message):
                continue
            event = read_event(message, self._action_names)
            if isinstance(event, PlayedChunk):
                if self._plan.used_an_action(event):
                    self._feed.grant()
                self._world._saw_played(event)
                return event
            self._tell(event)
        return None

    def close(self) -> None:
        """Ends the play at once. Closing twice is fine."""
        if not self._ended:
            self._world._unsettled = True
            self._end()

    def _connect(self) -> None:
        outbox: queue.SimpleQueue[pb.PlayRequest | None] = queue.SimpleQueue()
        self._stream = self._opener.open_play(iter(outbox.get, None))
        self._link.connect(outbox.put, self._stream.cancel)
        if self._ended or self._feed.error is not None:  # meanwhile, by another thread
            self._stream.cancel()

    def _end(self) -> None:
        self._ended = True
        self._stream.cancel()
        self._link.close()
        self._feed.stop()

    def _tell(self, event: Any) -> None:
        if isinstance(event, ForkedSessions):
            event = Forked(self._opener.adopt(event))
        elif isinstance(event, Rewound):
            self._world._saw_rewound(event)
        elif isinstance(event, Resumed) and event.rehomed:
            self._rehomings.saw(self._plan.session, event)
        if self._on_event is not None and event is not None:
            self._on_event(event)

    def __enter__(self) -> "Play":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()


class Feed:
    """Draws the controls of a play. It holds no reference to the Play, so that a dropped Play is collected."""

    def __init__(self, plan: PlayPlan, link: PlayLink, actions: PlayActions) -> None:
        self.error: BaseException | None = None
        self._plan = plan
        self._link = link
        self._actions = actions if isinstance(actions, (LiveActions, queue.Queue)) else one_or_many(actions)
        self._stopped = Event()
        self._credit = Semaphore(plan.credit)
        if isinstance(self._actions, LiveActions):
            self._actions.attach(self._say)

    def start(self) -> None:
        if not isinstance(self._actions, LiveActions):
            # A daemon: a program that forgets its play must still be able to end.
            Thread(target=self._draw, name="worldtree-play", daemon=True).start()

    def grant(self) -> None:
        """A chunk used up an action: one more may be sent."""
        self._credit.release()

    def stop(self) -> None:
        self._stopped.set()
        self._credit.release()
        if isinstance(self._actions, LiveActions):
            self._actions.detach()

    def _say(self, request: pb.PlayRequest | None) -> None:
        if request is None:
            self._link.end()
        else:
            self._link.ask(request)

    def _draw(self) -> None:
        try:
            for action in self._drawn():
                self._link.ask(self._plan.act(action))
            self._link.end()
        except Exception as error:  # the program's own iterable failed: iterating the play raises it
            self.error = error
            self._link.abort()

    def _drawn(self) -> Iterator[ActionLike]:
        if isinstance(self._actions, queue.Queue):
            while (action := next_of_queue(self._actions, self._stopped)) is not None:
                yield action
            return
        assert not isinstance(self._actions, LiveActions), "these come by themselves"
        actions = iter(self._actions)
        while True:
            self._credit.acquire()
            if self._stopped.is_set():
                return
            try:
                action = next(actions)
            except StopIteration:
                return
            yield action


def next_of_queue(actions: queue.Queue[Any], stopped: Event) -> Any | None:
    """The next action. None once the play has stopped: what is put then is left to the queue's next reader."""
    # The queue is the program's: nothing of ours may be put into it to wake us, so look up now and then.
    with actions.not_empty:
        while not stopped.is_set():
            if actions._qsize():
                # Not get(): one that waited on after the stop would take an action that nobody plays.
                action = actions._get()
                actions.not_full.notify()
                return action
            actions.not_empty.wait(QUEUE_POLL_S)
    return None
