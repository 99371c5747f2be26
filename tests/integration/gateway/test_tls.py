"""Encryption at the gateway: who is let in by certificate, certificates that change, what strangers may cost."""

import asyncio
import shutil
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import worldtree
from credentials import Authority, KeysFile, Pair, bearer
from refusals import refused
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import start_gateway

LOOK_S = 0.05


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def served(authority: Authority) -> Pair:
    return authority.issue("server")


@asynccontextmanager
async def gateway(backend: Any, pair: Pair, **settings: Any) -> AsyncIterator[Any]:
    known = {"port": 0, "metrics_port": 0, "drain_timeout_s": 0.0, "probe_interval_s": 0.1}
    tls = {"tls_cert_file": pair.chain, "tls_key_file": pair.key, "credentials_look_s": LOOK_S}
    async with start_gateway(GatewaySettings(video=[backend.address], **{**known, **tls, **settings})) as running:
        await running.wait_ready()
        yield running


async def asked(running: Any, credentials: grpc.ChannelCredentials | None, metadata: Any = ()) -> grpc.StatusCode:
    """What one call over a new connection ends with."""
    address = f"localhost:{running.server.address.rpartition(':')[2]}"
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    channel = (
        grpc.aio.insecure_channel(address, options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options)
    )
    async with channel:
        try:
            await VideoGeneratorStub(channel).ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def trusting(authority: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    if pair is None:
        return grpc.ssl_channel_credentials(authority.path.read_bytes())
    return grpc.ssl_channel_credentials(authority.path.read_bytes(), pair.key.read_bytes(), pair.chain.read_bytes())


def certificate_of(address: str) -> bytes:
    """What a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
    assert shown is not None
    return shown


async def test_a_client_that_trusts_the_ca_is_answered_and_one_in_clear_text_is_not(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path
) -> None:
    async with gateway(await start_backend("a"), served) as running:
        assert await asked(running, trusting(authority)) is grpc.StatusCode.OK
        assert await asked(running, None) is grpc.StatusCode.UNAVAILABLE
        assert await asked(running, trusting(Authority(tmp_path, "other"))) is grpc.StatusCode.UNAVAILABLE


async def test_without_a_certificate_of_the_clients_ca_nobody_is_answered(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path
) -> None:
    clients, strangers = Authority(tmp_path, "clients"), Authority(tmp_path, "strangers")
    async with gateway(await start_backend("a"), served, tls_client_ca_file=clients.path) as running:
        assert await asked(running, trusting(authority, clients.issue("client"))) is grpc.StatusCode.OK
        assert await asked(running, trusting(authority)) is grpc.StatusCode.UNAVAILABLE
        assert await asked(running, trusting(authority, strangers.issue("stranger"))) is grpc.StatusCode.UNAVAILABLE
        assert await asked(running, None) is grpc.StatusCode.UNAVAILABLE


async def test_new_connections_get_a_new_certificate_and_open_ones_go_on(
    start_backend: Any, authority: Authority, served: Pair
) -> None:
    async with gateway(await start_backend("a"), served) as running:
        address = running.server.address
        first = await asyncio.to_thread(certificate_of, address)
        async with grpc.aio.secure_channel(f"localhost:{address.rpartition(':')[2]}", trusting(authority)) as channel:
            stub = VideoGeneratorStub(channel)
            play = stub.Play()
            await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
            assert (await play.read()).HasField("begun")
            authority.issue("server")
            await asyncio.sleep(2 * LOOK_S)
            assert await asyncio.to_thread(certificate_of, address) != first
            assert await asked(running, trusting(authority)) is grpc.StatusCode.OK
            await play.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])))
            assert (await play.read()).HasField("played")
            play.cancel()


async def test_a_certificate_whose_key_is_yet_to_come_is_not_shown(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path
) -> None:
    async with gateway(await start_backend("a"), served) as running:
        first = await asyncio.to_thread(certificate_of, running.server.address)
        (tmp_path / "new").mkdir()
        new = Authority(tmp_path / "new").issue("server")
        shutil.copy(new.chain, served.chain)
        await asyncio.sleep(2 * LOOK_S)
        assert await asyncio.to_thread(certificate_of, running.server.address) == first
        shutil.copy(new.key, served.key)
        await asyncio.sleep(2 * LOOK_S)
        assert await asyncio.to_thread(certificate_of, running.server.address) != first


async def test_half_a_pair_leaves_every_door_with_the_last_whole_one(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path
) -> None:
    async with gateway(await start_backend("a"), served, http_port=0) as running:
        authority.issue("server")
        await asyncio.sleep(2 * LOOK_S)
        second = await asyncio.to_thread(certificate_of, running.server.address)
        (tmp_path / "new").mkdir()
        shutil.copy(Authority(tmp_path / "new").issue("server").chain, served.chain)
        await asyncio.sleep(2 * LOOK_S)
        for address in (running.server.address, running.rest_address):
            assert await asyncio.to_thread(certificate_of, address) == second


async def test_the_clients_ca_is_replaced_while_the_gateway_runs(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path
) -> None:
    clients, others = Authority(tmp_path, "clients"), Authority(tmp_path, "others")
    client, other = clients.issue("client"), others.issue("other")
    async with gateway(await start_backend("a"), served, tls_client_ca_file=clients.path) as running:
        assert await asked(running, trusting(authority, client)) is grpc.StatusCode.OK
        shutil.copy(others.path, clients.path)
        await asyncio.sleep(2 * LOOK_S)
        assert await asked(running, trusting(authority, other)) is grpc.StatusCode.OK
        assert await asked(running, trusting(authority, client)) is grpc.StatusCode.UNAVAILABLE


async def test_keys_and_certificates_are_asked_for_together(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path
) -> None:
    keys = KeysFile(tmp_path / "keys")
    key = keys.add("acme")
    async with gateway(await start_backend("a"), served, keys_file=keys.path) as running:
        assert await asked(running, trusting(authority)) is grpc.StatusCode.UNAUTHENTICATED
        assert await asked(running, trusting(authority), bearer(key)) is grpc.StatusCode.OK


async def test_the_sdk_brings_its_key_and_trusts_the_ca_it_was_given(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeysFile(tmp_path / "keys")
    key = keys.add("acme")
    async with gateway(await start_backend("a"), served, keys_file=keys.path) as running:
        address = f"localhost:{running.server.address.rpartition(':')[2]}"

        def models(**options: Any) -> list[str]:
            with worldtree.Client(address, tls=str(authority.path), **options) as client:
                return [model.name for model in client.models()]

        assert await asyncio.to_thread(models, api_key=key) == ["echo"]
        with pytest.raises(worldtree.Unauthenticated) as caught:
            await asyncio.to_thread(models)
        assert caught.value.reason == "CREDENTIALS_MISSING"
        monkeypatch.setenv("WORLDTREE_API_KEY", key)
        assert await asyncio.to_thread(models) == ["echo"]
        async with worldtree.aio.Client(address, tls=str(authority.path)) as client:
            assert [model.name for model in await client.models()] == ["echo"]


async def test_the_sdk_shows_a_certificate_of_its_own(
    start_backend: Any, authority: Authority, served: Pair, tmp_path: Path
) -> None:
    clients = Authority(tmp_path, "clients")
    client = clients.issue("client")
    async with gateway(await start_backend("a"), served, tls_client_ca_file=clients.path) as running:
        address = f"localhost:{running.server.address.rpartition(':')[2]}"
        tls = worldtree.Tls(authority.path, cert_file=client.chain, key_file=client.key)
        async with worldtree.aio.Client(address, tls=tls) as opened:
            assert [model.name for model in await opened.models()] == ["echo"]
        async with worldtree.aio.Client(address, tls=authority.path, timeout=2) as opened:
            with pytest.raises(worldtree.Unavailable):
                await opened.models()


# ---- what strangers may cost


async def test_connections_beyond_the_limit_are_not_made(start_backend: Any, open_gateway: Any) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address, max_connections=4) as client, AsyncExitStack() as stack:
        await client.stub.ListModels(pb.ListModelsRequest())
        ended = 0
        for _ in range(12):
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = grpc.aio.insecure_channel(client.gateway.server.address, options)
            await stack.enter_async_context(channel)
            try:
                await VideoGeneratorStub(channel).ListModels(pb.ListModelsRequest(), timeout=0.7)
            except grpc.aio.AioRpcError:
                ended += 1
        assert ended >= 12 - 4
        await client.stub.ListModels(pb.ListModelsRequest())


async def test_calls_of_one_connection_beyond_the_limit_wait(start_backend: Any, open_gateway: Any) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address, max_connection_streams=2, openpi_connections=2) as client:
        holding = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
        held = [client.stub.Step(holding) for _ in range(2)]
        await client.until(lambda: backend.calls["Step"] == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.ListModels(pb.ListModelsRequest(), timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        backend.hold.set()
        await asyncio.gather(*held)
        await client.stub.ListModels(pb.ListModelsRequest())


async def test_calls_of_one_address_beyond_the_limit_are_refused_on_whatever_connection(
    start_backend: Any, open_gateway: Any
) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address, max_peer_calls=3) as client, AsyncExitStack() as stack:
        address = client.gateway.server.address

        async def other() -> Any:
            options = (("grpc.use_local_subchannel_pool", 1),)
            return VideoGeneratorStub(await stack.enter_async_context(grpc.aio.insecure_channel(address, options)))

        holding = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
        held = [asyncio.ensure_future((await other()).Step(holding)) for _ in range(2)]
        play = (await other()).Play()
        await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
        assert (await play.read()).HasField("begun")
        await client.until(lambda: backend.calls["Step"] == 2)
        refusal = await refused((await other()).ListModels(pb.ListModelsRequest()))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PEER_LIMIT")
        assert {"QuotaFailure", "RetryInfo"} <= set(refusal.details)
        assert await client.metric("worldtree_limited_total", quota="peer") == 1
        backend.hold.set()
        await asyncio.gather(*held)
        await client.stub.ListModels(pb.ListModelsRequest())
        play.cancel()


async def test_a_client_that_pings_too_often_is_disconnected(start_backend: Any, open_gateway: Any) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address, ping_interval_min_s=60, ping_strikes=1) as client:
        host, _, port = client.gateway.server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
        writer.write(begin + 8 * ping)
        told = await asyncio.wait_for(reader.read(), 5)
        assert b"too_many_pings" in told
        writer.close()


async def test_an_old_connection_is_made_anew_without_the_loss_of_a_call(start_backend: Any, open_gateway: Any) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address, max_connection_age_s=1.0) as client:
        play = client.stub.Play()
        await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
        assert (await play.read()).HasField("begun")
        ends_s = time.monotonic() + 3
        while time.monotonic() < ends_s:
            await client.stub.Get(pb.GetRequest(session="s.a"))
            await asyncio.sleep(0.01)
        await play.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])))
        assert (await play.read()).HasField("played")
        play.cancel()


async def test_every_limit_may_be_as_large_as_its_setting_lets_it(start_backend: Any, open_gateway: Any) -> None:
    limits = {}
    for name in (
        *("max_connections", "max_connection_streams", "max_connection_age_s", "max_connection_idle_s"),
        *("handshake_timeout_s", "ping_interval_min_s", "ping_strikes"),
    ):
        (limits[name],) = [each.le for each in GatewaySettings.model_fields[name].metadata if hasattr(each, "le")]
    backend = await start_backend("a")
    async with open_gateway(backend.address, **limits) as client:
        await client.stub.ListModels(pb.ListModelsRequest())


async def test_a_connection_that_never_speaks_tls_is_given_up(start_backend: Any, served: Pair) -> None:
    async with gateway(await start_backend("a"), served, handshake_timeout_s=0.5) as running:
        host, _, port = running.server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        began_s = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        assert time.monotonic() - began_s < 8
        writer.close()


# ---- downgrades


def old_client() -> ssl.SSLContext:
    """Of one who speaks TLS 1.1 and nothing newer, and takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def spoken(port: int, context: ssl.SSLContext) -> str | None:
    """The version that both agree on. None: they don't."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=context), 10)
    except (ssl.SSLError, ConnectionError):
        return None
    version = writer.get_extra_info("ssl_object").version()
    writer.close()
    return str(version)


async def test_no_port_speaks_an_old_tls_or_clear_text(start_backend: Any, served: Pair, authority: Authority) -> None:
    willing = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    willing.load_cert_chain(served.chain, served.key)
    willing.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        willing.minimum_version = ssl.TLSVersion.TLSv1_1
    control = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", ssl=willing)
    async with control:
        assert await spoken(control.sockets[0].getsockname()[1], old_client()) == "TLSv1.1", "the client could"
    backend = await start_backend("a")
    async with gateway(backend, served, navigator=[backend.address], http_port=0, openpi_port=0) as running:
        addresses = [running.server.address, running.rest_address, running.openpi_address]
        for address in addresses:
            port = int(address.rpartition(":")[2])
            assert await spoken(port, old_client()) is None, address
            new = ssl.create_default_context(cafile=str(authority.path))
            new.set_alpn_protocols(["h2", "http/1.1"])
            assert await spoken(port, new) in ("TLSv1.2", "TLSv1.3"), address
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            with suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(), 20)
                assert not answer.startswith(b"HTTP/1.1 2"), address
            writer.close()
