"""Calls of one server as spans at a collector, as lines of the access log, and as exemplars."""

import asyncio
import json
import logging
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from collector import Collector
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import (
    VideoGeneratorServicer,
    VideoGeneratorStub,
    add_VideoGeneratorServicer_to_server,
)
from worldtree_runtime.errors import Aborted
from worldtree_runtime.logs import JsonFormatter
from worldtree_runtime.server import RunningServer, start_server
from worldtree_runtime.settings import ServiceSettings

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID}-{SPAN_ID}-00"
SERVICE = "worldtree.video.v1.VideoGenerator"
_log = logging.getLogger("worldtree_video.test")


class Servicer(VideoGeneratorServicer):  # type: ignore[misc]
    async def Step(self, request: pb.StepRequest, context: Any) -> pb.StepResponse:
        _log.info("stepping")
        match request.session:
            case "busy":
                raise Aborted("SESSION_BUSY", "another Step runs", session="busy")
            case "bug":
                raise RuntimeError("secret of ours")
            case "slow":
                await asyncio.sleep(60)
        context.set_trailing_metadata((("worldtree-cost", "12"),))
        return pb.StepResponse(chunk_index=3)

    async def Play(self, requests: AsyncIterator[pb.PlayRequest], context: Any) -> AsyncIterator[pb.PlayResponse]:
        async for _ in requests:
            yield pb.PlayResponse()


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[RunningServer, Any]]:
    def register(server: grpc.aio.Server) -> Sequence[str]:
        add_VideoGeneratorServicer_to_server(Servicer(), server)
        return [SERVICE]

    known = ServiceSettings(**{"port": 0, "metrics_port": 0, "drain_timeout_s": 0.0, "replica": "r-1", **settings})
    async with (
        start_server(known, service="video", register=register) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield server, VideoGeneratorStub(channel)


async def page(server: RunningServer) -> str:
    url = f"http://{server.metrics_address}/metrics"
    asked = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    return await asyncio.to_thread(lambda: urllib.request.urlopen(asked, timeout=5).read().decode())


class Lines(logging.Handler):
    """Log lines as they are written, while their calls last."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.written: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(json.loads(self.format(record)))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.written if line["logger"] == name]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    root.addHandler(handler)
    monkeypatch.setattr(_log, "level", logging.INFO)
    yield handler
    root.removeHandler(handler)


async def test_a_call_is_a_span_below_its_callers_with_what_is_known_of_it() -> None:
    async with Collector() as collector:
        async with serving(otel_endpoint=collector.endpoint) as (_, stub):
            metadata = (("traceparent", SAMPLED), ("worldtree-tenant", "acme"))
            await stub.Step(pb.StepRequest(session="s.a"), metadata=metadata)
        span = collector.one("Step")
    assert (span.trace_id, span.parent, span.kind) == (TRACE_ID, SPAN_ID, "server")
    assert span.name == f"{SERVICE}/Step"
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Step",
        "rpc.grpc.status_code": 0,
        "worldtree.session": "s.a",
        "worldtree.tenant": "acme",
        "worldtree.cost": 12,
    }
    assert not span.failed
    assert collector.resources["worldtree-video"]["service.instance.id"] == "r-1"
    assert span.begin_ns <= span.end_ns <= time.time_ns()


async def test_the_first_message_of_a_stream_names_its_session_and_probes_are_no_spans() -> None:
    async with Collector() as collector:
        async with serving(otel_endpoint=collector.endpoint) as (server, stub):
            call = stub.Play()
            await call.write(pb.PlayRequest(session="s.b"))
            await call.done_writing()
            assert [each async for each in call] == [pb.PlayResponse()]
            async with grpc.aio.insecure_channel(server.address) as channel:
                await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
        assert [span.name for span in collector.spans] == [f"{SERVICE}/Play"]
        assert collector.spans[0].attributes["worldtree.session"] == "s.b"
        assert collector.spans[0].parent == ""


async def test_a_bug_marks_its_span_and_a_callers_mistake_only_shows_its_code() -> None:
    async with Collector() as collector:
        async with serving(otel_endpoint=collector.endpoint) as (_, stub):
            for session in ("busy", "bug"):
                with pytest.raises(grpc.RpcError):
                    await stub.Step(pb.StepRequest(session=session))
            with pytest.raises(grpc.RpcError):
                await stub.Step(pb.StepRequest(session="slow"), timeout=0.1)
        busy, bug, slow = collector.named("Step")
    assert (busy.failed, busy.attributes["rpc.grpc.status_code"]) == (False, 10)
    assert (bug.failed, bug.attributes["rpc.grpc.status_code"]) == (True, 13)
    assert bug.attributes["error.type"] == "INTERNAL"
    assert "secret" not in bug.description
    assert slow.attributes["rpc.grpc.status_code"] in (1, 4)


async def test_the_trace_of_a_call_is_in_its_log_lines_and_is_its_exemplar(lines: Lines) -> None:
    async with Collector() as collector:
        async with serving(otel_endpoint=collector.endpoint) as (server, stub):
            await stub.Step(pb.StepRequest(session="s.a"))
            text = await page(server)
        span = collector.one("Step")
    assert [line["trace_id"] for line in lines.of("worldtree_video.test")] == [span.trace_id]
    assert f'# {{trace_id="{span.trace_id}"}}' in text


async def test_without_a_collector_log_lines_name_the_callers_trace_and_only_kept_ones_are_exemplars(
    lines: Lines,
) -> None:
    async with serving() as (server, stub):
        await stub.Step(pb.StepRequest(session="s.a"), metadata=(("traceparent", UNSAMPLED),))
        assert TRACE_ID not in await page(server)
        await stub.Step(pb.StepRequest(session="s.a"), metadata=(("traceparent", SAMPLED),))
        assert TRACE_ID in await page(server)
        await stub.Step(pb.StepRequest(session="s.a"), metadata=(("traceparent", "nonsense"),))
    found = [line.get("trace_id") for line in lines.of("worldtree_video.test")]
    assert found == [TRACE_ID, TRACE_ID, None]


async def test_only_a_share_of_traces_is_kept_and_a_caller_decides_for_its_own() -> None:
    async with Collector() as collector:
        async with serving(otel_endpoint=collector.endpoint, otel_sample_share=0.0) as (server, stub):
            await stub.Step(pb.StepRequest(session="s.a"))
            await stub.Step(pb.StepRequest(session="s.b"), metadata=(("traceparent", UNSAMPLED),))
            assert "trace_id" not in await page(server)
            await stub.Step(pb.StepRequest(session="s.c"), metadata=(("traceparent", SAMPLED),))
        assert [span.attributes["worldtree.session"] for span in collector.spans] == ["s.c"]


async def test_a_collector_that_is_away_harms_nobody(caplog: pytest.LogCaptureFixture, unused_tcp_port: int) -> None:
    endpoint = f"http://127.0.0.1:{unused_tcp_port}"
    async with serving(otel_endpoint=endpoint) as (_, stub):
        started_s = time.monotonic()
        for _ in range(20):
            assert (await stub.Step(pb.StepRequest(session="s.a"))).chunk_index == 3
        assert time.monotonic() - started_s < 5
        closing_s = time.monotonic()
    assert time.monotonic() - closing_s < 5
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_spans_that_got_lost_are_counted_and_told_of_once(
    caplog: pytest.LogCaptureFixture, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    async with serving(otel_endpoint=f"http://127.0.0.1:{unused_tcp_port}") as (server, stub):
        ends_s = time.monotonic() + 20
        while 'worldtree_spans_total{result="lost"} 2.0' not in await page(server):
            assert time.monotonic() < ends_s
            if 'result="lost"} 0.0' in (text := await page(server)) or 'result="lost"} 1.0' in text:
                await stub.Step(pb.StepRequest(session="s.a"))
            await asyncio.sleep(0.3)
        assert 'worldtree_spans_total{result="sent"} 0.0' in await page(server)
    assert [record.getMessage() for record in caplog.records if record.name == "worldtree_runtime.otel"] == [
        "spans are lost"
    ]


async def test_a_line_a_call_tells_how_it_ended_and_what_it_cost(lines: Lines) -> None:
    async with serving(access_log=True) as (server, stub):
        metadata = (
            ("traceparent", UNSAMPLED),
            ("x-request-id", "r-7"),
            ("worldtree-tenant", "acme"),
            ("authorization", "Bearer hunter2"),
        )
        await stub.Step(pb.StepRequest(session="s.a"), metadata=metadata)
        await stub.Step(pb.StepRequest(session="bug\n" * 200), metadata=(("worldtree-tenant", "no tenant"),))
        async with grpc.aio.insecure_channel(server.address) as channel:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    first, second = lines.of("worldtree_runtime.access_log")
    assert 0 < first.pop("seconds") < 10
    del first["time"]
    assert first == {
        "level": "info",
        "logger": "worldtree_runtime.access_log",
        "message": "call",
        "request_id": "r-7",
        "trace_id": TRACE_ID,
        "service": "video",
        "method": f"{SERVICE}/Step",
        "code": "OK",
        "tenant": "acme",
        "session": "s.a",
        "cost": 12,
        "request_bytes": 5,
        "response_bytes": 2,
    }
    assert second["code"] == "OK"
    assert "\n" not in second["session"]
    assert len(second["session"]) < 600
    assert "tenant" not in second
    assert "hunter2" not in json.dumps(lines.written)


async def test_nothing_is_told_unless_it_is_asked_for(lines: Lines) -> None:
    async with serving() as (_, stub):
        await stub.Step(pb.StepRequest(session="s.a"))
    assert lines.of("worldtree_runtime.access_log") == []


def test_without_a_collector_nothing_of_ours_asks_for_opentelemetry() -> None:
    program = """
import asyncio, runpy, sys, types

class Asked:
    askers = set()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            frame = sys._getframe(1)
            while frame.f_globals.get("__name__", "").startswith("importlib"):
                frame = frame.f_back
            self.askers.add(frame.f_globals["__name__"])
            raise ImportError(name)

sys.meta_path.insert(0, Asked())
sys.modules["collector"] = types.SimpleNamespace(Collector=None)  # the tests' own speaks OTLP
found = runpy.run_path(sys.argv[1])

async def main():
    async with found["serving"](access_log=True) as (_, stub):
        await stub.Step(found["pb"].StepRequest(session="s.a"), metadata=(("traceparent", found["SAMPLED"]),))

asyncio.run(main())
import worldtree_gateway.serving, worldtree_video.serving, worldtree_navigator.serving
import worldtree_multitask.serving, worldtree_reward.serving, worldtree
worldtree.Client("localhost:1").close()
# Redis' client has metrics of its own, and looks for it wherever it is installed
print([name for name in Asked.askers if name.partition(".")[0] != "redis"], "worldtree_runtime.otel" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program, __file__], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] False\n"


def test_a_collector_without_the_extra_is_one_line_that_names_it() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import asyncio
from worldtree_runtime.process import run
from worldtree_runtime.server import start_server
from worldtree_runtime.settings import ServiceSettings
async def main():
    settings = ServiceSettings(otel_endpoint="http://127.0.0.1:4317")
    async with start_server(settings, service="video", register=lambda server: []):
        pass
run(main)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "worldtree: otel_endpoint needs the extra otel: pip install 'worldtree-server[otel]'\n"
