"""Calls through a gateway as spans of one trace, and each chunk of a play as a trace of its own."""

import asyncio
import json
import logging
import re
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from collector import Collector
from credentials import KeysFile, bearer
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.logs import JsonFormatter
from worldtree_runtime.testing import TinyWorld
from worldtree_video.config import VideoSettings
from worldtree_video.serving import serve_video

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = (("traceparent", f"00-{TRACE_ID}-{SPAN_ID}-01"),)
GATEWAY, VIDEO = "worldtree-gateway", "worldtree-video"

StartBackend = Callable[..., Awaitable[Any]]
OpenGateway = Callable[..., Any]


@pytest.fixture(autouse=True)
def spans_go_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@asynccontextmanager
async def video(folder: Path, **settings: Any) -> AsyncIterator[str]:
    TinyWorld().write(folder)
    pools = {"pool_mib": 1, "fp16_pool_mib": 0, "int8_pool_mib": 0, "headroom_blocks": 2}
    known = {"models": str(folder), "port": 0, "metrics_port": 0, "drain_timeout_s": 1, **pools, **settings}
    async with serve_video(VideoSettings(**known)) as (server, _):
        yield server.address


def exemplars_of(port: int, metric: str) -> set[str]:
    """The traces that a service's histogram leads to."""
    accepted = {"Accept": "application/openmetrics-text; version=1.0.0"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=accepted)
    page = urllib.request.urlopen(asked, timeout=5).read().decode()
    return set(re.findall(rf'^{metric}_bucket.*# {{trace_id="(\w+)"}}', page, re.MULTILINE))


def step(session: str, instruction: str = "") -> pb.StepRequest:
    return pb.StepRequest(session=session, actions=[pb.Action(instruction=instruction)], request_id="once")


async def test_a_step_is_one_trace_from_the_caller_through_the_gateway_to_the_video_service(
    tmp_path: Path, open_gateway: OpenGateway
) -> None:
    async with Collector() as collector:
        traced = {"otel_endpoint": collector.endpoint}
        async with video(tmp_path, replica="a", **traced) as address, open_gateway(address, **traced) as client:
            model = (await client.stub.ListModels(pb.ListModelsRequest())).models[0].ref
            request = pb.CreateSessionRequest(model=common.ModelRef(name=model.name), origin=pb.Origin(start="dusk"))
            session = (await client.stub.CreateSession(request)).session.session
            actions = [pb.Action(id=1), pb.Action(id=2)]
            said = (*TRACED, ("worldtree-tenant", "somebody else"))
            await client.stub.Step(pb.StepRequest(session=session, actions=actions), metadata=said)
            await client.stub.Delete(pb.DeleteRequest(session=session))
            await collector.until(lambda told: len(told.named("/Step")) == 3)
        outer, call, inner = collector.named("/Step")
        others = {span.trace_id for span in collector.spans} - {TRACE_ID}
    assert [span.trace_id for span in (outer, call, inner)] == [TRACE_ID] * 3
    assert [(span.service, span.kind) for span in (outer, call, inner)] == [
        (GATEWAY, "server"),
        (GATEWAY, "client"),
        (VIDEO, "server"),
    ]
    assert [span.parent for span in (outer, call, inner)] == [SPAN_ID, outer.span_id, call.span_id]
    for span in (outer, inner):
        assert span.attributes["worldtree.session"] == session
        assert span.attributes["worldtree.tenant"] == "anonymous"
        assert span.attributes["worldtree.cost"] > 0
    assert outer.attributes["worldtree.cost"] == inner.attributes["worldtree.cost"]
    assert call.attributes["worldtree.replica"] == "a"
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert len(others) >= 3, "calls without a caller's trace have one each"


