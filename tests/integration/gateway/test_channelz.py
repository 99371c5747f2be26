"""Operators see what gRPC knows of a gateway's process, where it is asked for; nobody else does."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from credentials import KeysFile, bearer
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from worldtree_gateway.identity import Role


@pytest.fixture
def keys(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys")


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


async def test_servers_and_their_sockets_are_shown_to_operators_only(
    start_backend, open_gateway, keys: KeysFile
) -> None:
    backend = await start_backend("a")
    user, operator = keys.add("acme"), keys.add("acme", Role.OPERATOR)
    async with open_gateway(backend.address, channelz=True, keys_file=keys.path) as client:
        stub = channelz_pb2_grpc.ChannelzStub(client.channel)
        asked = channelz_pb2.GetServersRequest()
        assert await refused(stub.GetServers(asked)) is grpc.StatusCode.UNAUTHENTICATED
        assert await refused(stub.GetServers(asked, metadata=bearer(user))) is grpc.StatusCode.PERMISSION_DENIED
        answer = await stub.GetServers(asked, metadata=bearer(operator))
        sockets: list[Any] = []
        for server in answer.server:
            of_server = channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
            sockets += (await stub.GetServerSockets(of_server, metadata=bearer(operator))).socket_ref
        assert sockets  # what is told of each needs a grpcio-channelz of grpcio's own version


async def test_it_is_not_served_unless_it_is_asked_for(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        stub = channelz_pb2_grpc.ChannelzStub(client.channel)
        assert await refused(stub.GetServers(channelz_pb2.GetServersRequest())) is grpc.StatusCode.UNIMPLEMENTED
