"""Sessions go home, other calls go where there is room, and the gateway tells who can't be reached."""

import asyncio
import urllib.request
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb


async def test_a_session_is_always_answered_by_its_home(start_backend, open_gateway) -> None:
    homes = {name: await start_backend(name) for name in ("a", "b")}
    async with open_gateway(*(each.address for each in homes.values())) as client:
        await client.until(lambda: all(each.usable for each in client.gateway.routers[0].backends))
        sessions = [(await client.stub.CreateSession(pb.CreateSessionRequest())).session.session for _ in range(8)]
        assert Counter(each.rpartition(".")[2] for each in sessions) == {"a": 4, "b": 4}
        for _ in range(3):
            for session in sessions:
                assert (await client.stub.Get(pb.GetRequest(session=session))).session.start == session[-1]
        for session in sessions:
            play = client.stub.Play()
            await play.write(pb.PlayRequest(session=session, begin=pb.PlayRequest.Begin()))
            await play.read()
            await play.done_writing()
    assert homes["a"].calls["Play"] == homes["b"].calls["Play"] == 4


async def test_a_call_without_a_session_goes_to_the_least_loaded(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        await client.until(lambda: all(each.usable for each in client.gateway.routers[0].backends))
        held = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
        holding = [asyncio.ensure_future(client.stub.Step(held)) for _ in range(6)]
        await client.until(lambda: a.calls["Step"] == 6)
        for _ in range(6):  # each counts for a while, as its calls have yet to come
            await client.stub.CreateSession(pb.CreateSessionRequest())
        a.hold.set()
        await asyncio.gather(*holding)
    assert (a.calls["CreateSession"], b.calls["CreateSession"]) == (0, 6)


async def test_a_snapshot_is_restored_at_home_while_home_is_there(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        await client.until(lambda: all(each.usable for each in client.gateway.routers[0].backends))
        for _ in range(4):
            await client.stub.Restore(pb.RestoreRequest(snapshot="x.b"))
        assert b.calls["Restore"] == 4
        await client.stub.Restore(pb.RestoreRequest(snapshot="x.gone"))


@pytest.mark.parametrize("session", ["s.nowhere", "no-dot", "s.", ".a", "s.a.b", "ä.ö", "x" * 300 + ".nowhere"])
async def test_an_unknown_session_is_not_found(start_backend, open_gateway, session: str) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        if len(session) <= 253:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await client.stub.Step(pb.StepRequest(session=session, actions=[pb.Action(id=1)]))
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
            assert client.details(raised.value)["ErrorInfo"].reason == "SESSION_NOT_FOUND"
            assert backend.calls["Step"] == 0
        else:  # no id of ours is that long: the backend says what it thinks of it
            await client.stub.Step(pb.StepRequest(session=session, actions=[pb.Action(id=1)]))
        play = client.stub.Play()
        await play.write(pb.PlayRequest(session="s.nowhere", begin=pb.PlayRequest.Begin()))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await play.read()
        assert client.details(raised.value)["ErrorInfo"].reason == "SESSION_NOT_FOUND"


async def test_a_dead_home_is_unavailable_until_it_is_back_and_others_go_on(spawn_backend, open_gateway) -> None:
    a, b = spawn_backend("a"), spawn_backend("b")
    async with open_gateway(a.address, b.address) as client:
        (router,) = client.gateway.routers
        await client.until(lambda: all(each.usable for each in router.backends))
        a.kill()
        await client.until(lambda: not router.backends[0].connected)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Get(pb.GetRequest(session="s.a"))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert client.details(raised.value)["ErrorInfo"].reason == "BACKEND_DOWN"
        for _ in range(4):
            session = (await client.stub.CreateSession(pb.CreateSessionRequest())).session.session
            assert session.endswith(".b")
        assert client.gateway.ready
        assert await client.metric("worldtree_upstream_up", service="video", backend=a.address) == 0

        spawn_backend("a", a.port)
        await client.until(lambda: router.backends[0].usable)
        assert (await client.stub.Get(pb.GetRequest(session="s.a"))).session.start == "a"


async def test_sessions_of_a_replica_that_came_back_under_another_name_are_not_found(
    spawn_backend, open_gateway
) -> None:
    backend = spawn_backend("a")
    async with open_gateway(backend.address) as client:
        (router,) = client.gateway.routers
        backend.kill()
        await client.until(lambda: not router.backends[0].connected)
        spawn_backend("a2", backend.port)
        await client.until(lambda: router.backends[0].usable)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Get(pb.GetRequest(session="s.a"))
        assert client.details(raised.value)["ErrorInfo"].reason == "SESSION_NOT_FOUND"
        assert (await client.stub.Get(pb.GetRequest(session="s.a2"))).session.start == "a2"


async def test_two_backends_of_one_name_are_not_mixed_up(start_backend, open_gateway) -> None:
    first, second = await start_backend("same"), await start_backend("same")
    async with open_gateway(first.address, second.address) as client:
        (router,) = client.gateway.routers
        await client.until(lambda: sum(each.conflicting for each in router.backends) == 1)
        for _ in range(4):
            await client.stub.Get(pb.GetRequest(session="s.same"))
            await client.stub.CreateSession(pb.CreateSessionRequest())
    assert sorted((first.calls["Get"], second.calls["Get"])) == [0, 4]
    assert sorted((first.calls["CreateSession"], second.calls["CreateSession"])) == [0, 4]


async def test_a_backend_that_is_full_keeps_its_sessions_and_gets_no_new_ones(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as client:
        (router,) = client.gateway.routers
        await client.until(lambda: all(each.usable for each in router.backends))
        a.running.set_serving(False)
        await client.until(lambda: not router.backends[0].taking)
        for _ in range(4):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert (a.calls["CreateSession"], b.calls["CreateSession"]) == (0, 4)
        assert (await client.stub.Get(pb.GetRequest(session="s.a"))).session.start == "a"
        b.running.set_serving(False)
        await client.until(lambda: not router.backends[1].taking)
        assert not client.gateway.ready
        await client.stub.CreateSession(pb.CreateSessionRequest())  # one of them answers for itself
        a.running.set_serving(True)
        await client.until(lambda: router.backends[0].usable)
        assert client.gateway.ready


async def test_without_a_live_backend_calls_are_unavailable_and_the_gateway_is_not_ready(open_gateway) -> None:
    async with open_gateway("127.0.0.1:9", wait=False, probe_timeout_s=0.2) as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert client.details(raised.value)["ErrorInfo"].reason == "NO_BACKEND"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Get(pb.GetRequest(session="s.a"))
        assert client.details(raised.value)["ErrorInfo"].reason == "BACKEND_DOWN", (
            "it may be the home, once it says who it is"
        )


async def test_reflection_describes_the_proxied_service_to_a_client_that_has_no_protos(
    start_backend, open_gateway
) -> None:
    backend = await start_backend("a")
    request = reflection_pb2.ServerReflectionRequest
    async with open_gateway(backend.address) as client:
        reflect = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo
        asked = [request(list_services=""), request(file_containing_symbol="worldtree.video.v1.VideoGenerator")]
        listed, described = [answer async for answer in reflect(iter(asked))]
        names = {each.name for each in listed.list_services_response.service}
        assert {"worldtree.video.v1.VideoGenerator", "grpc.health.v1.Health"} <= names

        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        pool = descriptor_pool.DescriptorPool()
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw)
            for raw in described.file_descriptor_response.file_descriptor_proto
        ]
        waiting = {file.name: file for file in files}
        while waiting:  # a file may come before what it imports
            for name, file in list(waiting.items()):
                if not any(each in waiting for each in file.dependency):
                    pool.Add(file)
                    del waiting[name]
        method = pool.FindServiceByName("worldtree.video.v1.VideoGenerator").methods_by_name["ListModels"]
        answer_class = message_factory.GetMessageClass(method.output_type)
        call = client.channel.unary_unary(
            "/worldtree.video.v1.VideoGenerator/ListModels", response_deserializer=answer_class.FromString
        )
        assert (await call(b"")).models[0].ref.name == "echo"


async def test_something_else_at_a_backends_address_takes_nothing_down(start_backend, open_gateway) -> None:
    async def garbage(request: bytes, context: Any) -> Any:
        yield b"\xff\xff\xff"

    async def nothing(request: bytes, context: Any) -> bytes:
        return b""

    backend = await start_backend("a")
    stranger = grpc.aio.server()
    watch = {"Watch": grpc.unary_stream_rpc_method_handler(garbage)}
    models = {"ListModels": grpc.unary_unary_rpc_method_handler(nothing)}
    stranger.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", watch),
            grpc.method_handlers_generic_handler("worldtree.video.v1.VideoGenerator", models),
        )
    )
    port = stranger.add_insecure_port("127.0.0.1:0")
    await stranger.start()
    try:
        async with open_gateway(f"127.0.0.1:{port}", backend.address) as client:
            await asyncio.sleep(0.5)
            assert [each.usable for each in client.gateway.routers[0].backends] == [False, True]
            await client.stub.Get(pb.GetRequest(session="s.a"))
    finally:
        await stranger.stop(0)


