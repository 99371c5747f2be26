"""RPCs as JSON over HTTP: what comes is what gRPC brings, and what holds for a call by gRPC holds for them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from credentials import KeysFile
from google.protobuf import json_format
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.identity import Role

CLIP = {"model": {"name": "echo"}, "seed": 4, "actions": [{"id": 1}, {"id": 2}]}


@dataclass(frozen=True)
class Answer:
    """`document`: the body's JSON."""

    status: int
    headers: Any
    document: Any


class Http:
    """A client that has HTTP only."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self.session, self.url = session, f"http://{address}"

    async def post(self, rpc: str, body: Any = None, **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(f"{self.url}/v1/{rpc}", data=raw, headers=named) as response:
            return Answer(response.status, response.headers, json.loads(await response.read()))

    async def lines(self, rpc: str, body: Any) -> list[Any]:
        async with self.session.post(f"{self.url}/v1/{rpc}", json=body) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "application/x-ndjson"
            return [json.loads(line) async for line in response.content]


@pytest.fixture
async def backend(start_backend: Any) -> Any:
    return await start_backend("a")


@pytest.fixture
def open_http(backend: Any, open_gateway: Any) -> Callable[..., Any]:
    """`async with open_http(**settings) as (http, client)`: by HTTP, and by gRPC, to the same gateway."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[tuple[Http, Any]]:
        async with (
            open_gateway(backend.address, http_port=0, **settings) as client,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session,
        ):
            yield Http(session, client.gateway.rest_address), client

    return opened


def instructed(*instructions: str) -> dict[str, Any]:
    return {"session": "s1.a", "actions": [{"instruction": each} for each in instructions]}


async def test_a_response_is_that_of_grpc(open_http: Any) -> None:
    async with open_http() as (http, client):
        listed = await http.post("video/ListModels", b"")
        assert (listed.status, listed.headers["Content-Type"]) == (200, "application/json")
        by_grpc = await client.stub.ListModels(pb.ListModelsRequest())
        assert json_format.ParseDict(listed.document, pb.ListModelsResponse()) == by_grpc
        stepped = await http.post("video/Step", instructed("left", "right"))
        assert [chunk["index"] for chunk in stepped.document["chunks"]] == ["0", "1"]  # 64 bits are texts, 0 is told
        request = json_format.ParseDict(instructed("left", "right"), pb.StepRequest())
        frames = (await client.stub.Step(request)).chunks[1].frames.tensor.data
        assert base64.b64decode(stepped.document["chunks"][1]["frames"]["tensor"]["data"]) == frames


async def test_fields_may_be_named_as_in_the_proto_or_as_in_json(open_http: Any) -> None:
    async with open_http() as (http, _):
        for named in ("request_id", "requestId"):
            assert (await http.post("video/Step", {"session": "s1.a", named: "once"})).status == 200


async def test_a_server_stream_is_a_line_for_each_message(open_http: Any) -> None:
    async with open_http() as (http, client):
        lines = await http.lines("video/Generate", CLIP)
        responses = [json_format.ParseDict(line["result"], pb.GenerateResponse()) for line in lines]
        by_grpc = client.stub.Generate(json_format.ParseDict(CLIP, pb.GenerateRequest()))
        assert responses == [response async for response in by_grpc]
        assert len(responses) == 3


async def test_lines_come_as_they_are_made(open_http: Any, backend: Any) -> None:
    body = {"session": "s1.a", "sequences": [{"actions": [{"instruction": "left"}, {"instruction": "hold"}]}]}
    async with (
        open_http() as (http, _),
        http.session.post(f"{http.url}/v1/video/Rollout", json=body) as response,
    ):
        first = json.loads(await response.content.readline())
        assert first["result"]["chunk"]["action"]["instruction"] == "left"
        assert not response.content.at_eof()
        backend.hold.set()
        assert json.loads(await response.content.readline())["result"]["chunk"]["action"]["instruction"] == "hold"
        assert await response.content.readline() == b""