async def test_each_chunk_of_a_play_is_a_trace_of_both_services_that_is_linked_to_the_play(
    tmp_path: Path, open_gateway: OpenGateway, unused_tcp_port: int
) -> None:
    async with Collector() as collector:
        traced = {"otel_endpoint": collector.endpoint}
        port = unused_tcp_port
        async with video(tmp_path, metrics_port=port, **traced) as address, open_gateway(address, **traced) as client:
            model = (await client.stub.ListModels(pb.ListModelsRequest())).models[0].ref
            request = pb.CreateSessionRequest(model=common.ModelRef(name=model.name), origin=pb.Origin(start="dusk"))
            session = (await client.stub.CreateSession(request)).session.session
            plays = []
            for _ in range(2):  # the same caller's span twice
                begin = pb.PlayRequest.Begin(actions=[pb.Action(id=1), pb.Action(id=2), pb.Action(id=0)])
                play = client.stub.Play(metadata=TRACED)
                await play.write(pb.PlayRequest(session=session, begin=begin))
                await play.done_writing()
                plays.append([message async for message in play if message.HasField("played")])
            await client.stub.Delete(pb.DeleteRequest(session=session))
            await collector.until(lambda told: len(told.named("pass")) == 6 and len(told.named("chunk")) == 6)
            await collector.until(lambda told: len(told.named("/Play")) == 6)
            exemplars = await asyncio.to_thread(exemplars_of, port, "worldtree_control_latency_seconds")
        chunks, passes = collector.named("chunk"), collector.named("pass")
        servers = {span.span_id for span in collector.named("/Play", service=VIDEO)}
        callers = {span.span_id for span in collector.named("/Play", service=GATEWAY, kind="client")}
        spans = list(collector.spans)
    assert [len(play) for play in plays] == [3, 3]
    assert len({chunk.trace_id for chunk in chunks} - {TRACE_ID}) == 6
    assert exemplars
    assert exemplars <= {chunk.trace_id for chunk in chunks}
    assert {next(iter(chunk.links.values())) for chunk in chunks} == servers
    assert {next(iter(each.links.values())) for each in passes} == callers
    assert [chunk.attributes["worldtree.chunk.index"] for chunk in chunks] == [0, 1, 2, 3, 4, 5]
    for chunk in chunks:
        below = {}
        for span in spans:
            if span.trace_id == chunk.trace_id and span is not chunk:
                assert span.parent == chunk.span_id
                below.setdefault(span.name, []).append(span)
        assert set(below) == {"queue", "tick", "hold", "encode", "send", "pass"}
        assert len(below["tick"]) == chunk.attributes["worldtree.chunk.tick_count"]
        assert chunk.attributes["worldtree.session"] == session
        ours = [span for name in ("queue", "tick", "hold", "encode", "send") for span in below[name]]
        assert [chunk.begin_ns, chunk.end_ns] == [ours[0].begin_ns, ours[-1].end_ns]
        for before, after in pairwise(ours):
            assert before.begin_ns <= before.end_ns <= after.begin_ns + 1000
        (passed,) = below["pass"]
        assert passed.begin_ns >= below["encode"][0].begin_ns


async def test_a_refusal_marks_the_call_of_who_was_refused_and_a_bug_all_the_way(
    start_backend: StartBackend, open_gateway: OpenGateway
) -> None:
    backend = await start_backend("a")
    async with Collector() as collector, open_gateway(backend.address, otel_endpoint=collector.endpoint) as client:
        for instruction in ("busy", "bug"):
            with pytest.raises(grpc.RpcError):
                await client.stub.Step(step("s.a", instruction), metadata=TRACED)
        await collector.until(lambda told: len(told.named("/Step")) == 4)
        busy, bug = collector.named("/Step", kind="server")
        busy_call, bug_call = collector.named("/Step", kind="client")
    assert [span.attributes["rpc.grpc.status_code"] for span in (busy, busy_call, bug, bug_call)] == [10, 10, 13, 13]
    assert [span.failed for span in (busy, busy_call, bug, bug_call)] == [False, True, True, True]
    assert busy_call.description == "another Step runs"
    said = [each["traceparent"] for each in backend.metadata if "traceparent" in each]
    assert said == [f"00-{TRACE_ID}-{span.span_id}-01" for span in (busy_call, bug_call)]


