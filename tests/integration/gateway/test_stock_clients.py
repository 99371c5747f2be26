"""Clients of others that want environments of their own; `make test-clients` makes them."""

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import worldtree
from inference_servers import Servers

AIPERF = os.environ.get("WORLDTREE_AIPERF_PYTHON")
KSERVE = os.environ.get("WORLDTREE_KSERVE_PYTHON")
PROGRAMS = Path(__file__).parents[2] / "support/stock_clients"


@pytest.mark.skipif(KSERVE is None, reason="WORLDTREE_KSERVE_PYTHON names no interpreter that has kserve")
def test_kserve_s_clients_see_the_sdk_s_clip_by_grpc_and_by_rest(servers: Servers) -> None:
    gateway = servers.gateway(http_port=0)
    program, rest = PROGRAMS / "kserve_client.py", str(gateway.rest_address)
    done = subprocess.run(
        [str(KSERVE), str(program), gateway.server.address, rest], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    with worldtree.Client(gateway.server.address) as sdk:
        clip = sdk.generate("tiny", start="dawn", seed=41, actions=[1, 2, 0])
    expected = {
        "id": "seventh",
        "model": "tiny",
        "frames": hashlib.sha256(clip.frames.tobytes()).hexdigest(),
        "chunks": [0, 1, 2],
    }
    assert {form: seen[form] for form in ("grpc raw", "grpc typed", "rest binary", "rest json")} == dict.fromkeys(
        ("grpc raw", "grpc typed", "rest binary", "rest json"), expected
    )
    assert seen["grpc states"] == seen["rest states"] == [True, True, True]
    assert "404" in seen["refused"]


@pytest.mark.skipif(AIPERF is None, reason="WORLDTREE_AIPERF_PYTHON names no interpreter that has aiperf")
def test_aiperf_asks_for_clips_at_its_pace_and_none_fails(servers: Servers, tmp_path: Path) -> None:
    python, address = Path(str(AIPERF)), servers.gateway(http_port=0).rest_address
    subprocess.run([python, PROGRAMS / "aiperf_tokenizer.py", tmp_path / "words"], check=True, timeout=60)
    (tmp_path / "actions.jsonl").write_text('{"text": "left"}\n{"text": "stay"}\n')
    actions = '{"name": "actions", "datatype": "BYTES", "shape": [1], "data": [{{ text|tojson }}]}'
    (tmp_path / "request.json").write_text(f'{{"inputs": [{actions}], "outputs": [{{"name": "state_hash"}}]}}')
    options = {
        "--model": "tiny",
        "--url": f"http://{address}",
        "--endpoint": "/v2/models/tiny/infer",
        "--endpoint-type": "template",
        "--custom-dataset-type": "single-turn",
        "--input-file": tmp_path / "actions.jsonl",
        "--tokenizer": tmp_path / "words",
        "--request-count": 64,
        "--concurrency": 8,
        "--artifact-dir": tmp_path / "out",
        "--ui": "none",
    }
    extra = [f"payload_template:{tmp_path / 'request.json'}", "response_field:outputs[0].data[0]"]
    given = [
        *(str(word) for pair in options.items() for word in pair),
        *(w for e in extra for w in ("--extra-inputs", e)),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python.with_name("aiperf")), "profile", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "out/profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == 64
    assert report["request_error_rate"]["avg"] == 0
