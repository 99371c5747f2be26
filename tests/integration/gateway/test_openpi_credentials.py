"""Robots show their key as openpi's own client does, and the WebSocket lets in whom the gRPC port does."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from credentials import AUDIENCE, ISSUER, Authority, Issuer, KeysFile
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.openpi_codec import pack, unpack
from worldtree_gateway.serving import start_gateway

LOOK_S = 0.05
NOT_CONNECTED = (OSError, EOFError, WebSocketException)
OBSERVATION = pack({"image": np.zeros((4, 4, 3), np.uint8), "prompt": "go to the green ball"})


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


@asynccontextmanager
async def gateway(**settings: Any) -> AsyncIterator[Any]:
    """Before a navigator that never answers: whom it lets in does not depend on that."""
    known = {"port": 0, "metrics_port": 0, "openpi_port": 0, "drain_timeout_s": 0.0, "video": []}
    waits = {"probe_timeout_s": 0.5, "rehome_timeout_s": 0.2, "credentials_look_s": LOOK_S}
    async with start_gateway(GatewaySettings(navigator=["127.0.0.1:1"], **{**known, **waits, **settings})) as running:
        yield running


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Api-Key {key}"}


async def refused(address: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"ws://{address}", compression=None, **options):
            pass
    response = caught.value.response
    return response.status_code, response.body.decode()


async def test_a_robot_without_a_key_that_holds_gets_no_handshake(keys: KeysFile) -> None:
    key = keys.add("acme")
    async with gateway(keys_file=keys.path) as running:
        status, body = await refused(running.openpi_address)
        assert (status, body.partition(":")[0]) == (401, "CREDENTIALS_MISSING")
        for shown in (headers(key[:-1] + ("A" if key[-1] != "A" else "B")), headers("x"), {"X-Api-Key": "wt_1"}):
            status, body = await refused(running.openpi_address, additional_headers=shown)
            assert status == 401
            assert key[12:-1] not in body
        status, _ = await refused(running.openpi_address, additional_headers=[*headers(key).items()] * 2)
        assert status == 400


async def test_the_health_of_the_port_is_open(keys: KeysFile) -> None:
    async with gateway(keys_file=keys.path) as running:
        host, _, port = running.openpi_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_key_or_a_token_opens_the_connection_and_goes_along_with_its_calls(
    keys: KeysFile, tmp_path: Path
) -> None:
    issuer = Issuer(tmp_path / "jwks.json")
    tokens = {"jwks_file": issuer.path, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    key = keys.add("acme")
    shown = (headers(key), {"X-Api-Key": key}, headers(issuer.token()), {"Authorization": f"Bearer {key}"})
    async with gateway(keys_file=keys.path, **tokens) as running:
        for each in shown:
            async with connect(f"ws://{running.openpi_address}", additional_headers=each) as robot:
                about = unpack(await robot.recv())
                assert about["server"] == "worldtree"
                assert "UNAUTHENTICATED" not in str(about["notes"])
                assert about["notes"][0].split(":")[0] in ("NO_BACKEND", "BACKEND_DOWN")


async def test_the_stock_client_is_let_in_by_its_api_key(keys: KeysFile) -> None:
    policies = pytest.importorskip("openpi_client.websocket_client_policy", reason="installed by make install")
    key = keys.add("acme")
    async with gateway(keys_file=keys.path) as running:
        host, _, port = running.openpi_address.rpartition(":")
        policy = await asyncio.to_thread(policies.WebsocketClientPolicy, host, int(port), key)
        assert policy.get_server_metadata()["server"] == "worldtree"
        policy._ws.close()


async def test_robots_of_one_address_beyond_the_limit_are_told_to_come_later() -> None:
    async with gateway(max_peer_calls=1) as running, connect(f"ws://{running.openpi_address}") as robot:
        assert "PEER_LIMIT" not in str(unpack(await robot.recv())["notes"])  # what is asked for it is not counted
        async with connect(f"ws://{running.openpi_address}") as other:
            with pytest.raises(ConnectionClosed):
                await other.recv()
            assert other.close_code == 1013
            assert "gateway.max_peer_calls" in str(other.close_reason)
        await robot.send(OBSERVATION)
        assert "PEER_LIMIT" not in str(await robot.recv())


async def test_a_key_that_is_revoked_steers_nobody_any_more(keys: KeysFile) -> None:
    key = keys.add("acme")
    async with (
        gateway(keys_file=keys.path) as running,
        connect(f"ws://{running.openpi_address}", additional_headers=headers(key)) as robot,
    ):
        await robot.recv()
        await robot.send(OBSERVATION)
        assert str(await robot.recv()).split(":")[0] in ("NO_BACKEND", "BACKEND_DOWN")
        keys.revoke(key)
        await asyncio.sleep(2 * LOOK_S)
        await robot.send(OBSERVATION)
        assert str(await robot.recv()).startswith("KEY_REFUSED: ")


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.path))


async def shown_certificate(running: Any, context: ssl.SSLContext, host: str) -> bytes:
    """What a robot that connects now is shown, after it was told what it is connected to."""
    port = running.openpi_address.rpartition(":")[2]
    async with connect(f"wss://{host}:{port}", ssl=context) as robot:
        assert unpack(await robot.recv())["server"] == "worldtree"
        return bytes(robot.transport.get_extra_info("ssl_object").getpeercert(binary_form=True))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])  # a client sends a name, and never an address
async def test_robots_speak_tls_where_all_do_and_get_a_new_certificate(tmp_path: Path, host: str) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    async with gateway(tls_cert_file=pair.chain, tls_key_file=pair.key) as running:
        first = await shown_certificate(running, trusting(authority), host)
        authority.issue("server")
        await asyncio.sleep(2 * LOOK_S)
        assert await shown_certificate(running, trusting(authority), host) != first
        with pytest.raises(NOT_CONNECTED):
            async with connect(f"ws://{running.openpi_address}", open_timeout=5):
                pass


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_robots_need_a_certificate_where_all_do_and_its_ca_can_change(tmp_path: Path, host: str) -> None:
    authority = Authority(tmp_path)
    clients, others = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    pair, client, other = authority.issue("server"), clients.issue("client"), others.issue("other")
    with_client, with_other = trusting(authority), trusting(authority)
    with_client.load_cert_chain(client.chain, client.key)
    with_other.load_cert_chain(other.chain, other.key)
    tls = {"tls_cert_file": pair.chain, "tls_key_file": pair.key, "tls_client_ca_file": clients.path}
    async with gateway(**tls) as running:
        assert await shown_certificate(running, with_client, host)
        for context in (with_other, trusting(authority)):
            with pytest.raises(NOT_CONNECTED):
                await shown_certificate(running, context, host)
        shutil.copy(others.path, clients.path)
        await asyncio.sleep(2 * LOOK_S)
        assert await shown_certificate(running, with_other, host)
        with pytest.raises(NOT_CONNECTED):
            await shown_certificate(running, with_client, host)