async def test_who_joins_anothers_call_is_linked_to_it(start_backend: StartBackend, open_gateway: OpenGateway) -> None:
    backend = await start_backend("a")
    request = pb.GenerateRequest(model=common.ModelRef(name="echo"), actions=[pb.Action(instruction="hold")])
    async with Collector() as collector, open_gateway(backend.address, otel_endpoint=collector.endpoint) as client:
        first = aiter(client.stub.Generate(request))
        await anext(first)
        second = aiter(client.stub.Generate(request))
        await anext(second)
        backend.hold.set()
        assert [each async for each in first] == [each async for each in second]
        await collector.until(lambda told: len(told.named("/Generate")) == 3)
        leader, joined = collector.named("/Generate", kind="server")
        call = collector.one("/Generate", kind="client")
    assert call.parent == leader.span_id
    assert (leader.links, joined.links) == ({}, {leader.trace_id: leader.span_id})
    assert [span.attributes["worldtree.cache"] for span in (leader, joined)] == ["miss", "hit"]
    assert [span.attributes.get("worldtree.cost") for span in (leader, joined)] == [2, None]


async def test_without_a_collector_the_callers_trace_goes_on_as_it_is(
    start_backend: StartBackend, open_gateway: OpenGateway
) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        await client.stub.Step(step("s.a"), metadata=TRACED)
        await client.stub.Step(step("s.a"), metadata=(("traceparent", "nonsense"),))
        await client.stub.Step(step("s.a"))
    assert [each.get("traceparent") for each in backend.metadata if "worldtree-tenant" in each] == [
        TRACED[0][1],
        None,
        None,
    ]


@contextmanager
def accesses() -> Iterator[list[dict[str, Any]]]:
    """The lines of the access log."""
    lines: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler, log = Lines(), logging.getLogger("worldtree_runtime.access_log")
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


async def test_the_access_log_of_a_gateway_tells_of_cost_session_and_cache_and_believes_no_tenant(
    start_backend: StartBackend, open_gateway: OpenGateway
) -> None:
    with accesses() as lines:
        backend = await start_backend("a")
        async with open_gateway(backend.address, access_log=True) as client:
            lies = (("worldtree-tenant", "acme"), ("authorization", "Bearer hunter2"))
            await client.stub.Step(step("s.a", "cost:8"), metadata=lies)
            generate = pb.GenerateRequest(model=common.ModelRef(name="echo"), actions=[pb.Action(id=1)])
            for _ in range(2):
                assert [each async for each in client.stub.Generate(generate)]
            play = client.stub.Play()
            await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(actions=[pb.Action(id=1)])))
            await play.done_writing()
            assert [message async for message in play]
            with pytest.raises(grpc.RpcError):
                await client.stub.Step(step("s.a", "busy"))
    said = [{**line, "method": line["method"].rpartition("/")[2]} for line in lines]
    assert [
        tuple(line.get(name) for name in ("method", "code", "tenant", "session", "cost", "cache")) for line in said
    ] == [
        ("Step", "OK", "anonymous", "s.a", 8, None),
        ("Generate", "OK", "anonymous", None, 2, "miss"),
        ("Generate", "OK", "anonymous", None, None, "hit"),
        ("Play", "OK", "anonymous", "s.a", 2, None),
        ("Step", "ABORTED", "anonymous", "s.a", None, None),
    ]
    assert all(line["service"] == "gateway" for line in said)
    assert said[0]["request_bytes"] > 0
    assert said[0]["response_bytes"] > 0
    assert "hunter2" not in json.dumps(lines)


async def test_who_shows_a_key_is_told_of_by_its_tenant_and_a_stranger_by_nobodys(
    start_backend: StartBackend, open_gateway: OpenGateway, tmp_path: Path
) -> None:
    keys = KeysFile(tmp_path / "keys")
    key = keys.add("acme")
    backend = await start_backend("a")
    async with Collector() as collector:
        settings = {"keys_file": keys.path, "access_log": True, "otel_endpoint": collector.endpoint}
        with accesses() as lines:
            async with open_gateway(backend.address, **settings) as client:
                await client.stub.Step(step("s.a"), metadata=bearer(key))
                with pytest.raises(grpc.RpcError):
                    await client.stub.Step(step("s.a"), metadata=(*bearer("wt_guessed"), ("worldtree-tenant", "acme")))
        known, stranger = collector.named("/Step", kind="server")
    assert [(line["code"], line.get("tenant")) for line in lines] == [("OK", "acme"), ("UNAUTHENTICATED", None)]
    assert [span.attributes.get("worldtree.tenant") for span in (known, stranger)] == ["acme", None]
    told = json.dumps([lines, [repr(vars(span)) for span in collector.spans]])
    assert key not in told
    assert "wt_guessed" not in told