async def test_what_the_trailers_say_is_in_headers_and_after_a_stream_in_trailers(open_http: Any) -> None:
    async with open_http() as (http, client):
        first, second = [await http.post("video/GetModel", {"model": {"name": "echo"}}) for _ in range(2)]
        assert (first.headers["worldtree-cache"], second.headers["worldtree-cache"]) == ("miss", "hit")
        fresh = await http.post("video/GetModel", {"model": {"name": "echo"}}, cache_control="no-store")
        assert fresh.headers["worldtree-cache"] == "bypass"
        stepped = await http.post("video/Step", instructed("cost:7"), x_request_id="mine-1")
        assert stepped.headers["worldtree-cost"] == "7"
        assert stepped.headers["worldtree-replica"] == "a"
        assert stepped.headers["x-request-id"] == "mine-1"
        host, _, port = client.gateway.rest_address.rpartition(":")
        for version, cached in (("1.1", b"miss"), ("1.1", b"hit"), ("1.0", None)):
            body = json.dumps(CLIP).encode()
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /v1/video/Generate HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            told = await reader.read()
            writer.close()
            assert told.count(b'{"result":') == 3
            _, chunked, trailers = told.rpartition(b"\r\n0\r\n")
            assert (cached is None) == (not chunked)
            assert cached is None or b"worldtree-cache: " + cached in trailers.lower()


STATUSES: dict[str, tuple[str, Any, int, int, str]] = {
    "an unknown path": ("video/Stepp", {}, 404, 5, "/v1/video/Step"),
    "an unknown service": ("audio/Step", {}, 404, 5, "not found"),
    "no json": ("video/Step", b"{session", 400, 3, "StepRequest as JSON"),
    "no text": ("video/Step", b"\xff\xfe{}", 400, 3, "StepRequest as JSON"),
    "no object": ("video/Step", [1], 400, 3, "StepRequest as JSON"),
    "an unknown field": ("video/Step", {"sesion": "s"}, 400, 3, "sesion"),
    "a field of another kind": ("video/Step", {"session": 4}, 400, 3, "session"),
    "far too deep": ("video/Step", b"[" * 100_000, 400, 3, "StepRequest as JSON"),
    "deep in messages": ("multitask/CreateMerge", b'{"recipe":{"parameters":' + b'{"a":' * 500, 400, 3, "as JSON"),
    "a stream of requests": ("video/Play", {}, 501, 12, "gRPC only"),
    "a service that is not configured": ("reward/Score", {}, 501, 12, "reward"),
    "aborted": ("video/Step", instructed("busy"), 409, 10, "another Step runs"),
    "exhausted": ("video/Step", instructed("full"), 429, 8, "0 of 9 blocks"),
    "unavailable": ("video/Step", instructed("down"), 503, 14, "the model is loading"),
    "a bug": ("video/Step", instructed("bug"), 500, 13, "internal error"),
    "without details": ("video/Step", instructed("plain"), 500, 15, "plain text only"),
    "not found in a stream": ("video/Generate", {**CLIP, "origin": {"start": "nowhere"}}, 404, 5, "nowhere"),
}


@pytest.mark.parametrize("case", STATUSES)
async def test_what_fails_is_a_status_with_the_http_status_that_fits(case: str, open_http: Any) -> None:
    rpc, body, http_status, code, message = STATUSES[case]
    async with open_http() as (http, _):
        answer = await http.post(rpc, body)
    assert (answer.status, answer.document["code"]) == (http_status, code), answer.document
    assert message in answer.document["message"]
    assert case == "without details" or any(each.get("reason") for each in answer.document["details"])
    waits = [each["retryDelay"] for each in answer.document.get("details", ()) if "retryDelay" in each]
    assert (answer.headers.get("Retry-After") is not None) == bool(waits)
    if case == "exhausted":
        assert (waits, answer.headers["Retry-After"]) == (["1.500s"], "2")


async def test_only_posts_are_taken(open_http: Any) -> None:
    async with open_http() as (http, _), http.session.get(f"{http.url}/v1/video/ListModels") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert "POST" in (await response.json())["message"]


async def test_a_compressed_body_is_refused(open_http: Any) -> None:
    async with open_http() as (http, _):
        answer = await http.post("video/ListModels", b"{}", content_encoding="gzip")
        assert (answer.status, answer.document["code"]) == (400, 3)


async def test_a_stream_that_breaks_ends_with_a_line_that_says_why(open_http: Any) -> None:
    sequences = [{"actions": [{"instruction": "left"}, {"instruction": "busy"}]}]
    async with open_http() as (http, _):
        first, last = await http.lines("video/Rollout", {"session": "s1.a", "sequences": sequences})
    assert "result" in first
    assert last["error"]["code"] == 10
    assert last["error"]["details"][0]["reason"] == "SESSION_BUSY"


