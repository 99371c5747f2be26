"""The REST side of the inference protocol, asked by Triton's HTTP client unchanged, and by HTTP written by hand."""

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worldtree
from credentials import Authority, KeysFile
from inference_servers import Servers, until
from server_loop import ServerLoop
from tritonclient.utils import InferenceServerException
from worldtree_gateway import oip_json
from worldtree_gateway.serving import RunningGateway

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def gateway(servers: Servers) -> RunningGateway:
    return servers.gateway(http_port=0)


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[Any]:
    with triton.InferenceServerClient(gateway.rest_address) as client:
        yield client


def given(name: str, value: Any, datatype: str, *, binary: bool = True) -> Any:
    array = np.array(value, object if datatype == "BYTES" else None)
    if datatype != "BYTES":
        array = array.astype({"INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8, "FP32": np.float32}[datatype])
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def ask(
    gateway: RunningGateway, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and JSON of a request written by hand."""
    host, _, port = str(gateway.rest_address).rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=20)
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, raw, headers or {})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text else None


def infer(gateway: RunningGateway, *inputs: Any, model: str = "tiny", **more: Any) -> tuple[int, Any]:
    return ask(gateway, "POST", f"/v2/models/{model}/infer", {"inputs": inputs, **more})


def told(name: str, datatype: str, shape: list[Any], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def test_the_stock_client_learns_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "worldtree"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny")
    assert metadata["versions"] == ["1"]
    assert {"name": "frames", "datatype": "UINT8", "shape": [-1, 4, 6, 3]} in metadata["outputs"]
    config = client.get_model_config("tiny", "1")
    assert config["sequence_batching"]["max_sequence_idle_microseconds"] == 60_000_000
    assert config["input"][0] == {"name": "actions", "data_type": "TYPE_INT64", "dims": [-1]}
    assert {each["name"]: each["state"] for each in client.get_model_repository_index()}["tiny-judge"] == "READY"
    assert len(client.get_inference_statistics()["model_stats"]) == 5


@pytest.mark.parametrize("binary", [True, False])
def test_clips_are_the_sdks_bit_for_bit_in_binary_and_in_json(
    client: Any, gateway: RunningGateway, binary: bool
) -> None:
    inputs = [
        given("actions", ["left", "stay"], "BYTES", binary=binary),
        given("start", ["dusk"], "BYTES", binary=not binary),
        given("seed", [41], "INT64", binary=binary),
    ]
    outputs = [
        triton.InferRequestedOutput("frames", binary_data=binary),
        triton.InferRequestedOutput("state_hash", binary_data=not binary),
    ]
    with worldtree.Client(gateway.server.address) as sdk:
        clip = sdk.generate("tiny", start="dusk", seed=41, actions=["left", "stay"])
    for wanted in (outputs, None):
        answer = client.infer("tiny", inputs, outputs=wanted, request_id="seventh")
        assert answer.as_numpy("frames").astype(np.uint8).tobytes() == clip.frames.tobytes()
        assert answer.get_response()["id"] == "seventh"
    last = client.infer("tiny", inputs, outputs=outputs).as_numpy("state_hash")[-1]
    assert (last.decode() if isinstance(last, bytes) else last) == clip.state_hash


def test_sequences_networks_judges_and_classes_go_by_rest_too(client: Any, servers: Servers) -> None:
    for place in range(3):
        answer = client.infer(
            "tiny",
            [given("actions", [1], "INT64")],
            sequence_id="r",
            sequence_start=place == 0,
            sequence_end=place == 2,
        )
        assert answer.as_numpy("chunk_index").tolist() == [place]
    assert servers.session_count() == 0
    image = given("image", np.zeros((2, 8, 8, 3)), "UINT8")
    classes = client.infer("tiny-experts", [image], outputs=[triton.InferRequestedOutput("hue", class_count=1)])
    assert classes.as_numpy("hue").shape == (2, 1)
    clip = [given("frames", np.zeros((2, 8, 8, 3)), "UINT8"), given("actions", [1], "INT64")]
    assert client.infer("tiny-judge", clip).as_numpy("reward").shape == (1,)


def test_json_by_hand_may_be_nested_and_has_null_for_what_is_not_finite(gateway: RunningGateway) -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    status, answer = infer(gateway, told("image", "UINT8", [1, 8, 8, 3], image.tolist()), model="tiny-experts", id="x")
    assert (status, answer["id"], answer["model_name"], answer["model_version"]) == (200, "x", "tiny-experts", "1")
    assert [each["shape"] for each in answer["outputs"]] == [[1, 3], [1, 2], [1, 2]]
    assert sum(answer["outputs"][0]["data"]) == pytest.approx(1)
    frames = told("frames", "UINT8", [2, 8, 8, 3], [0] * 384)
    status, answer = infer(gateway, frames, told("actions", "BYTES", [1], ["go"]), model="tiny-judge")
    assert {each["name"]: each["data"] for each in answer["outputs"]}["uncertainty"] == [None]
    status, answer = infer(gateway, told("actions", "INT64", [1], [1]), model="tiny/versions/1")
    assert (status, answer["model_version"]) == (200, "1")


IDS = told("actions", "INT64", [1], [1])
GOOD = json.dumps({"inputs": [IDS]}).encode()
LENGTH = "Inference-Header-Content-Length"
DEEP: list[Any] = json.loads("[" * 40 + "]" * 40)
BAD: dict[str, tuple[int, dict[str, Any], str]] = {
    "no json": (400, {"body": b"{inputs"}, "JSON"),
    "no object": (400, {"body": [1]}, "body must be an object"),
    "unknown key": (400, {"body": {"inputs": [], "imputs": []}}, "imputs"),
    "inputs of another kind": (400, {"body": {"inputs": 4}}, "inputs must be a list"),
    "an input of another kind": (400, {"body": {"inputs": [4]}}, "inputs[0] must be an object"),
    "no shape": (400, {"body": {"inputs": [{"name": "actions", "datatype": "INT64", "data": [1]}]}}, "inputs[0].shape"),
    "a shape of texts": (400, {"body": {"inputs": [told("actions", "INT64", ["1"], [1])]}}, "inputs[0].shape"),
    "no data": (
        400,
        {"body": {"inputs": [{"name": "actions", "datatype": "INT64", "shape": [1]}]}},
        "binary_data_size",
    ),
    "too few elements": (400, {"body": {"inputs": [told("actions", "INT64", [2], [1])]}}, "16 bytes"),
    "texts for numbers": (400, {"body": {"inputs": [told("actions", "INT64", [1], ["1"])]}}, "INT64"),
    "numbers for texts": (400, {"body": {"inputs": [told("actions", "BYTES", [1], [1])]}}, "must be texts"),
    "fractions for integers": (400, {"body": {"inputs": [told("actions", "INT64", [1], [1.5])]}}, "1.5"),
    "numbers beyond their width": (400, {"body": {"inputs": [told("actions", "UINT8", [1], [256])]}}, "0 to 255"),
    "an action that is none": (400, {"body": {"inputs": [told("actions", "INT64", [1], [44])]}}, "actions[0]"),
    "lists too deep": (400, {"body": {"inputs": [told("actions", "INT64", [1], DEEP)]}}, "deep"),
    "lists far too deep": (400, {"body": b"[" * 100_000}, "JSON"),
    "a parameter that is a list": (400, {"body": {"inputs": [IDS], "parameters": {"sequence_id": [1]}}}, "sequence_id"),
    "an unknown parameter": (400, {"body": {"inputs": [IDS], "parameters": {"speed": 1}}}, "speed"),
    "a sequence that is not open": (400, {"body": {"inputs": [IDS], "parameters": {"sequence_id": 77}}}, "77"),
    "an output that is none": (400, {"body": {"inputs": [IDS], "outputs": [{"name": "depth"}]}}, "depth"),
    "binary that is not there": (
        400,
        {
            "body": {
                "inputs": [
                    {"name": "actions", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}}
                ]
            }
        },
        "0 to the 0 bytes",
    ),
    "a length beyond the body": (400, {"body": {"inputs": [IDS]}, "headers": {LENGTH: "9999"}}, "9999"),
    "a length that is none": (400, {"body": {"inputs": [IDS]}, "headers": {LENGTH: "-4"}}, "-4"),
    "a length of many digits": (400, {"body": {"inputs": [IDS]}, "headers": {LENGTH: "0" * 20 + "90"}}, "20 digits"),
    "a length of far too many digits": (400, {"body": GOOD, "headers": {LENGTH: "9" * 9000}}, "of 9000"),
    "a length of other digits": (400, {"body": GOOD, "headers": {LENGTH: "\xb2"}}, "must be a number"),
    "a body that goes on": (
        400,
        {"body": GOOD + b"more", "headers": {LENGTH: str(len(GOOD))}},
        "end after",
    ),
    "a compressed body": (415, {"body": {"inputs": [IDS]}, "headers": {"Content-Encoding": "gzip"}}, "identity"),
    "an unknown model": (404, {"path": "/v2/models/nobody/infer", "body": {"inputs": [IDS]}}, "nobody"),
    "an unknown version": (404, {"path": "/v2/models/tiny/versions/9/infer", "body": {"inputs": [IDS]}}, "9"),
    "an unknown place": (404, {"path": "/v2/modells", "body": {}}, "/v2/modells"),
    "another method": (405, {"path": "/v2/models/tiny/infer", "method": "GET"}, "POST"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_answered_is_told_with_the_status_that_fits(case: str, gateway: RunningGateway) -> None:
    status, request, said = BAD[case]
    path, method = request.get("path", "/v2/models/tiny/infer"), request.get("method", "POST")
    got, answer = ask(gateway, method, path, request.get("body"), request.get("headers"))
    assert got == status, answer
    assert said in answer["error"], answer


def test_the_stock_client_raises_what_is_told(client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"actions\[0\].* 0 to 3, got 44") as caught:
        client.infer("tiny", [given("actions", [44], "INT64")])
    assert caught.value.status() == "400"


def test_a_body_beyond_the_limit_is_not_read(servers: Servers) -> None:
    gateway = servers.gateway(http_port=0, max_message_bytes=64 * 1024)
    status, answer = ask(gateway, "POST", "/v2/models/tiny/infer", b"x" * (70 * 1024))
    assert status == 413
    assert str(64 * 1024) in answer["error"]


def test_an_answer_beyond_the_limit_goes_in_binary_only(servers: Servers) -> None:
    gateway = servers.gateway(http_port=0, http_json_bytes=8192)
    actions = told("actions", "INT64", [60], [0] * 60)
    status, answer = infer(gateway, actions)
    assert status == 400
    assert "8192 bytes of JSON" in answer["error"]
    assert "http_json_bytes" in answer["error"]
    assert "binary_data_output" in answer["error"]
    assert infer(gateway, actions, outputs=[{"name": "chunk_index"}])[0] == 200
    parameters = {"sequence_id": "large", "sequence_start": True}
    for place, count in enumerate((2, 60, 3)):
        status, answer = infer(gateway, told("actions", "INT64", [count], [0] * count), parameters=parameters)
        assert status == (400 if place == 1 else 200), answer
        parameters = {"sequence_id": "large"}
    assert answer["outputs"][2]["data"] == [2, 3, 4]  # what was refused was not done
    infer(gateway, parameters={"sequence_id": "large", "sequence_end": True})
    with triton.InferenceServerClient(gateway.rest_address) as client:
        frames = client.infer("tiny", [given("actions", [0] * 60, "INT64")]).as_numpy("frames")
    assert frames.shape == (60, 4, 6, 3)


def test_no_way_to_write_its_length_lets_more_json_in(servers: Servers) -> None:
    gateway = servers.gateway(http_port=0, http_json_bytes=2048)
    body = json.dumps({"inputs": [IDS], "id": "x" * 3000}).encode()
    for said, expected in ((str(len(body)), 413), ("0" * 16 + str(len(body)), 413), ("0" * 20 + str(len(body)), 400)):
        status, answer = ask(gateway, "POST", "/v2/models/tiny/infer", body, {LENGTH: said})
        assert status == expected, answer
    assert LENGTH in answer["error"]


def test_the_json_of_a_long_answer_is_not_written_by_the_event_loop(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, threads = oip_json._written, list[str]()

    def watched(tensor: Any) -> Iterator[bytes]:
        threads.append(threading.current_thread().name)
        return written(tensor)

    monkeypatch.setattr(oip_json, "_written", watched)
    assert infer(gateway, told("actions", "INT64", [60], [0] * 60), outputs=[{"name": "frames"}])[0] == 200
    assert [name.split("_")[0] for name in threads] == ["json"]


def test_one_connection_asks_many_times_and_nonsense_ends_it(gateway: RunningGateway) -> None:
    host, _, port = str(gateway.rest_address).rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=20)
    for _ in range(3):
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().read() == b'{"live":true}'
    connection.request("HEAD", "/v2/health/live")
    assert connection.getresponse().read() == b""
    connection.close()
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"GET /v2 SPDY/9\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400")
        assert raw.recv(4096) == b""
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(
            b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(
            b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 100")
        raw.sendall(b"{}")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")


def test_many_ask_at_once(gateway: RunningGateway) -> None:
    statuses: list[int] = []

    def one(seed: int) -> None:
        seeded = told("seed", "INT64", [1], [seed])
        statuses.append(infer(gateway, IDS, seeded)[0])

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 24


def test_keys_and_certificates_hold_for_rest_as_well(servers: Servers, tmp_path: Path) -> None:
    keys, authority = KeysFile(tmp_path / "keys"), Authority(tmp_path)
    key = {"Authorization": f"Bearer {keys.add('acme')}"}
    gateway = servers.gateway(http_port=0, keys_file=keys.path)
    assert ask(gateway, "GET", "/v2/health/live")[0] == 200
    for path in ("/v2", "/v2/models/tiny", "/v2/models/stats"):
        assert ask(gateway, "GET", path)[0] == 401, path
        assert ask(gateway, "GET", path, headers=key)[0] == 200, path
    assert infer(gateway, IDS)[0] == 401
    assert ask(gateway, "POST", "/v2/models/tiny/infer", {"inputs": [IDS]}, key)[0] == 200
    assert ask(gateway, "GET", "/v2", headers={"Authorization": "Bearer \xe4"})[0] == 400
    pair = authority.issue("server")
    secret = servers.gateway(http_port=0, keys_file=keys.path, tls_cert_file=pair.chain, tls_key_file=pair.key)
    address = f"localhost:{str(secret.rest_address).rpartition(':')[2]}"
    options = {"ssl": True, "ssl_options": {"ca_certs": str(authority.path)}}
    with triton.InferenceServerClient(address, **options) as client:
        answer = client.infer("tiny", [given("actions", [1], "INT64")], headers=key)
        assert answer.as_numpy("frames").shape == (1, 4, 6, 3)
    with pytest.raises((OSError, EOFError)):
        ask(secret, "GET", "/v2/health/live")


def test_a_client_that_leaves_before_its_answer_ends_the_work(gateway: RunningGateway) -> None:
    host, _, port = str(gateway.rest_address).rpartition(":")
    body = json.dumps({"inputs": [told("actions", "INT64", [250], [0, 1, 2, 1, 0] * 50)]}).encode()
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        until(lambda: calls_in_flight(gateway))
    began_s = time.monotonic()
    until(lambda: not calls_in_flight(gateway))
    assert time.monotonic() - began_s < 2


def test_requests_may_come_before_the_answers_to_those_before(gateway: RunningGateway) -> None:
    host, _, port = str(gateway.rest_address).rpartition(":")
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(request + request)
        raw.sendall(request)
        answers = b""
        while answers.count(b'{"live":true}') < 3:
            answers += raw.recv(4096)
    assert answers.count(b"HTTP/1.1 200") == 3


def calls_in_flight(gateway: RunningGateway) -> bool:
    with urllib.request.urlopen(f"http://{gateway.server.metrics_address}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return 'worldtree_rpc_in_flight{service="gateway"} 0.0' not in lines


def test_a_gateway_that_stops_answers_what_is_under_way(servers: Servers) -> None:
    loop = ServerLoop()
    try:
        gateway = servers.gateway(loop, http_port=0, drain_timeout_s=5.0)
        answers: list[int] = []
        asking = threading.Thread(
            target=lambda: answers.append(infer(gateway, told("actions", "INT64", [40], [0] * 40))[0])
        )
        asking.start()
        until(lambda: answers or calls_in_flight(gateway))
        began_s = time.monotonic()
        loop.run(loop.stack.aclose())
        assert time.monotonic() - began_s < 9
        asking.join()
        assert answers == [200]
    finally:
        loop.close()
