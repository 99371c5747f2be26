"""What a play was asked for and has not done, and where its reader stands: enough to go on with it elsewhere."""

from collections import deque
from dataclasses import replace

from google.protobuf.message import DecodeError

from worldtree.asked import END, Asked
from worldtree.video.v1 import video_generator_pb2 as pb

RESUMES_KEY = "worldtree-resumes"  # metadata of a Play whose client goes on elsewhere when it breaks off
_LAG_CHUNK_COUNT = 8  # chunks that a replica can make again when the journal has lost the last ones
_DELIVERED_COUNT_MAX = 256  # so that a Rewind of as many, done and journaled but not answered, can be undone
# When a play is begun again, its actions come no faster than the new replica takes them: those of chunks that the old
# one had made, and nobody got, wait beside a full queue now, and together may be more than a replica lets wait.
_WINDOW_ACTION_COUNT = 256

_UNNUMBERED = 0  # an action that the client did not ask for
_ENDS_REPEATING = ("act", "rewind", "stop", END)
# what each event answers
_ANSWERS = {"paused": "pause", "resumed": "resume", "rewound": "rewind", "forked": "fork"}


class PlayLog:
    """The client's messages go in by `add` and out by `take`, each replica's through `read`, which says what the client
    gets. Between two replicas: `restart`.

    A control overtakes the actions that wait to be sent. That changes nothing that a client could rely on: Pause,
    Resume and Fork act on the session as it stands, and Rewind, Stop and an Act that replaces forget the actions that
    wait, so those are not sent at all.
    """

    def __init__(self, first: bytes, request: pb.PlayRequest) -> None:
        """`first` is the message that begins the play, `request` the same decoded."""
        self.session = request.session
        self.next_index: int | None = None  # of the chunk that the reader waits for
        self.action_count = len(request.begin.actions)
        self.done_count = 0  # actions done, of those
        self.begun = False  # the client has been told so
        self.restarted = False  # what a replica counts is no longer what the client counts
        self.waiting_bytes = 0
        self.kept_bytes = 0
        self._first = first
        self._begin = pb.PlayRequest.Begin()
        self._begin.CopyFrom(request.begin)
        self._begin.ClearField("actions")
        self._delivered: deque[pb.PlayRequest.Continue.Delivered] = deque(maxlen=_DELIVERED_COUNT_MAX)
        if request.begin.HasField("resume_from"):
            self.next_index = request.begin.resume_from.chunk_index
            self._delivered.extend(request.begin.resume_from.delivered)
        self._paused = False
        self._repeats = request.begin.idle == pb.PlayRequest.IDLE_REPEAT
        self._last: pb.Action | None = None  # what a replica repeats when nothing else is asked for
        self._untold: pb.Action | None = None  # the same, where this replica has to be told
        self._asked: list[Asked] = []
        self._taken_count = 0  # of `_asked`, from its front: this replica has them
        self._numbers: deque[int] = deque()  # of the actions that this replica has and has not done
        self._replica_done_count = 0
        self._catching_up = False
        self._opened = False  # this replica has sent its first message
        if self.action_count:
            act = pb.PlayRequest.Act(actions=request.begin.actions)
            raw = pb.PlayRequest(act=act).SerializeToString()
            self._put(Asked("act", raw, tuple(request.begin.actions), first=1, through=self.action_count))
            without = pb.PlayRequest()
            without.CopyFrom(request)
            without.begin.ClearField("actions")
            self._first = without.SerializeToString()

    @property
    def waiting_count(self) -> int:
        """Messages that wait to be sent to the replica."""
        return len(self._asked) - self._taken_count

    @property
    def catching_up(self) -> bool:
        """Whether messages wait since the play was begun again."""
        return self._catching_up

    def begin(self) -> bytes:
        """The message that begins the play at a replica."""
        if not self.restarted:
            return self._first
        begin = pb.PlayRequest.Begin()
        begin.CopyFrom(self._begin)
        if self.next_index is not None:
            # the last replica may have gone back already, which it is to do again before the client's eyes
            back_count = sum(each.back_count for each in self._asked)
            first = max(0, len(self._delivered) - _LAG_CHUNK_COUNT - back_count)
            delivered = list(self._delivered)[first:]
            begin.resume_from.CopyFrom(pb.PlayRequest.Continue(chunk_index=self.next_index, delivered=delivered))
        return pb.PlayRequest(session=self.session, begin=begin).SerializeToString()

    def add(self, raw: bytes) -> None:
        """One more message from the client."""
        try:
            message = pb.PlayRequest.FromString(raw)
        except DecodeError:
            self._put(Asked("", raw, through=self.action_count))  # the replica says what is wrong with it
            return
        control = message.WhichOneof("control") or ""
        first = self.action_count + 1
        if control == "act":
            self.action_count += len(message.act.actions)
        elif control == "begin":
            control = ""  # a mistake, which the replica names
        self._put(
            Asked(
                control,
                raw,
                tuple(message.act.actions),
                replaces=message.act.replace,
                first=first,
                through=self.action_count,
                back_count=max(0, message.rewind.chunk_count),
            )
        )
        if control == "resume":
            self._tell_last()

    def end(self) -> None:
        """The client has no more to say."""
        self._put(Asked(END, b"", through=self.action_count))

    def take(self) -> Asked | None:
        """The next message for the replica; None: there is none, or none yet.

        Before the replica has said where it stands nothing is sent: what it did and journaled before it died, nobody
        could tell from what it did not do.
        """
        if not self._opened:
            return None
        if not self.waiting_count:
            self._catching_up = False
            return None
        asked = self._asked[self._taken_count]
        held = self._catching_up and asked.actions and not asked.replaces
        if held and self._numbers and len(self._numbers) + len(asked.actions) > _WINDOW_ACTION_COUNT:
            return None
        return self._take()

    def read(self, message: pb.PlayResponse) -> bool:
        """Takes note of what the replica sent. False: that was for the gateway only.

        Counts in `message` are changed to what they are for the client, who knows of one play only.
        """
        opening, self._opened = not self._opened, True
        match message.WhichOneof("event"):
            case "begun":
                self.next_index = message.begun.session.chunk_index
                self.begun = True
            case "played":
                self._read_played(message.played)
            case "rewound":
                self._answered("rewound")
                self._last = None
                self.next_index = message.rewound.chunk_index
                while self._delivered and self._delivered[-1].index >= self.next_index:
                    self._delivered.pop()
            case "paused":
                self._paused = True
                return not self._answered("paused").ours
            case "resumed" if opening or message.resumed.rehomed:
                self.begun = True
            case "resumed":
                self._paused = False
                self._answered("resumed")
            case "forked":
                self._answered("forked")
        return True

    def restart(self) -> None:
        """The replica is gone: all that is not done waits again, to be sent to the next one after `begin`."""
        asked, self._asked, self._taken_count = self._asked, [], 0
        self.waiting_bytes = self.kept_bytes = 0
        self._numbers.clear()
        self._replica_done_count = 0
        self._catching_up = True
        self._opened = False
        self.restarted = True
        if self._paused:
            pause = pb.PlayRequest(pause=pb.PlayRequest.Pause())
            self._put(Asked("pause", pause.SerializeToString(), ours=True))
        self._untold = self._last if self._repeats else None
        for each in asked:
            if not each.ours and (undone := self._undone(each)) is not None:
                self._put(undone)
        self._tell_last()

    def _tell_last(self) -> None:
        """A replica that was never asked for an action has none to repeat, so it is asked for the last one.

        Not while the play is to stand paused, or it would be the first to be done afterwards, whatever the client has
        asked for by then.
        """
        paused = self._paused
        for each in self._asked:
            if each.control in ("pause", "resume"):
                paused = each.control == "pause"
        if self._untold is not None and not paused:
            act = pb.PlayRequest.Act(actions=[self._untold])
            raw = pb.PlayRequest(act=act).SerializeToString()
            self._put(Asked("act", raw, tuple(act.actions), first=_UNNUMBERED, through=self.done_count, ours=True))

    def _put(self, asked: Asked) -> None:
        if asked.control in _ENDS_REPEATING:
            self._untold = None
        if asked.replaces or asked.control in ("rewind", "stop"):
            for each in [each for each in self._asked[self._taken_count :] if each.control == "act"]:
                self._drop(each)
        place = len(self._asked)
        if asked.control not in ("act", END, ""):
            while place > self._taken_count and self._asked[place - 1].control in ("act", END):
                place -= 1
        self._asked.insert(place, asked)
        self.waiting_bytes += asked.size_bytes
        self.kept_bytes += asked.size_bytes

    def _take(self) -> Asked:
        asked = self._asked[self._taken_count]
        self._taken_count += 1
        self.waiting_bytes -= asked.size_bytes
        self._numbers.extend(range(asked.first, asked.first + len(asked.actions)))
        return asked

    def _drop(self, asked: Asked) -> None:
        place = next(place for place, each in enumerate(self._asked) if each is asked)
        del self._asked[place]
        self.kept_bytes -= asked.size_bytes
        if place < self._taken_count:
            self._taken_count -= 1
        else:
            self.waiting_bytes -= asked.size_bytes

    def _read_played(self, played: pb.PlayResponse.Played) -> None:
        chunk = played.chunk
        self.next_index = chunk.index + 1
        self._delivered.append(
            pb.PlayRequest.Continue.Delivered(
                index=chunk.index, action=chunk.action, nfe=chunk.timing.nfe, state_hash=chunk.state_hash
            )
        )
        self._last = chunk.action
        while self._replica_done_count < played.done_action_count and self._numbers:
            if self._numbers[0] == _UNNUMBERED:
                played.ClearField("control_latency")  # to the client it is a repeat
            self._next_done()
        self._forget_done()
        played.done_action_count = self.done_count
        played.queued_count += sum(len(each.actions) for each in self._asked[self._taken_count :])

    def _answered(self, event: str) -> Asked:
        control = _ANSWERS[event]
        for asked in self._asked[: self._taken_count]:
            if asked.control == control:
                self._drop(asked)
                if control == "rewind":
                    self.done_count = max(self.done_count, asked.through)
                    while self._numbers and self._numbers[0] <= asked.through:
                        self._next_done()
                    self._forget_done()
                return asked
        return Asked(control, b"")  # nobody asked: the client shall see it all the same

    def _next_done(self) -> None:
        self.done_count = max(self.done_count, self._numbers.popleft())
        self._replica_done_count += 1

    def _forget_done(self) -> None:
        for each in self._asked[: self._taken_count]:
            if each.control == "act":
                if each.through > self.done_count:
                    return
                self._drop(each)

    def _undone(self, asked: Asked) -> Asked | None:
        """`asked` without its actions that are done; None: nothing is left of it."""
        if asked.control != "act":
            return asked
        done_count = max(0, self.done_count - asked.first + 1)
        actions = asked.actions[done_count:]
        if asked.actions and not actions:
            return None
        if not done_count and asked.raw:
            return asked
        # one that is partly done has replaced what it had to
        replaces = asked.replaces and not done_count
        act = pb.PlayRequest.Act(actions=actions, replace=replaces)
        return replace(
            asked,
            raw=pb.PlayRequest(act=act).SerializeToString(),
            actions=actions,
            replaces=replaces,
            first=asked.first + done_count,
        )
