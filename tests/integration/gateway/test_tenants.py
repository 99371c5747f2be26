"""Two tenants at one gateway, before real services: neither finds the other's sessions, in whatever call names them."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from credentials import KeysFile, bearer
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from refusals import Refusal, refused
from whole import Whole
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.identity import Role

IGNORE_IT = {"Navigate", "PlanOnMap"}  # as their protos say


def names_a_session(method: MethodDescriptor) -> bool:
    first = method.input_type.fields_by_number.get(1)
    return first is not None and first.name == "session" and method.name not in IGNORE_IT


METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for service in SERVICES
    for method in service.descriptor.methods
    if names_a_session(method)
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("whole")
    keys = KeysFile(folder / "keys")
    mine, theirs, operators = keys.add("acme"), keys.add("globex"), keys.add("globex", Role.OPERATOR)
    whole: Any = Whole(folder / "models", keys_file=keys.path)
    whole.keys_file = keys.path
    whole.mine, whole.theirs, whole.operators = bearer(mine), bearer(theirs), bearer(operators)
    yield whole
    whole.close()


@pytest.fixture
async def channel(whole: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(whole.gateway.server.address) as channel:
        yield channel


async def opened(channel: Any, metadata: Any) -> str:
    request = pb.CreateSessionRequest(model=common.ModelRef(name="tiny"), origin=pb.Origin(start="dusk"))
    answer = await VideoGeneratorStub(channel).CreateSession(request, metadata=metadata)
    return str(answer.session.session)


async def asked(channel: Any, path: str, method: MethodDescriptor, session: str, metadata: Any) -> Refusal:
    """What a caller is told who names `session` in this method."""
    request: Any = message_factory.GetMessageClass(method.input_type)(session=session)
    if method.client_streaming:
        request.begin.SetInParent()
    if method.name in ("Imagine", "Plan"):
        request.question.goal = "a bright clip"
    kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
    data = request.SerializeToString()

    async def requests() -> AsyncIterator[bytes]:
        yield data

    call = getattr(channel, "_".join(kind))(path)
    return await refused(call(requests() if method.client_streaming else data, metadata=metadata, timeout=20))


def test_methods_of_more_than_one_service_name_a_session() -> None:
    assert {"Step", "Play", "Delete", "Imagine", "Plan"} <= {method.name for _, method in METHODS}


@pytest.mark.parametrize(("path", "method"), METHODS, ids=[method.name for _, method in METHODS])
async def test_a_session_of_another_tenant_is_not_found(
    path: str, method: MethodDescriptor, whole: Any, channel: Any
) -> None:
    session = await opened(channel, whole.mine)
    for metadata in (whole.theirs, whole.operators):
        theirs = await asked(channel, path, method, session, metadata)
        nobodys = await asked(channel, path, method, "0" * 8 + session[8:], metadata)
        assert (theirs.code, theirs.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
        assert (nobodys.code, nobodys.reason) == (theirs.code, theirs.reason)
    stub = VideoGeneratorStub(channel)
    assert (await stub.Get(pb.GetRequest(session=session), metadata=whole.mine)).session.chunk_index == 0
    await stub.Delete(pb.DeleteRequest(session=session), metadata=whole.mine)


async def test_the_navigator_asks_of_a_session_for_whoever_asked_the_navigator(whole: Any, channel: Any) -> None:
    session = await opened(channel, whole.mine)
    request = navigator_pb.PlanRequest(session=session, budget=navigator_pb.Budget(chunk_count=8))
    request.question.goal = "a bright clip"
    request.actions.extend(["left", "right"])
    plan = await NavigatorStub(channel).Plan(request, metadata=whole.mine, timeout=60)
    assert plan.actions
    await VideoGeneratorStub(channel).Delete(pb.DeleteRequest(session=session), metadata=whole.mine)


async def test_each_tenant_lists_its_own_sessions_at_whatever_gateway(whole: Any, channel: Any) -> None:
    mine, theirs = await opened(channel, whole.mine), await opened(channel, whole.theirs)
    another = whole.open_gateway(keys_file=whole.keys_file)  # as one that was started anew
    async with grpc.aio.insecure_channel(another.server.address) as second:
        for each in (channel, second):
            stub = VideoGeneratorStub(each)
            for metadata, own, other in ((whole.mine, mine, theirs), (whole.theirs, theirs, mine)):
                listed = {found.session for found in (await stub.List(pb.ListRequest(), metadata=metadata)).sessions}
                assert own in listed
                assert other not in listed
                assert (await stub.Get(pb.GetRequest(session=own), metadata=metadata)).session.session == own
                call = stub.Get(pb.GetRequest(session=other), metadata=metadata)
                assert (await refused(call)).reason == "SESSION_NOT_FOUND"


async def test_operators_see_whose_sessions_there_are(whole: Any, channel: Any) -> None:
    session = await opened(channel, whole.mine)
    stub = VideoGeneratorStub(channel)
    shown = await stub.Introspect(pb.IntrospectRequest(), metadata=whole.operators)
    tenants = {each.session.session: each.tenant for model in shown.models for each in model.sessions}
    assert tenants[session] == "acme"
    assert (await refused(stub.Introspect(pb.IntrospectRequest(), metadata=whole.theirs))).reason == "OPERATORS_ONLY"
