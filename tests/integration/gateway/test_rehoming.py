"""Replicas die, drain and lose sessions under their calls; who called sees a pause, and nothing twice or never."""

import asyncio
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import worldtree
from collector import Collector
from worldtree.cli import doctor
from worldtree.cli.board import Reading
from worldtree.cli.top import Watch
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.placements import chosen

_BACKEND = Path(__file__).with_name("journal_backend.py")


class Replicas:
    """Journaling replicas in processes of their own, over one journal."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.ports: dict[str, int] = {}

    def spawn(self, *names: str) -> list[str]:
        """Their addresses."""
        command = [sys.executable, str(_BACKEND), "--journal", str(self.journal)]
        for name in names:
            flags = ["--replica", name, "--port", str(self.ports.get(name, 0))]
            self.processes[name] = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
        addresses = []
        for name in names:
            output = self.processes[name].stdout
            assert output is not None
            addresses.append(output.readline().strip())
            self.ports[name] = int(addresses[-1].rpartition(":")[2])
        return addresses

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def revive(self) -> bool:
        """Starts those that have died; whether there was one."""
        dead = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in dead:
            self.kill(name)
        self.spawn(*dead)
        return bool(dead)

    def mark(self, name: str) -> Path:
        path = self.journal / name
        path.touch()
        return path

    def lines(self, word: str) -> list[str]:
        path = self.journal / f"log-{word}"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def replicas(tmp_path: Path) -> Any:
    replicas = Replicas(tmp_path)
    yield replicas
    for name in list(replicas.processes):
        replicas.kill(name)


def acts(*words: str, start: int = 0) -> list[pb.Action]:
    """Actions told apart by their ids; a word is an instruction, "" none."""
    return [pb.Action(id=start + number, instruction=word) for number, word in enumerate(words)]


def turns(count: int, start: int = 0) -> list[pb.Action]:
    return acts(*[""] * count, start=start)


def begin(session: str, *actions: pb.Action, **options: Any) -> pb.PlayRequest:
    return pb.PlayRequest(session=session, begin=pb.PlayRequest.Begin(actions=actions, **options))


def act(*actions: pb.Action, replace: bool = False) -> pb.PlayRequest:
    return pb.PlayRequest(act=pb.PlayRequest.Act(actions=actions, replace=replace))


PAUSE = pb.PlayRequest(pause=pb.PlayRequest.Pause())
RESUME = pb.PlayRequest(resume=pb.PlayRequest.Resume())
STOP = pb.PlayRequest(stop=pb.PlayRequest.Stop())
FORK = pb.PlayRequest(fork=pb.PlayRequest.Fork(count=1))


def rewind(count: int) -> pb.PlayRequest:
    return pb.PlayRequest(rewind=pb.PlayRequest.Rewind(chunk_count=count))


async def all_up(client: Any) -> Any:
    (router,) = client.gateway.routers
    await client.until(lambda: all(each.usable for each in router.backends))
    return router


async def create(client: Any, home: str = "a") -> str:
    while True:
        session = (await client.stub.CreateSession(pb.CreateSessionRequest())).session.session
        if session.endswith(f".{home}"):
            return str(session)


async def quiet(client: Any) -> None:
    """No call and no task of one is left."""
    (router,) = client.gateway.routers
    await client.until(lambda: all(each.in_flight == 0 for each in router.backends))
    await client.until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("play: ")])


async def read_all(call: Any) -> list[pb.PlayResponse]:
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def played(stub: Any, *requests: pb.PlayRequest, timeout: float = 30) -> list[pb.PlayResponse]:
    """A play whose controls are all sent at once."""
    call = stub.Play(timeout=timeout)
    for request in requests:
        await call.write(request)
    await call.done_writing()
    return await read_all(call)


def events(messages: Iterable[pb.PlayResponse]) -> list[str]:
    return [str(message.WhichOneof("event")) for message in messages]


def chunks(messages: Iterable[pb.PlayResponse]) -> list[tuple[int, int, bytes, str]]:
    found = [message.played.chunk for message in messages if message.HasField("played")]
    return [(each.index, each.action.id, each.frames.tensor.data, each.state_hash) for each in found]


async def reason(client: Any, call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), client.details(raised.value)["ErrorInfo"].reason


# -- plays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["die", "die-made", "drain", "drain-made", "broken"])
async def test_a_play_goes_on_at_another_replica_as_if_nothing_had_been(replicas, open_gateway, word: str) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        router = await all_up(client)
        session = await create(client)
        actions = acts("", "", "", word, *[""] * 8)
        messages = await played(client.stub, begin(session, *actions[:5]), act(*actions[5:8]), act(*actions[8:]))

        assert [each[:2] for each in chunks(messages)] == [(index, index) for index in range(12)]
        found = events(messages)
        assert found[0] == "begun"
        assert found.count("resumed") == 1
        resumed = next(message.resumed for message in messages if message.HasField("resumed"))
        # one that was made, and is in the journal, but never arrived is made again
        assert resumed.chunk_index == next(index for index, name in enumerate(found) if name == "resumed") - 1
        assert (resumed.rehomed, resumed.replica, resumed.bit_identical) == (True, "b", True)
        assert 0 < resumed.pause_duration.ToNanoseconds() < 10e9
        counts = [message.played.done_action_count for message in messages if message.HasField("played")]
        assert counts == list(range(1, 13)), "the client counts one play"
        queued = [message.played.queued_count for message in messages if message.HasField("played")]
        assert queued[-1] == 0

        twin = await create(client, "b")
        assert chunks(await played(client.stub, begin(twin, *actions))) == chunks(messages)
        assert await client.metric("worldtree_failovers_total", service="video", kind="play", result="ok") == 1
        assert await client.metric("worldtree_failover_pause_seconds_count", service="video", kind="play") == 1
        assert router.placements.get(session) == "b"
        assert (await client.stub.Get(pb.GetRequest(session=session))).session.start == "b"
        await quiet(client)


async def test_the_trace_of_a_call_that_went_on_elsewhere_has_each_try_and_says_why(
    replicas, open_gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    addresses = replicas.spawn("a", "b")
    async with (
        Collector() as collector,
        open_gateway(*addresses, rehome_timeout_s=10, otel_endpoint=collector.endpoint) as client,
    ):
        await all_up(client)
        session = await create(client)
        messages = await played(client.stub, begin(session, *acts("", "", "die", "")))
        assert [index for index, *_ in chunks(messages)] == [0, 1, 2, 3]
        await collector.until(lambda told: told.named("/Play", kind="server") and len(told.named("pass")) >= 4)
        play = collector.one("/Play", kind="server")
        first, *_, last = collector.named("/Play", kind="client")
        passed = collector.named("pass")
    assert {first.parent, last.parent} == {play.span_id}
    assert (first.failed, first.attributes["rpc.grpc.status_code"], first.attributes["worldtree.replica"]) == (
        True,
        grpc.StatusCode.UNAVAILABLE.value[0],
        "a",
    )
    assert (last.failed, last.attributes["worldtree.replica"]) == (False, "b")
    assert play.events[0] == ("worldtree.retry", {"worldtree.verdict": "LOST", "worldtree.replica": "a"})
    told = dict(play.events)
    assert told["worldtree.failover"]["worldtree.replica"] == "b"
    assert 0 < told["worldtree.failover"]["worldtree.pause_s"] < 10
    assert not play.failed
    assert play.attributes["worldtree.session"] == session
    assert len({each.trace_id for each in passed}) == len(passed), "no two chunks are one trace"


async def test_a_replica_that_dies_before_its_begun_arrives_leaves_nothing_that_is_done_twice(
    replicas, open_gateway
) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        replicas.mark("die-beginning")
        messages = await played(client.stub, begin(session, *turns(2)), act(*turns(1, start=2)))
        assert events(messages) == ["begun", *["played"] * 3]
        assert [each[:2] for each in chunks(messages)] == [(0, 0), (1, 1), (2, 2)]
        assert (await client.stub.Get(pb.GetRequest(session=session))).session.chunk_index == 3


async def test_a_play_survives_several_replicas_one_after_the_other(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b", "c", "d"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        actions = acts("", "die", "", "die-made", "", "drain", "", "")
        messages = await played(client.stub, begin(session, *actions))
        assert [each[:2] for each in chunks(messages)] == [(index, index) for index in range(8)]
        assert events(messages).count("resumed") == 3
        counts = [message.played.done_action_count for message in messages if message.HasField("played")]
        assert counts == list(range(1, 9))
        await quiet(client)


async def test_a_play_waits_for_its_own_replica_where_it_is_the_only_one(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), rehome_timeout_s=20) as client:
        router = await all_up(client)
        session = await create(client)
        call = client.stub.Play()
        await call.write(begin(session, *acts("", "die", "")))
        await call.done_writing()
        reading = asyncio.ensure_future(read_all(call))
        await client.until(lambda: not router.backends[0].connected)
        replicas.processes.pop("a").wait()
        replicas.spawn("a")
        messages = await asyncio.wait_for(reading, 20)
        assert [each[0] for each in chunks(messages)] == [0, 1, 2]
        assert replicas.lines("adopted") == []
        await quiet(client)


async def test_a_session_that_moves_in_the_middle_of_its_play_is_followed(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        messages = await played(client.stub, begin(session, *acts("", "moved:b", "", "")))
        assert [each[0] for each in chunks(messages)] == [0, 1, 2, 3]
        assert events(messages).count("resumed") == 1
        assert replicas.lines("adopted") == [], "it was there already"


async def test_a_play_of_a_session_that_has_moved_begins_where_it_is(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        step = pb.StepRequest(session=session, actions=acts("moved:b"))
        assert (await client.stub.Step(step)).chunk_index == 1, "refused as a whole, so even one without a name is safe"
        messages = await played(client.stub, begin(session, *turns(2)))
        assert events(messages) == ["begun", "played", "played"]
        assert await client.metric("worldtree_failovers_total", service="video", kind="play", result="ok") == 0


async def test_controls_without_an_answer_are_asked_again_and_none_is_answered_twice(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        call = client.stub.Play(timeout=30)
        await call.write(begin(session, *turns(3)))
        messages = [await call.read() for _ in range(4)]
        await call.write(PAUSE)
        messages.append(await call.read())
        await call.write(act(*turns(3, start=3)))
        replicas.kill("a")
        messages.append(await call.read())  # the play is paused at b, which the client knows already
        assert events(messages) == ["begun", "played", "played", "played", "paused", "resumed"]
        assert messages[-1].resumed.rehomed
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading := asyncio.ensure_future(call.read())), 0.5)
        await call.write(FORK)
        assert (await reading).forked.sessions[0].session == "f3.b"
        await call.write(RESUME)
        rest = [await call.read() for _ in range(4)]
        assert events(rest) == ["resumed", "played", "played", "played"]
        assert not rest[0].resumed.rehomed
        assert [message.played.done_action_count for message in rest[1:]] == [4, 5, 6]
        await call.write(rewind(2))
        assert (await call.read()).rewound.chunk_index == 4
        await call.write(act(*turns(1, start=9)))
        again = await call.read()
        assert (again.played.chunk.index, again.played.done_action_count) == (4, 7)
        await call.write(STOP)
        assert await call.read() is grpc.aio.EOF
        await quiet(client)


async def test_what_the_client_says_during_the_pause_is_done_after_it(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), rehome_timeout_s=20) as client:
        router = await all_up(client)
        session = await create(client)
        call = client.stub.Play(timeout=40)
        await call.write(begin(session, *acts("", "sleep:30", "")))
        assert events([await call.read(), await call.read()]) == ["begun", "played"]
        replicas.kill("a")
        await client.until(lambda: not router.backends[0].connected)
        await call.write(act(*turns(2, start=10), replace=True))
        await call.write(FORK)
        await call.write(act(*turns(600, start=20)))
        await call.write(act(*turns(600, start=1000)))
        await call.done_writing()
        await asyncio.sleep(0.2)
        replicas.spawn("a")
        messages = await asyncio.wait_for(read_all(call), 30)
        assert events(messages)[:2] == ["resumed", "forked"]
        ids = [each[1] for each in chunks(messages)]
        assert ids == [10, 11, *range(20, 620), *range(1000, 1600)]
        counts = [message.played.done_action_count for message in messages if message.HasField("played")]
        assert counts == list(range(4, 1206)), "the two that were replaced are done too"
        await quiet(client)


async def test_a_rewind_that_was_not_answered_is_done_once(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), rehome_timeout_s=20) as client:
        router = await all_up(client)
        session = await create(client)
        call = client.stub.Play(timeout=40)
        await call.write(begin(session, *turns(5)))
        for _ in range(6):
            await call.read()
        replicas.kill("a")
        await client.until(lambda: not router.backends[0].connected)
        await call.write(rewind(2))
        await call.write(act(*turns(1, start=7)))
        await call.done_writing()
        replicas.spawn("a")
        messages = await asyncio.wait_for(read_all(call), 30)
        assert events(messages) == ["resumed", "rewound", "played"]
        assert messages[0].resumed.chunk_index == 5
        assert messages[1].rewound.chunk_index == 3
        assert chunks(messages)[0][:2] == (3, 7)


async def test_a_client_that_leaves_during_the_pause_leaves_nothing_behind(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), rehome_timeout_s=60) as client:
        router = await all_up(client)
        session = await create(client)
        calls = [client.stub.Play() for _ in range(4)]
        for call in calls:
            await call.write(begin(session))
            await call.read()
        replicas.kill("a")
        await client.until(lambda: not router.backends[0].connected)
        for call in calls:
            await call.write(act(*turns(3)))
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        await quiet(client)
        await client.until(lambda: len([t for t in asyncio.all_tasks() if "stream" in repr(t.get_coro())]) == 0)


async def test_a_pause_ends_with_its_bound_and_with_the_callers_deadline(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), rehome_timeout_s=0.6) as client:
        router = await all_up(client)
        session = await create(client)
        for timeout, code in ((None, grpc.StatusCode.UNAVAILABLE), (0.8, grpc.StatusCode.DEADLINE_EXCEEDED)):
            call = client.stub.Play(timeout=timeout)
            await call.write(begin(session))
            await call.read()
            if timeout is None:
                replicas.kill("a")
                started_s = time.monotonic()
                assert await reason(client, call.read()) == (code, "BACKEND_DOWN")
                assert 0.5 < time.monotonic() - started_s < 5
                replicas.spawn("a")
                await client.until(lambda: router.backends[0].usable)
            else:
                replicas.kill("a")
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call.read()
                assert raised.value.code() in (code, grpc.StatusCode.UNAVAILABLE)
        assert await client.metric("worldtree_failovers_total", kind="play", result="expired") >= 1
        await quiet(client)


async def test_a_replica_that_is_full_passes_a_session_on_to_the_next(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b", "c"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        first = chosen(session, ["b", "c"])
        replicas.mark(f"full-{first}")
        messages = await played(client.stub, begin(session, *acts("", "die", "")))
        assert [each[0] for each in chunks(messages)] == [0, 1, 2]
        assert replicas.lines("adopted") == [f"{session} a {'c' if first == 'b' else 'b'}"]


async def test_a_replica_that_took_a_session_on_and_has_no_time_for_it_yet_keeps_it(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b", "c"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        first = chosen(session, ["b", "c"])
        replicas.mark(f"queued-{first}")
        messages = await played(client.stub, begin(session, *acts("", "die", "")))
        assert [each[0] for each in chunks(messages)] == [0, 1, 2]
        assert replicas.lines("adopted") == [f"{session} a {first}"]


async def test_a_journal_that_is_down_too_is_waited_for(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b", "c"), rehome_timeout_s=20) as client:
        await all_up(client)
        session, other = await create(client), await create(client)
        call = client.stub.Play(timeout=30)
        await call.write(begin(session, *turns(1)))
        assert events([await call.read(), await call.read()]) == ["begun", "played"]
        down = replicas.mark("journal-down")
        asked_count = len(replicas.lines("calls"))
        replicas.kill("a")
        step = asyncio.ensure_future(client.stub.Step(pb.StepRequest(session=other, actions=turns(1)), timeout=30))
        await client.until(lambda: len(replicas.lines("calls")) >= asked_count + 6)
        assert not step.done()
        down.unlink()
        assert (await call.read()).resumed.rehomed
        assert (await step).chunk_index == 1, "it was refused as a whole each time, so no name is needed"
        call.cancel()
        await quiet(client)


async def test_a_play_waits_for_a_session_that_is_still_busy(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        busy = replicas.mark("busy-b")
        reading = asyncio.ensure_future(played(client.stub, begin(session, *acts("", "die", ""))))
        await client.until(lambda: len(replicas.lines("calls")) >= 3)
        assert not reading.done()
        busy.unlink()
        assert [each[0] for each in chunks(await asyncio.wait_for(reading, 10))] == [0, 1, 2]
        replicas.mark("busy-b")
        assert await reason(client, played(client.stub, begin(session))) == (
            grpc.StatusCode.ABORTED,
            "SESSION_BUSY",
        ), "who begins anew is told at once"


async def test_a_replica_that_hangs_ends_the_pause_at_its_bound(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=1) as client:
        await all_up(client)
        session = await create(client)
        replicas.mark("hang-b")
        started_s = time.monotonic()
        ended = await reason(client, played(client.stub, begin(session, *acts("", "die", ""))))
        assert ended == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
        assert time.monotonic() - started_s < 6
        await quiet(client)


async def test_a_play_that_fails_by_its_own_fault_is_told_so(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        for actions in (acts("refuse"), acts("", "die", "refuse")):
            ended = await reason(client, played(client.stub, begin(session, *actions)))
            assert ended == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        await quiet(client)


async def test_a_play_that_no_journal_has_waits_for_its_home_at_the_client(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        call = client.stub.Play()
        await call.write(begin(session))
        await call.read()
        (replicas.journal / f"session-{session}").unlink()
        replicas.kill("a")
        assert await reason(client, call.read()) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
        assert await client.metric("worldtree_failovers_total", kind="play", result="not_found") == 1


async def test_a_play_may_not_have_more_waiting_than_can_be_kept(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), play_log_bytes=65_536) as client:
        await all_up(client)
        session = await create(client)
        call = client.stub.Play()
        await call.write(begin(session))
        await call.write(PAUSE)
        assert events([await call.read(), await call.read()]) == ["begun", "paused"]
        await call.write(act(pb.Action(id=1, instruction="x" * 70_000)))
        assert await reason(client, call.read()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PLAY_LOG_FULL")
        await quiet(client)


async def test_what_ends_a_play_ends_it_also_while_it_looks_for_a_replica(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), play_log_bytes=65_536, rehome_timeout_s=600) as client:
        await all_up(client)
        session = await create(client)
        call = client.stub.Play()
        await call.write(begin(session))
        assert (await call.read()).HasField("begun")
        replicas.kill("a")
        (router,) = client.gateway.routers
        await client.until(lambda: not router.backends[0].connected)
        await call.write(act(pb.Action(id=1, instruction="x" * 70_000)))
        assert await reason(client, call.read()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PLAY_LOG_FULL")
        await quiet(client)


async def test_a_replica_that_this_gateway_has_yet_to_meet_keeps_its_sessions(replicas, open_gateway) -> None:
    addresses = replicas.spawn("a", "b")
    async with open_gateway(*addresses) as client:
        await all_up(client)
        session = await create(client)
    replicas.processes["a"].send_signal(signal.SIGSTOP)
    try:
        async with open_gateway(*addresses, probe_timeout_s=20, rehome_timeout_s=20) as client:
            (router,) = client.gateway.routers
            await client.until(lambda: router.backends[1].usable)
            call = asyncio.ensure_future(client.stub.Get(pb.GetRequest(session=session)))
            await asyncio.sleep(0.3)
            assert not call.done()
            replicas.processes["a"].send_signal(signal.SIGCONT)
            assert (await call).session.session == session
            assert router.place(session) == "a"
            assert router.placements.get(session) is None
    finally:
        replicas.processes["a"].send_signal(signal.SIGCONT)


async def test_a_replica_that_does_not_answer_in_its_time_is_gone(replicas, open_gateway) -> None:
    addresses = replicas.spawn("a", "b")
    async with open_gateway(*addresses) as client:
        await all_up(client)
        session = await create(client)
    replicas.kill("a")
    async with open_gateway(*addresses, probe_timeout_s=0.3, rehome_timeout_s=20) as client:
        assert (await client.stub.Get(pb.GetRequest(session=session))).session.session == session
        (router,) = client.gateway.routers
        assert router.place(session) == "b"


# -- unary calls and rollouts ----------------------------------------------------------------------------------------


async def test_a_step_that_names_itself_is_done_once_whatever_dies(replicas, open_gateway) -> None:
    for word in ("die", "die-made"):
        async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
            await all_up(client)
            session = await create(client)
            step = pb.StepRequest(session=session, actions=acts(word, start=5), request_id=str(uuid.uuid4()))
            assert (await client.stub.Step(step)).chunk_index == 1
            assert (await client.stub.Get(pb.GetRequest(session=session))).session.chunk_index == 1
            assert await client.metric("worldtree_failovers_total", kind="unary", result="ok") == 1
        replicas.processes.pop("a").wait()
        replicas.kill("b")
        for marker in replicas.journal.glob("done-*"):
            marker.unlink()
        replicas.ports.clear()


async def test_a_step_without_a_name_is_not_sent_twice(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        router = await all_up(client)
        session = await create(client)
        step = pb.StepRequest(session=session, actions=acts("die-made"))
        assert await reason(client, client.stub.Step(step)) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
        await client.until(lambda: not router.backends[0].connected)
        # what never left is sent, name or no name
        step = pb.StepRequest(session=session, actions=turns(1))
        assert (await client.stub.Step(step)).chunk_index == 2


async def test_a_rewind_that_knows_where_it_begins_is_not_done_twice(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        await client.stub.Step(pb.StepRequest(session=session, actions=turns(4)))
        replicas.mark("die-rewinding")
        request = pb.RewindRequest(session=session, chunk_count=1, expected_chunk_index=4)
        assert await reason(client, client.stub.Rewind(request)) == (
            grpc.StatusCode.ABORTED,
            "CHUNK_INDEX_MISMATCH",
        ), "it was done; the repeat was recognised"
        assert (await client.stub.Get(pb.GetRequest(session=session))).session.chunk_index == 3


async def test_a_session_is_made_at_another_replica_when_one_dies_over_it(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        request = pb.CreateSessionRequest(origin=pb.Origin(start="die"), request_id=str(uuid.uuid4()))
        made = (await client.stub.CreateSession(request)).session.session
        assert made.rpartition(".")[2] in ("a", "b")
        assert await client.metric("worldtree_failovers_total", kind="unary", result="ok") == 1


async def test_a_call_waits_for_the_only_replica_inside_its_deadline(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a"), rehome_timeout_s=20) as client:
        router = await all_up(client)
        session = await create(client)
        replicas.kill("a")
        await client.until(lambda: not router.backends[0].connected)
        waiting = asyncio.ensure_future(client.stub.Get(pb.GetRequest(session=session)))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Get(pb.GetRequest(session=session), timeout=0.3)
        assert raised.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        replicas.spawn("a")
        assert (await asyncio.wait_for(waiting, 20)).session.start == "a"


async def test_moved_sessions_are_followed_a_few_hops_and_then_no_more(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        router = await all_up(client)
        session = await create(client)
        path = replicas.journal / f"session-{session}"
        path.write_text(path.read_text().replace('"owner": "a"', '"owner": "b"'))
        assert (await client.stub.Get(pb.GetRequest(session=session))).session.start == "b"
        assert router.placements.get(session) == "b"
        call_count = len(replicas.lines("calls"))
        await client.stub.Get(pb.GetRequest(session=session))
        assert len(replicas.lines("calls")) == call_count + 1, "the way is known now"
        path.write_text(path.read_text().replace('"owner": "b"', '"owner": "a"'))
        assert (await client.stub.Get(pb.GetRequest(session=session))).session.start == "a"
        assert router.placements.get(session) is None


async def test_replicas_that_send_a_call_in_a_circle_are_left_after_a_few_hops(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session = await create(client)
        replicas.mark("circle")
        for call in (client.stub.Get(pb.GetRequest(session=session)), played(client.stub, begin(session))):
            before = len(replicas.lines("calls"))
            assert await reason(client, call) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
            assert 3 <= len(replicas.lines("calls")) - before <= 6
        await quiet(client)


async def test_a_session_whose_new_replica_died_is_taken_from_that_one(replicas, open_gateway) -> None:
    addresses = replicas.spawn("a", "b", "c")
    async with open_gateway(*addresses, rehome_timeout_s=10) as client:
        router = await all_up(client)
        session = await create(client)
        path = replicas.journal / f"session-{session}"
        path.write_text(path.read_text().replace('"owner": "a"', '"owner": "b"'))
        replicas.kill("b")
        await client.until(lambda: not router.backends[1].connected)
        assert (await client.stub.Get(pb.GetRequest(session=session))).session.start in ("a", "c")
        (line,) = replicas.lines("adopted")
        assert line.startswith(f"{session} b ")


async def test_all_gateways_choose_the_same_replica(replicas, open_gateway) -> None:
    addresses = replicas.spawn("a", "b", "c")
    async with (
        open_gateway(*addresses, rehome_timeout_s=10) as first,
        open_gateway(*reversed(addresses), rehome_timeout_s=10) as second,
    ):
        await all_up(first)
        await all_up(second)
        sessions = [await create(first) for _ in range(6)]
        replicas.kill("a")
        for client in (first, second):
            (router,) = client.gateway.routers
            await client.until(lambda: sum(each.connected for each in router.backends) == 2)  # noqa: B023
        for session in sessions:
            answers = await asyncio.gather(
                *(client.stub.Get(pb.GetRequest(session=session)) for client in (first, second))
            )
            assert {answer.session.start for answer in answers} == {chosen(session, ["b", "c"])}
    assert len(replicas.lines("adopted")) == 6


async def test_a_rollout_that_broke_off_brings_each_node_once(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        await all_up(client)
        session, twin = await create(client), await create(client, "b")
        sequences = [
            pb.ActionSequence(actions=actions)
            for actions in (turns(4), [*turns(2), *acts("", "die", start=7)], turns(3, start=4), turns(3))
        ]
        nodes: list[list[tuple[int, tuple[int, ...], bytes]]] = []
        for each in (session, twin):
            request = pb.RolloutRequest(session=each, sequences=sequences)
            nodes.append(
                [
                    (node.depth, tuple(node.sequences), node.chunk.frames.tensor.data)
                    async for node in client.stub.Rollout(request)
                ]
            )
        assert sorted(nodes[0]) == sorted(nodes[1])
        assert len(set(nodes[0])) == len(nodes[0]) == 9
        assert await client.metric("worldtree_failovers_total", kind="stream", result="ok") == 1


async def test_a_clip_of_which_nothing_came_is_made_elsewhere_and_one_that_broke_off_is_not(
    replicas, open_gateway
) -> None:
    model = common_pb2.ModelRef(name="m")
    async with open_gateway(*replicas.spawn("a", "b"), rehome_timeout_s=10) as client:
        router = await all_up(client)
        for metadata in ((), (("cache-control", "no-store"),)):
            request = pb.GenerateRequest(model=model, actions=acts("die", "", start=len(metadata)))
            call = client.stub.Generate(request, metadata=metadata)
            assert len([message async for message in call]) == 2
            await client.until(replicas.revive)
            await client.until(lambda: all(each.usable for each in router.backends))
        for metadata in ((), (("cache-control", "no-store"),)):
            # it sleeps, so that the first chunk is on its way before the replica dies
            request = pb.GenerateRequest(model=model, actions=acts("", "sleep:0.3", "die", start=10 + len(metadata)))
            call = client.stub.Generate(request, metadata=metadata)
            await call.read()
            assert (await reason(client, read_all(call)))[0] is grpc.StatusCode.UNAVAILABLE
            await client.until(replicas.revive)
            await client.until(lambda: all(each.usable for each in router.backends))
        await client.landed()
        await quiet(client)


# -- who may say what --------------------------------------------------------------------------------------------------


async def test_a_client_can_not_force_a_move_nor_name_a_tenant_nor_say_it_was_admitted(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("a", "b")) as client:
        await all_up(client)
        session = await create(client)
        lies = (("worldtree-rehome", "a"), ("worldtree-tenant", "root"), ("worldtree-admitted", "1"))
        await client.stub.Get(pb.GetRequest(session=session), metadata=lies)
        [_ async for _ in client.stub.Rollout(pb.RolloutRequest(session=session), metadata=lies)]
        call = client.stub.Play(metadata=lies)
        await call.write(begin(session))
        await call.done_writing()
        await read_all(call)
    assert replicas.lines("calls") == ["a None anonymous"] * 3
    assert replicas.lines("adopted") == []
    assert replicas.lines("admitted") == []


async def test_introspect_asks_the_replica_that_is_named_and_tells_which_there_are(replicas, open_gateway) -> None:
    async with open_gateway(*replicas.spawn("b", "a"), probe_interval_s=0.1) as client:
        router = await all_up(client)
        for name in ("a", "b", "a", "b"):
            call = client.stub.Introspect(pb.IntrospectRequest(replica=name))
            assert (await call).replica == name
            assert dict(await call.initial_metadata())["worldtree-replicas"] == "a,b"
        assert {(await client.stub.Introspect(pb.IntrospectRequest())).replica for _ in range(4)} == {"a", "b"}
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Introspect(pb.IntrospectRequest(replica="nobody"))
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert "known: a, b" in raised.value.details()
        replicas.kill("a")
        await client.until(lambda: not router.backends[1].connected)
        ended = await reason(client, client.stub.Introspect(pb.IntrospectRequest(replica="a")))
        assert ended == (grpc.StatusCode.UNAVAILABLE, "BACKEND_DOWN")
        call = client.stub.Introspect(pb.IntrospectRequest())
        await call
        told = dict(await call.initial_metadata())["worldtree-replicas"]
        assert told == "a,b", "one that died is not one that was never there"


async def test_a_replica_that_died_and_one_that_never_came_are_named_and_shown_as_down(replicas, open_gateway) -> None:
    never = "127.0.0.1:9"
    async with open_gateway(*replicas.spawn("a", "b"), never, probe_interval_s=0.1) as client:
        (router,) = client.gateway.routers
        await client.until(lambda: sum(each.usable for each in router.backends) == 2)
        replicas.kill("a")
        await client.until(lambda: not router.backends[0].connected)
        for name in ("a", never):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await client.stub.Introspect(pb.IntrospectRequest(replica=name))
            info = client.details(raised.value)["ErrorInfo"]
            assert (info.reason, info.metadata["replica"]) == ("BACKEND_DOWN", name)

        def looked() -> tuple[list[Reading], list[doctor.Finding]]:
            with worldtree.Client(client.gateway.server.address) as sdk:
                return Watch(sdk, interval_s=1.0).look(), list(doctor.replicas(sdk))

        readings, findings = await asyncio.to_thread(looked)
        assert [each.replica for each in readings] == [never, "a", "b"]
        assert [each.replica for each in readings if each.status] == ["b"]
        assert [(each.subject, each.verdict) for each in findings] == [
            (f"replica {never}", doctor.Verdict.BAD),
            ("replica a", doctor.Verdict.BAD),
        ]
        assert "take it out of the gateway's --video" in findings[1].advice
