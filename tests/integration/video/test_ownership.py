"""A session is its tenant's: to all others there is none of that name, whatever they ask, also after a restart."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from refusals import Refusal, refusal_of
from video_process import video_process
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld

StartVideo = Callable[..., Awaitable[Any]]
OWNER = (("worldtree-tenant", "acme"),)
OTHER = (("worldtree-tenant", "globex"),)
SERVICE = pb.DESCRIPTOR.services_by_name["VideoGenerator"]


def names_a_session(method: MethodDescriptor) -> bool:
    first = method.input_type.fields_by_number.get(1)
    return first is not None and first.name == "session"


SESSION_METHODS = [method for method in SERVICE.methods if names_a_session(method)]


async def create(video: Any, metadata: Any = OWNER, **fields: Any) -> str:
    request = pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dusk"), seed=7, **fields)
    return str((await video.stub.CreateSession(request, metadata=metadata)).session.session)


async def refused(call: Any) -> Refusal:
    try:
        if hasattr(call, "__aiter__"):
            [each async for each in call]
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return await refusal_of(error)
    raise AssertionError("the call was not refused")


async def asked(video: Any, method: MethodDescriptor, session: str, metadata: Any) -> Refusal:
    """What a caller is told who names `session` in this method."""
    request = message_factory.GetMessageClass(method.input_type)(session=session)
    if not method.client_streaming:
        return await refused(getattr(video.stub, method.name)(request, metadata=metadata))
    request.begin.SetInParent()

    async def requests() -> AsyncIterator[Any]:
        yield request

    return await refused(getattr(video.stub, method.name)(requests(), metadata=metadata))


def test_the_methods_that_name_a_session_are_found() -> None:
    assert {"Step", "Play", "Rollout", "Fork", "Rewind", "Save", "Get", "Delete", "KeepAlive"} <= {
        method.name for method in SESSION_METHODS
    }


@pytest.mark.parametrize("method", SESSION_METHODS, ids=lambda method: str(method.name))
async def test_to_another_tenant_a_session_is_as_one_that_never_was(method: MethodDescriptor, start_video: Any) -> None:
    video = await start_video()
    session = await create(video)
    for metadata in (OTHER, ()):
        theirs = await asked(video, method, session, metadata)
        nobodys = await asked(video, method, "0" * 8 + session[8:], metadata)
        assert theirs.code is nobodys.code is grpc.StatusCode.NOT_FOUND
        assert theirs.reason == nobodys.reason == "SESSION_NOT_FOUND"
        assert theirs.message.replace(session, "") == nobodys.message.replace("0" * 8 + session[8:], "")
    answer = await video.stub.Get(pb.GetRequest(session=session), metadata=OWNER)
    assert answer.session.chunk_index == 0, "it has moved"


async def test_a_list_shows_the_callers_own_sessions(start_video: Any) -> None:
    video = await start_video()
    mine, theirs = [await create(video) for _ in range(2)], await create(video, OTHER)
    for metadata, sessions in ((OWNER, mine), (OTHER, [theirs]), ((), [])):
        listed = (await video.stub.List(pb.ListRequest(), metadata=metadata)).sessions
        assert [each.session for each in listed] == sessions
    page = await video.stub.List(pb.ListRequest(page_size=1), metadata=OWNER)
    rest = await video.stub.List(pb.ListRequest(page_size=1, page_token=page.next_page_token), metadata=OWNER)
    assert [page.sessions[0].session, rest.sessions[0].session] == mine
    assert not rest.next_page_token


async def test_what_a_session_leads_to_is_its_owners_too(start_video: Any) -> None:
    video = await start_video()
    session = await create(video)
    forked = await video.stub.Fork(pb.ForkRequest(session=session, count=1), metadata=OWNER)
    child = forked.sessions[0].session
    assert (await refused(video.stub.Get(pb.GetRequest(session=child), metadata=OTHER))).reason == "SESSION_NOT_FOUND"
    saved = await video.stub.Save(pb.SaveRequest(session=session), metadata=OWNER)
    restore = pb.RestoreRequest(snapshot=saved.snapshot)
    assert (await refused(video.stub.Restore(restore, metadata=OTHER))).code is grpc.StatusCode.NOT_FOUND
    twin = (await video.stub.Restore(restore, metadata=OWNER)).session.session
    assert (await refused(video.stub.Get(pb.GetRequest(session=twin), metadata=OTHER))).reason == "SESSION_NOT_FOUND"


async def test_a_snapshot_is_not_found_by_a_tenant_whose_name_its_owners_begins_with(start_video: Any) -> None:
    video, owner = await start_video(), (("worldtree-tenant", "acme:team"),)
    saved = await video.stub.Save(pb.SaveRequest(session=await create(video, owner)), metadata=owner)
    theirs = pb.RestoreRequest(snapshot=f"team:{saved.snapshot}")
    refusal = await refused(video.stub.Restore(theirs, metadata=OWNER))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert (await video.stub.Restore(pb.RestoreRequest(snapshot=saved.snapshot), metadata=owner)).session.session


async def test_a_request_id_of_another_tenant_is_another_request(start_video: Any) -> None:
    video = await start_video()
    names = [await create(video, metadata, request_id="one") for metadata in (OWNER, OTHER, OWNER)]
    assert names[0] == names[2] != names[1]
    saved = await video.stub.Save(pb.SaveRequest(session=names[0], include_data=True), metadata=OWNER)
    request = pb.RestoreRequest(data=saved.data, request_id="two")
    twins = [(await video.stub.Restore(request, metadata=each)).session.session for each in (OWNER, OTHER)]
    assert twins[0] != twins[1]


async def _still_owned(stub: Any, session: str, *, dead: str = "") -> None:
    rehome = (("worldtree-rehome", dead),) if dead else ()
    for first in (OTHER, OWNER, OTHER):
        call = stub.Get(pb.GetRequest(session=session), metadata=(*first, *rehome))
        if first is OWNER:
            assert (await call).session.session == session
        else:
            assert (await refused(call)).reason == "SESSION_NOT_FOUND"


async def _create(stub: Any) -> str:
    request = pb.CreateSessionRequest(model=common.ModelRef(name="tiny"), origin=pb.Origin(start="dusk"))
    return str((await stub.CreateSession(request, metadata=OWNER)).session.session)


async def test_a_session_keeps_its_owner_when_its_replica_is_killed_and_comes_back(tmp_path: Path) -> None:
    TinyWorld().write(tmp_path / "models")
    flags = {"replica": "a", "journal_folder": tmp_path / "journal"}
    async with video_process(models=tmp_path / "models", **flags) as (stub, process):
        session = await _create(stub)
        process.kill()
        await process.wait()
    async with video_process(models=tmp_path / "models", **flags) as (stub, _):
        await _still_owned(stub, session)


async def test_a_session_keeps_its_owner_when_another_replica_takes_it_on(tmp_path: Path, valkey: Any) -> None:
    TinyWorld().write(tmp_path / "models")
    async with video_process(models=tmp_path / "models", replica="a", redis_url=valkey.url) as (stub, process):
        session = await _create(stub)
        process.kill()
        await process.wait()
    async with video_process(models=tmp_path / "models", replica="b", redis_url=valkey.url) as (stub, _):
        await _still_owned(stub, session, dead="a")
