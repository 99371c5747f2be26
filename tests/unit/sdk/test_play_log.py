"""Whatever a play was asked, and wherever it breaks off: nothing is lost, nothing done twice, counts stay one's."""

from collections import deque
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from worldtree.play_log import PlayLog
from worldtree.video.v1 import video_generator_pb2 as pb

Request, Response = pb.PlayRequest, pb.PlayResponse


def actions(*ids: int) -> list[pb.Action]:
    return [pb.Action(id=each) for each in ids]


def begin(*ids: int, **options: object) -> PlayLog:
    request = Request(session="s.a", begin=Request.Begin(actions=actions(*ids), **options))  # type: ignore[arg-type]
    return PlayLog(request.SerializeToString(), request)


def act(*ids: int, replace: bool = False) -> bytes:
    return Request(act=Request.Act(actions=actions(*ids), replace=replace)).SerializeToString()


PAUSE = Request(pause=Request.Pause()).SerializeToString()
RESUME = Request(resume=Request.Resume()).SerializeToString()
STOP = Request(stop=Request.Stop()).SerializeToString()
FORK = Request(fork=Request.Fork(count=1)).SerializeToString()


def rewind(chunk_count: int) -> bytes:
    return Request(rewind=Request.Rewind(chunk_count=chunk_count)).SerializeToString()


def begun(log: PlayLog, chunk_index: int = 0) -> None:
    log.read(Response(begun=Response.Begun(session=pb.Session(session="s.a", chunk_index=chunk_index))))


def resumed(log: PlayLog) -> Response:
    message = Response(resumed=Response.Resumed(chunk_index=log.next_index or 0, rehomed=True))
    assert log.read(message)
    return message


def played(log: PlayLog, index: int, action: int, done_count: int) -> Response.Played:
    chunk = pb.Chunk(index=index, action=pb.Action(id=action), state_hash=str(index))
    message = Response(played=Response.Played(chunk=chunk, done_action_count=done_count))
    assert log.read(message)
    return message.played


def taken(log: PlayLog) -> list[str]:
    """All that goes to the replica now, in words; it has said where it stands."""
    if not log._opened:
        assert log.take() is None, "nothing is sent before that"
        resumed(log) if log.begun else begun(log, log.next_index or 0)
    words = []
    while (asked := log.take()) is not None:
        ids = [each.id for each in Request.FromString(asked.raw).act.actions]
        words.append(asked.control + ("!" if asked.replaces else "") + "".join(f" {each}" for each in ids))
    return words


def resume_from(log: PlayLog) -> Request.Continue:
    message = Request.FromString(log.begin())
    assert message.session == "s.a"
    assert not message.begin.actions
    return message.begin.resume_from


def test_a_play_that_was_not_disturbed_is_passed_on_byte_for_byte() -> None:
    request = Request(session="s.a", begin=Request.Begin(fps=5))
    log = PlayLog(request.SerializeToString(), request)
    assert log.begin() == request.SerializeToString()
    begun(log)
    for raw in (act(2, 3), PAUSE, b"\xff\xff", act(), STOP):
        log.add(raw)
        asked = log.take()
        assert asked is not None
        assert asked.raw == raw
    assert not log.restarted


def test_it_goes_on_where_the_reader_stands_with_what_is_not_done() -> None:
    log = begin(1, 2, 3, fps=5, lookahead_chunks=3, idle=Request.IDLE_REPEAT)
    log.add(act(4, 5))
    taken(log)
    begun(log, chunk_index=10)
    for number in range(4):
        played(log, 10 + number, number + 1, number + 1)
    log.restart()
    message = Request.FromString(log.begin())
    assert (message.begin.fps, message.begin.lookahead_chunks, message.begin.idle) == (5, 3, Request.IDLE_REPEAT)
    place = resume_from(log)
    assert place.chunk_index == 14
    assert [(each.index, each.action.id, each.state_hash) for each in place.delivered] == [
        (10 + number, number + 1, str(10 + number)) for number in range(4)
    ]
    assert taken(log) == ["act 5"]
    resumed(log)
    assert played(log, 14, 5, 1).done_action_count == 5


def test_only_the_last_chunks_are_kept_and_none_that_a_rewind_took_back() -> None:
    log = begin()
    begun(log)
    for index in range(20):
        played(log, index, 0, 0)
    log.add(rewind(3))
    taken(log)
    log.restart()
    assert resume_from(log).chunk_index == 20
    assert [each.index for each in resume_from(log).delivered] == list(range(9, 20)), (
        "three more: the rewind may have been done, and nobody told"
    )
    taken(log)
    resumed(log)
    log.read(Response(rewound=Response.Rewound(chunk_index=17)))
    played(log, 17, 0, 0)
    log.restart()
    assert resume_from(log).chunk_index == 18
    assert [each.index for each in resume_from(log).delivered] == list(range(10, 18))
    for index in range(18, 1000):
        played(log, index, 0, 0)
    assert len(log._delivered) == 256