async def test_replicas_come_and_go_with_the_file_that_lists_them(start_backend, open_gateway, tmp_path) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    listed = tmp_path / "replicas"
    listed.write_text(f"{a.address}\n")
    async with open_gateway(f"file:{listed}", look_interval_s=0.05) as client:
        router = client.gateway.routers[0]
        for _ in range(2):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert a.calls["CreateSession"] == 2
        listed.write_text(f"{a.address}\n{b.address}\n")
        await client.until(lambda: sum(each.usable for each in router.backends) == 2)
        session = (await client.stub.Get(pb.GetRequest(session="s.b"))).session
        assert session.start == "b"
        listed.write_text(f"{b.address}\n")
        await client.until(lambda: sum(each.usable for each in router.backends) == 1)
        for _ in range(4):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert (a.calls["CreateSession"], b.calls["CreateSession"]) == (2, 4), "no new ones go where none shall"
        assert (await client.stub.Get(pb.GetRequest(session="s.a"))).session.start == "a", "its own are still there"
        assert await client.metric("worldtree_upstream_up", backend=a.address) == 0
        await a.__aexit__()
        await client.until(lambda: [each.address for each in router.backends] == [b.address])
        assert 'backend="' + a.address not in await metrics_text(client)


async def metrics_text(client: Any) -> str:
    url = f"http://{client.gateway.server.metrics_address}/metrics"
    return await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())