async def test_a_client_that_leaves_ends_the_call(open_http: Any, backend: Any) -> None:
    body = {"session": "s1.a", "sequences": [{"actions": [{"instruction": "left"}, {"instruction": "hold"}]}]}
    async with open_http() as (http, client):
        async with http.session.post(f"{http.url}/v1/video/Rollout", json=body) as response:
            await response.content.readline()
            response.close()
        await client.until(lambda: backend.cancelled["Rollout"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http.post("video/Step", instructed("hold")), 0.5)
        await client.until(lambda: backend.cancelled["Step"])


async def test_keys_roles_and_quotas_hold(open_http: Any, tmp_path: Path, backend: Any) -> None:
    keys = KeysFile(tmp_path / "keys")
    user, operator = keys.add("acme"), keys.add("acme", Role.OPERATOR)
    async with open_http(keys_file=keys.path, calls_per_s=0.01, calls_burst=2) as (http, _):
        stranger = await http.post("video/ListModels")
        assert (stranger.status, stranger.document["code"]) == (401, 16)
        forbidden = await http.post("video/Introspect", authorization=f"Bearer {user}")
        assert (forbidden.status, forbidden.document["code"]) == (403, 7)
        allowed = await http.post("video/Introspect", authorization=f"Bearer {operator}")
        assert allowed.document["details"][0]["reason"] == "BUG"  # it came to echo, which has no such method
        for status in (200, 200, 429):
            answer = await http.post("video/Get", {"session": "s1.a"}, x_api_key=user)
            assert answer.status == status, answer.document
        assert int(answer.headers["Retry-After"]) > 50
        assert backend.metadata[-1]["worldtree-tenant"] == "acme"


async def test_a_stranger_s_body_is_not_read(open_http: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = KeysFile(tmp_path / "keys")
    key = keys.add("acme")
    async with open_http(keys_file=keys.path) as (http, client), asyncio.timeout(20):
        host, _, port = client.gateway.rest_address.rpartition(":")
        for path in ("/v1/video/Step", "/v2/models/tiny/infer"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
            writer.close()
        refused = [record for record in caplog.records if record.name == "worldtree_gateway.audit"]
        assert [(each.reason, each.peer) for each in refused] == [("CREDENTIALS_MISSING", "127.0.0.1")] * 2
        assert (await http.post("video/Step", instructed("left"), x_api_key=key)).status == 200


async def test_connections_by_http_and_calls_by_grpc_of_one_address_count_together(open_http: Any) -> None:
    async with open_http(max_peer_calls=2) as (http, client), asyncio.timeout(20):
        assert (await http.post("video/Step", instructed("left"))).status == 200  # its call inside is not counted again
        host, _, port = client.gateway.rest_address.rpartition(":")
        _, idle = await asyncio.open_connection(host, int(port))
        reader, third = await asyncio.open_connection(host, int(port))
        told = await reader.read()
        assert told.startswith(b"HTTP/1.1 429")
        assert b"gateway.max_peer_calls" in told
        third.close()
        with pytest.raises(grpc.aio.AioRpcError, match="max_peer_calls"):
            await client.stub.ListModels(pb.ListModelsRequest())
        idle.close()
        while True:  # until the gateway has seen that it left
            with suppress(grpc.aio.AioRpcError):
                await client.stub.ListModels(pb.ListModelsRequest())
                break


async def test_json_is_bounded_by_its_own_setting(open_http: Any) -> None:
    async with open_http(http_json_bytes=64 * 1024) as (http, _):
        answer = await http.post("video/Step", instructed("x" * 70_000))
        assert (answer.status, "65536 bytes" in answer.document["error"]) == (413, True)
        answer = await http.post("video/Step", instructed("x" * 50_000))
        assert answer.status == 200


async def test_a_web_page_steers_nothing_without_a_key(open_http: Any, tmp_path: Path, backend: Any) -> None:
    keys = KeysFile(tmp_path / "keys")
    async with open_http() as (http, _):
        answer = await http.post("video/Step", instructed("left"), origin="http://elsewhere.example")
        assert (answer.status, answer.document["details"][0]["reason"]) == (403, "FROM_A_WEB_PAGE")
        page = {"Origin": "http://elsewhere.example"}
        async with http.session.get(f"{http.url}/v2/models/echo", headers=page) as response:
            assert response.status == 403
        assert not backend.calls["Step"]
    key = keys.add("acme")
    async with open_http(keys_file=keys.path) as (http, _):
        answer = await http.post("video/Step", instructed("left"), origin="http://ours.example", x_api_key=key)
        assert answer.status == 200


async def test_many_requests_share_a_connection(open_http: Any) -> None:
    async with open_http() as (http, _):
        answers = await asyncio.gather(*(http.post("video/Get", {"session": f"s{each}.a"}) for each in range(32)))
        assert [answer.document["session"]["session"] for answer in answers] == [f"s{each}.a" for each in range(32)]
        for _ in range(3):
            assert len(await http.lines("video/Generate", CLIP)) == 3