def test_before_a_replica_has_begun_it_is_asked_for_nothing_so_it_can_be_begun_anew() -> None:
    log = begin(1, 2, fps=5)
    log.add(act(3))
    log.add(rewind(1))
    assert Request.FromString(log.begin()) == Request(session="s.a", begin=Request.Begin(fps=5))
    assert log.take() is None, "what it did and journaled, nobody could tell from what it did not do"
    log.restart()
    assert not Request.FromString(log.begin()).begin.HasField("resume_from")
    assert log.take() is None
    begun(log, 4)
    assert log.next_index == 4
    assert taken(log) == ["rewind"]
    log.restart()
    assert log.take() is None, "nor before it has resumed"
    assert taken(log) == ["rewind"]


def test_a_client_that_goes_on_with_a_play_itself_is_taken_at_its_word() -> None:
    place = Request.Continue(chunk_index=3, delivered=[Request.Continue.Delivered(index=2)])
    log = begin(resume_from=place)
    log.restart()
    assert resume_from(log) == place


def test_controls_go_before_the_actions_that_wait_and_keep_their_order() -> None:
    log = begin()
    begun(log)
    log.restart()
    for raw in (act(1), PAUSE, act(2), FORK, RESUME):
        log.add(raw)
    log.end()
    assert taken(log) == ["pause", "fork", "resume", "act 1", "act 2", "end"]


def test_what_would_be_forgotten_anyway_is_not_sent() -> None:
    for raw, word in ((rewind(1), "rewind"), (STOP, "stop"), (act(9, replace=True), "act! 9")):
        log = begin(1, 2)
        begun(log)
        log.add(act(3))
        taken(log)
        log.add(raw)
        taken(log)
        log.restart()
        log.add(FORK)
        assert sorted(taken(log)) == sorted(["fork", word])


def test_an_answered_control_is_not_asked_again_and_an_open_one_is() -> None:
    log = begin()
    begun(log)
    for raw in (FORK, FORK, PAUSE):
        log.add(raw)
    taken(log)
    log.read(Response(forked=Response.Forked()))
    log.restart()
    assert taken(log) == ["fork", "pause"]


def test_a_paused_play_is_paused_again_and_the_client_is_not_told_twice() -> None:
    log = begin(1)
    begun(log)
    log.add(PAUSE)
    taken(log)
    assert log.read(Response(paused=Response.Paused()))
    for _ in range(2):
        log.restart()
        assert taken(log) == ["pause", "act 1"]
        resumed(log)
        assert not log.read(Response(paused=Response.Paused()))
    log.add(RESUME)
    taken(log)
    log.restart()
    assert taken(log) == ["pause", "resume", "act 1"]
    resumed(log)
    assert not log.read(Response(paused=Response.Paused()))
    assert log.read(Response(resumed=Response.Resumed()))
    log.restart()
    assert taken(log) == ["act 1"]


def test_a_play_that_repeats_goes_on_repeating_and_counts_nothing_twice() -> None:
    log = begin(1, 2, idle=Request.IDLE_REPEAT)
    begun(log)
    taken(log)
    for index, (action, done_count) in enumerate([(1, 1), (2, 2), (2, 2)]):
        played(log, index, action, done_count)
    for _ in range(2):
        log.restart()
        assert taken(log) == ["act 2"]
    resumed(log)
    message = Response(played=Response.Played(chunk=pb.Chunk(index=3, action=pb.Action(id=2)), done_action_count=1))
    message.played.control_latency.FromMilliseconds(5)
    assert log.read(message)
    assert message.played.done_action_count == 2
    assert not message.played.HasField("control_latency"), "to the client it is a repeat"
    assert log.kept_bytes == 0
    log.add(act(7))
    log.restart()
    assert taken(log) == ["act 7"], "it has something else to do, and to repeat"
    assert played(log, 4, 7, 1).done_action_count == 3