async def test_a_replica_that_is_listed_again_takes_calls_again(start_backend, open_gateway, tmp_path) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    listed = tmp_path / "replicas"
    listed.write_text(f"{a.address}\n{b.address}\n")
    async with open_gateway(f"file:{listed}", look_interval_s=0.05) as client:
        router = client.gateway.routers[0]
        await client.until(lambda: sum(each.usable for each in router.backends) == 2)
        listed.write_text(f"{b.address}\n")
        await client.until(lambda: sum(each.usable for each in router.backends) == 1)
        listed.write_text(f"{b.address}\n{a.address}\n")
        await client.until(lambda: sum(each.usable for each in router.backends) == 2)
        for _ in range(4):
            await client.stub.CreateSession(pb.CreateSessionRequest())
    assert (a.calls["CreateSession"], b.calls["CreateSession"]) == (2, 2)


async def test_a_replica_that_fails_call_after_call_gets_no_new_ones_for_a_while(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    bug = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="bug")])
    async with open_gateway(a.address, b.address, ejection_failures=3, ejection_s=0.5) as client:
        await client.until(lambda: sum(each.usable for each in client.gateway.routers[0].backends) == 2)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.stub.Step(bug)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert await client.metric("worldtree_upstream_ejected", backend=a.address) == 1
        for _ in range(4):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert (a.calls["CreateSession"], b.calls["CreateSession"]) == (0, 4)
        assert (await client.stub.Get(pb.GetRequest(session="s.a"))).session.start == "a", "its sessions go home"
        await client.until(lambda: not client.gateway.routers[0].backends[0].away)
        for _ in range(4):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert a.calls["CreateSession"] > 0


async def test_a_callers_own_mistakes_send_nobody_away(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address, ejection_failures=1, ejection_s=60) as client:
        for instruction in ("busy", "full"):
            with pytest.raises(grpc.aio.AioRpcError):
                await client.stub.Step(pb.StepRequest(session="s.a", actions=[pb.Action(instruction=instruction)]))
        assert not any(each.away for each in client.gateway.routers[0].backends)


async def test_a_replica_that_is_listed_by_another_address_goes_on_there(start_backend, open_gateway, tmp_path) -> None:
    a = await start_backend("a")
    listed = tmp_path / "replicas"
    listed.write_text(f"{a.address}\n")
    async with open_gateway(f"file:{listed}", look_interval_s=0.05) as client:
        router = client.gateway.routers[0]
        listed.write_text(f"localhost:{a.address.rpartition(':')[2]}\n")
        await client.until(lambda: [each.address[:9] for each in router.backends] == ["localhost"])
        assert client.gateway.ready
        for _ in range(2):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert (await client.stub.Get(pb.GetRequest(session="s.a"))).session.start == "a"
        assert not any(each.conflicting for each in router.backends)


async def test_a_replica_that_answers_too_late_does_not_count_as_well(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    bug = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="bug")])
    late = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
    async with open_gateway(a.address, b.address, ejection_failures=3, ejection_s=60) as client:
        for _ in range(3):
            for request, timeout_s in ((bug, 5.0), (late, 0.2)):
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.stub.Step(request, timeout=timeout_s)
        await client.until(lambda: client.gateway.routers[0].backends[0].away)


def beginning(start: str) -> pb.CreateSessionRequest:
    return pb.CreateSessionRequest(model=common_pb2.ModelRef(name="echo"), origin=pb.Origin(start=start))


