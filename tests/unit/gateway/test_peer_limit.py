"""Whose an address is, and what is left of a call that is one too many."""

import gc
import warnings
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from worldtree_gateway.errors import TooManyPeerCalls
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.peer_limit import PeerCalls, PeerLimit, network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_ipv6_counts_by_its_network(address: str, network: str) -> None:
    assert network_of(address) == network


async def test_a_stream_that_is_refused_was_never_begun() -> None:
    begun = 0

    async def write(_requests: Any, _context: Any) -> None:
        nonlocal begun
        begun += 1

    async def found(_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(write)

    peers = PeerCalls(1, GatewayMetrics(CollectorRegistry()))
    details: Any = SimpleNamespace(method="/a.B/C")
    handler: Any = await PeerLimit(peers).intercept_service(found, details)
    context: Any = SimpleNamespace(peer=lambda: "ipv4:10.0.0.7:1234")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with peers.counted("10.0.0.7"), pytest.raises(TooManyPeerCalls):
            async for _ in handler.stream_stream(None, context):
                pass
        gc.collect()
    assert begun == 0
    assert [each async for each in handler.stream_stream(None, context)] == []
    assert begun == 1