def test_what_ends_the_repeating_ends_it_after_a_restart_too() -> None:
    for raw in (rewind(1), STOP, act(9, replace=True)):
        log = begin(1, idle=Request.IDLE_REPEAT)
        begun(log)
        taken(log)
        played(log, 0, 1, 1)
        log.add(raw)
        log.restart()
        assert "act 1" not in taken(log)
    log = begin(1, idle=Request.IDLE_REPEAT)
    begun(log)
    taken(log)
    played(log, 0, 1, 1)
    log.end()
    log.restart()
    assert taken(log) == ["end"]
    log = begin(1, idle=Request.IDLE_REPEAT)
    begun(log)
    taken(log)
    played(log, 0, 1, 1)
    log.add(rewind(1))
    taken(log)
    log.read(Response(rewound=Response.Rewound(chunk_index=0)))
    log.restart()
    assert taken(log) == [], "after a rewind nothing is repeated until the next action"
    waiting = begin(1)
    begun(waiting)
    taken(waiting)
    played(waiting, 0, 1, 1)
    waiting.restart()
    assert taken(waiting) == [], "it did not repeat"


def test_a_paused_play_repeats_nothing_before_its_resume() -> None:
    for later, words in (([], ["act 1"]), ([act(5)], ["act 5"])):
        log = begin(1, idle=Request.IDLE_REPEAT)
        begun(log)
        taken(log)
        played(log, 0, 1, 1)
        log.add(PAUSE)
        taken(log)
        log.read(Response(paused=Response.Paused()))
        log.restart()
        assert taken(log) == ["pause"]
        for raw in (*later, RESUME):
            log.add(raw)
        assert taken(log) == ["resume", *words]


def test_a_batch_that_is_partly_done_is_sent_without_what_is_done() -> None:
    log = begin(1)
    begun(log)
    taken(log)
    log.add(act(2, 3, 4, replace=True))
    taken(log)
    played(log, 0, 2, 2)
    log.restart()
    assert taken(log) == ["act 3 4"], "it has replaced what it had to replace"
    assert played(log, 1, 3, 1).done_action_count == 3
    log.restart()
    assert taken(log) == ["act 4"]


def test_a_rewind_has_forgotten_all_that_was_asked_before_it() -> None:
    log = begin(1, 2, 3)
    begun(log)
    log.add(rewind(1))
    log.add(act(4))
    taken(log)
    log.read(Response(rewound=Response.Rewound(chunk_index=0)))
    log.restart()
    assert taken(log) == ["act 4"]
    assert played(log, 0, 4, 1).done_action_count == 4


def test_no_more_actions_are_sent_at_once_than_a_replica_lets_wait() -> None:
    log = begin()
    begun(log)
    for number in range(300):
        log.add(act(number))
    taken(log)
    log.restart()
    log.add(FORK)
    resumed(log)
    words = taken(log)
    assert words[0] == "fork"
    assert len(words) == 257
    assert log.catching_up
    assert log.waiting_count == 44
    log.add(PAUSE)
    assert taken(log) == ["pause"], "a control does not wait"
    assert played(log, 0, 0, 10).queued_count == 44
    assert len(taken(log)) == 10
    log.add(rewind(1))
    assert taken(log) == ["rewind"]
    assert not log.catching_up
    log.add(act(1000))
    assert taken(log) == ["act 1000"], "the rest is forgotten"


def test_a_wait_for_the_replica_ends_with_its_rewind() -> None:
    log = begin()
    begun(log)
    log.add(act(*range(256)))
    taken(log)
    log.add(rewind(1))
    taken(log)
    log.restart()
    log.add(act(*range(200)))
    log.add(act(*range(200)))
    resumed(log)
    assert [word[:6] for word in taken(log)] == ["rewind", "act 0 "]
    log.read(Response(rewound=Response.Rewound()))
    assert log.waiting_count == 1, "of those after the rewind none is done"
    played(log, 0, 0, 1)
    played(log, 1, 1, 144)
    assert [word[:6] for word in taken(log)] == ["act 0 "]


def test_what_is_kept_is_counted_and_given_back() -> None:
    log = begin()
    begun(log)
    for number in range(100):
        log.add(act(number))
    log.add(FORK)
    assert log.waiting_bytes == log.kept_bytes > 100 * len(act(1))
    taken(log)
    assert log.waiting_bytes == 0
    log.read(Response(forked=Response.Forked()))
    log.restart()
    assert log.waiting_bytes == log.kept_bytes > 0
    taken(log)
    for number in range(100):
        played(log, number, number, number + 1)
    assert log.kept_bytes == log.waiting_bytes == 0