async def opened(client: Any, start: str) -> str:
    """The replica at which a world that begins so is opened."""
    answer = await client.stub.CreateSession(beginning(start))
    return str(answer.session.session.rpartition(".")[2])


async def test_worlds_that_begin_alike_are_opened_at_one_replica_whichever_gateway_is_asked(
    start_backend, open_gateway
) -> None:
    backends = {name: await start_backend(name) for name in ("a", "b", "c")}
    addresses = [each.address for each in backends.values()]
    async with open_gateway(*addresses) as first, open_gateway(*addresses[::-1]) as second:
        for client in (first, second):
            await client.until(lambda client=client: all(each.usable for each in client.gateway.routers[0].backends))
        homes = {await opened(client, "meadow") for client in (first, second, first, second)}
        assert len(homes) == 1
        assert await first.metric("worldtree_placements_total", service="video", how="start") == 2
        clip = pb.GenerateRequest(model=common_pb2.ModelRef(name="echo"), origin=pb.Origin(start="meadow"))
        assert [message async for message in first.stub.Generate(clip)]
        assert [name for name, each in backends.items() if each.calls["Generate"]] == [*homes]


async def test_a_start_that_everybody_wants_overruns_nobody(start_backend, open_gateway) -> None:
    backends = [await start_backend(name) for name in ("a", "b", "c", "d")]
    async with open_gateway(*(each.address for each in backends)) as client:
        await client.until(lambda: all(each.usable for each in client.gateway.routers[0].backends))
        for _ in range(80):
            await client.stub.CreateSession(beginning("meadow"))
        counts = sorted(each.calls["CreateSession"] for each in backends)
        assert sum(counts) == 80
        assert counts[-1] <= 25, "1.25 times a fair share of twenty, however long it took to open them"
        assert await client.metric("worldtree_placements_total", service="video", how="overflow") > 0


async def test_a_gateway_learns_from_trailers_what_others_have_under_way(start_backend, open_gateway) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    async with open_gateway(a.address, b.address) as busy, open_gateway(a.address, b.address) as client:
        (router,) = client.gateway.routers
        for each in (busy, client):
            await each.until(lambda each=each: all(one.usable for one in each.gateway.routers[0].backends))
        held = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
        holding = [asyncio.ensure_future(busy.stub.Step(held)) for _ in range(6)]
        await client.until(lambda: a.calls["Step"] == 6)
        await client.stub.Get(pb.GetRequest(session="s.a"))
        assert [each.load for each in router.backends] == [6, 0]
        assert await client.metric("worldtree_upstream_load", backend=a.address) == 6
        for _ in range(6):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert (a.calls["CreateSession"], b.calls["CreateSession"]) == (0, 6)
        answer = client.stub.Get(pb.GetRequest(session="s.a"))
        await answer
        assert "worldtree-load" not in dict(await answer.trailing_metadata()), "that is between gateway and replica"
        play = client.stub.Play()
        await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(actions=[pb.Action(id=1)])))
        await play.done_writing()
        a.hold.set()
        await asyncio.gather(*holding)
        assert [message async for message in play]
        assert router.backends[0].load == 0, "a play tells it too"


async def test_a_replica_that_joins_is_given_its_share_little_by_little(start_backend, open_gateway, tmp_path) -> None:
    a, b = await start_backend("a"), await start_backend("b")
    listed = tmp_path / "replicas"
    listed.write_text(f"{a.address}\n")
    async with open_gateway(f"file:{listed}", look_interval_s=0.05, slow_start_s=3600) as client:
        (router,) = client.gateway.routers
        router.backends[0]._load._came_s = float("-inf")  # it has been there for long
        held = pb.StepRequest(session="s.a", actions=[pb.Action(instruction="hold")])
        holding = [asyncio.ensure_future(client.stub.Step(held)) for _ in range(15)]
        await client.until(lambda: a.calls["Step"] == 15)
        listed.write_text(f"{a.address}\n{b.address}\n")
        await client.until(lambda: sum(each.usable for each in router.backends) == 2)
        assert await client.metric("worldtree_upstream_share", backend=b.address) == pytest.approx(0.1, abs=0.05)
        held.session = "s.b"
        holding += [asyncio.ensure_future(client.stub.Step(held)) for _ in range(2)]
        await client.until(lambda: b.calls["Step"] == 2)
        for _ in range(4):
            await client.stub.CreateSession(pb.CreateSessionRequest())
        assert (a.calls["CreateSession"], b.calls["CreateSession"]) == (4, 0), "2 weigh as 20 do"
        a.hold.set()
        b.hold.set()
        await asyncio.gather(*holding)
