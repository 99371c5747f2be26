"""Whatever bytes come in a message of any method, they are answered or refused in our own words, and nothing dies.

WORLDTREE_FUZZ_EXAMPLES asks for more than a few a method, each time other ones, and what that takes of memory.
"""

import ctypes
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from credentials import KeysFile, bearer
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import nearly
from tritonclient.grpc import service_pb2
from whole import Whole
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_gateway.domain import GATEWAY, SERVICES
from worldtree_gateway.identity import Role

EXAMPLES = int(os.environ.get("WORLDTREE_FUZZ_EXAMPLES", "12"))
CALL_S = 1.5
INFERENCE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
METHODS = [method for service in (*SERVICES, GATEWAY) for method in service.descriptor.methods]
METHODS += INFERENCE.methods
# what no client did: a bug, or a status that gRPC made up
BUGS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("whole")
    keys = KeysFile(folder / "keys")
    key = keys.add("acme", Role.OPERATOR)
    whole: Any = Whole(folder / "models", keys_file=keys.path)
    whole.metadata, whole.sent = bearer(key), []
    whole.channel = grpc.insecure_channel(whole.gateway.server.address)
    stub = VideoGeneratorStub(whole.channel)
    origin = pb.Origin(start="dusk")
    request = pb.CreateSessionRequest(model=common.ModelRef(name="tiny"), origin=origin)
    whole.session = stub.CreateSession(request, metadata=whole.metadata).session.session
    if "WORLDTREE_FUZZ_EXAMPLES" in os.environ:
        logging.disable()  # pytest holds each line, which is all that would grow
    yield whole
    logging.disable(logging.NOTSET)
    listed = stub.List(pb.ListRequest(), metadata=whole.metadata, timeout=10)  # all of it lives
    assert isinstance(listed, pb.ListResponse)
    whole.channel.close()
    whole.close()


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def told(whole: Any, method: MethodDescriptor, messages: list[bytes]) -> grpc.RpcError | None:
    """What a call with these bytes is refused with. None: it was answered."""
    kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
    call = getattr(whole.channel, "_".join(kind))(path_of(method))
    asked: Any = iter(messages) if method.client_streaming else messages[0]
    try:
        answer = call(asked, metadata=whole.metadata, timeout=CALL_S)
        if method.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error
    return None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS, ids=path_of)
def test_any_bytes_are_answered_or_refused_in_our_own_words(method: MethodDescriptor, whole: Any) -> None:
    words = [whole.session, whole.session, "tiny", "dusk", "left", "1", "mpc", "bright"]
    count = 3 if method.client_streaming else 1

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="WORLDTREE_FUZZ_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(nearly(method.input_type, words), min_size=1, max_size=count))
    def holds(messages: list[bytes]) -> None:
        whole.sent.append((method, messages))
        error: Any = told(whole, method, messages)
        if error is None or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return
        assert error.code() not in BUGS, f"{error.code()}: {error.details()}"
        status = rpc_status.from_call(error)
        assert status is not None, f"{error.code()} {error.details()!r} has no details"
        found = [each.value for each in status.details if each.type_url.endswith(".ErrorInfo")]
        assert [error_details_pb2.ErrorInfo.FromString(each).domain for each in found] == ["worldtree"]

    holds()
    answer = VideoGeneratorStub(whole.channel).ListModels(pb.ListModelsRequest(), metadata=whole.metadata, timeout=10)
    assert answer.models[0].ref.name == "tiny"


@pytest.mark.timeout(3600)
@pytest.mark.skipif("WORLDTREE_FUZZ_EXAMPLES" not in os.environ, reason="for as many as that asks for")
def test_what_was_sent_is_sent_again_and_takes_no_more_memory(whole: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the process that holds all services and this client. The first time again fills what is bounded."""
    taken = []
    for _ in range(3):
        for method, messages in whole.sent:
            told(whole, method, messages)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        taken.append(_resident_mib())
    grown = taken[-1] - taken[0]
    with capsys.disabled():
        count, told_mib = 4 * len(whole.sent), " -> ".join(f"{each:.1f}" for each in taken)
        print(f"\n{count:,} calls of {len(METHODS)} methods, {len(whole.sent):,} of them different; MiB: {told_mib}")
    assert grown < 16 + 0.001 * len(whole.sent), f"{grown:.1f} MiB more after {2 * len(whole.sent)} calls"


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
