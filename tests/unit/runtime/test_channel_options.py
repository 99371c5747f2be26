"""gRPC passes over an option that it does not know without a word: a name that is a little wrong would do nothing."""

from pathlib import Path

import pytest
from grpc._cython import cygrpc
from worldtree._channel import ChannelSettings
from worldtree_runtime import server


@pytest.fixture(scope="module")
def library() -> bytes:
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", [name for name, _ in server._OPTIONS])
def test_each_option_of_our_servers_is_one_that_grpc_reads(library: bytes, name: str) -> None:
    assert f"{name}\0".encode() in library


def test_each_option_of_the_sdk_is_one_that_grpc_reads(library: bytes) -> None:
    settings = ChannelSettings.resolve("localhost:7070", api_key=None, tls=False, timeout=None)
    assert [name for name, _ in settings.options if f"{name}\0".encode() not in library] == []