class Replica:
    """A play as the proto promises it, by hand: the session's history outlives it."""

    def __init__(self, log: PlayLog, history: list[int]) -> None:
        self.history = history
        self.queue: deque[int] = deque()
        self.done_count = 0
        self.events: deque[Response] = deque()
        self.paused = self.ending = self.over = False
        request = Request.FromString(log.begin())
        if request.begin.HasField("resume_from"):
            place = request.begin.resume_from
            for each in place.delivered:
                if each.index < len(history) and history[each.index] != each.action.id:
                    del history[each.index :]
                if each.index == len(history):
                    history.append(each.action.id)
                assert history[each.index] == each.action.id
            del history[place.chunk_index :]
            assert len(history) == place.chunk_index
            self.events.append(Response(resumed=Response.Resumed(chunk_index=len(history), rehomed=True)))
        else:
            self.events.append(Response(begun=Response.Begun(session=pb.Session(chunk_index=len(history)))))
        self.queue.extend(each.id for each in request.begin.actions)

    def ask(self, raw: bytes, is_end: bool) -> None:
        message = Request.FromString(raw)
        match "end" if is_end else message.WhichOneof("control"):
            case "act":
                if message.act.replace:
                    self.forget()
                self.queue.extend(each.id for each in message.act.actions)
            case "pause":
                self.paused = True
                self.events.append(Response(paused=Response.Paused()))
            case "resume":
                self.paused = False
                self.events.append(Response(resumed=Response.Resumed()))
            case "rewind":
                self.forget()
                del self.history[max(0, len(self.history) - message.rewind.chunk_count) :]
                self.events.append(Response(rewound=Response.Rewound(chunk_index=len(self.history))))
            case "fork":
                self.events.append(Response(forked=Response.Forked()))
            case "end":
                self.ending = True

    def forget(self) -> None:
        self.done_count += len(self.queue)
        self.queue.clear()

    def make(self) -> None:
        """One chunk, if one is due; its message waits to be read, as in a transport."""
        if self.queue and not self.paused:
            action = self.queue.popleft()
            self.done_count += 1
            chunk = pb.Chunk(index=len(self.history), action=pb.Action(id=action))
            self.history.append(action)
            self.events.append(Response(played=Response.Played(chunk=chunk, done_action_count=self.done_count)))


steps = st.lists(
    st.sampled_from(["act", "act", "act", "pause", "resume", "rewind", "fork", "take", "make", "make", "read", "die"]),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(steps)
def test_a_client_sees_one_play_wherever_it_breaks_off(todo: list[str]) -> None:
    log, history, numbers = begin(1, 2), [0, 0, 0], count(3)
    replica = Replica(log, history)
    asked: dict[str, int] = {"pause": 0, "resume": 0, "rewind": 0, "fork": 0}
    answered = dict.fromkeys(asked, 0)
    seen: list[int] = []  # the history as the client has it
    used: list[int] = []
    last_done = 0
    paused_said = 0

    def read() -> None:
        nonlocal last_done, paused_said
        if not replica.events:
            return
        message = replica.events.popleft()
        if not log.read(message):
            paused_said += 1
            return
        match message.WhichOneof("event"):
            case "begun":
                assert not seen
                seen.extend([0] * message.begun.session.chunk_index)
            case "played":
                assert message.played.chunk.index == len(seen), "no chunk twice, none left out"
                seen.append(message.played.chunk.action.id)
                used.append(message.played.chunk.action.id)
                assert message.played.done_action_count >= message.played.chunk.action.id
                assert message.played.done_action_count >= last_done
                last_done = message.played.done_action_count
            case "rewound":
                answered["rewind"] += 1
                del seen[message.rewound.chunk_index :]
            case "paused":
                answered["pause"] += 1
            case "resumed" if message.resumed.rehomed:
                assert message.resumed.chunk_index == len(seen)
            case "resumed":
                answered["resume"] += 1
            case "forked":
                answered["fork"] += 1

    read()
    for step in todo:
        match step:
            case "act":
                log.add(act(next(numbers), next(numbers)))
            case "pause":
                log.add(PAUSE)
            case "resume":
                log.add(RESUME)
            case "fork":
                log.add(FORK)
            case "rewind":
                # further back than this play began nobody could bring it again
                if len(seen) - 3 - (asked["rewind"] - answered["rewind"]) < 1:
                    continue
                log.add(rewind(1))
            case "take":
                if (found := log.take()) is not None:
                    replica.ask(found.raw, found.is_end)
            case "make":
                replica.make()
            case "read":
                read()
            case "die":
                log.restart()
                replica = Replica(log, history)
        if step in asked:
            asked[step] += 1
    log.add(RESUME)
    asked["resume"] += 1
    log.end()
    for _ in range(400):
        if (found := log.take()) is not None:
            replica.ask(found.raw, found.is_end)
        replica.make()
        read()
    assert replica.ending
    assert not replica.queue
    assert answered == asked, "each control is answered once"
    assert used == sorted(used), "actions are used in their order"
    assert seen == history
    if not asked["rewind"]:
        assert used == list(range(1, next(numbers))), "and each is used"
