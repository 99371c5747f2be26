"""What passes through the gateway is what the backend sent, bit by bit, and ends as the backend ended it."""

import asyncio
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_status import rpc_status
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_runtime.metrics import METHOD_COUNT_MAX

VIDEO = "/worldtree.video.v1.VideoGenerator/"


def step(session: str, *instructions: str) -> pb.StepRequest:
    return pb.StepRequest(session=session, actions=[pb.Action(name="go", instruction=each) for each in instructions])


async def plays(stub: Any) -> list[bytes]:
    call = stub.Play()
    await call.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(actions=[pb.Action(id=1)])))
    answers = [await call.read(), await call.read()]
    for turn in range(5):
        await call.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=turn)])))
        answers.append(await call.read())
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return [answer.SerializeToString() for answer in answers]


async def read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_each_kind_of_call_gives_the_bytes_that_the_backend_gives_directly(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    rollout = pb.RolloutRequest(
        session="s.a", sequences=[pb.ActionSequence(actions=[pb.Action(id=each)] * 3) for each in range(4)]
    )
    async with (
        open_gateway(backend.address) as client,
        grpc.aio.insecure_channel(backend.address) as channel,
    ):
        answers = []
        for each in (client.channel, channel):
            stub = VideoGeneratorStub(each)
            unary = (await stub.Step(step("s.a", "x", "y"))).SerializeToString()
            stream = [answer.SerializeToString() async for answer in stub.Rollout(rollout)]
            upload = await each.stream_unary(VIDEO + "Upload")(iter([b"abc", b"", b"d" * 100_000]))
            answers.append((unary, stream, await plays(stub), upload))
    assert len(answers[0][1]) == 12
    assert answers[0] == answers[1]


async def test_metadata_passes_both_ways_and_what_belongs_to_a_connection_does_not(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        metadata = (("x-mine", "1"), ("x-mine-bin", b"\x00\xff"), ("x-request-id", "my-request"))
        call = client.stub.Step(step("s.a", "x"), metadata=metadata)
        await call
        head, tail = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
    seen = backend.metadata[-1]
    assert seen["x-mine"] == "1"
    assert seen["x-mine-bin"] == b"\x00\xff"
    assert seen["x-request-id"] == "my-request"
    assert head == {"x-head": "1", "x-head-bin": b"\x00\x01"}
    assert tail["x-tail"] == "2"
    assert tail["x-tail-bin"] == b"\xff\x00"
    assert tail["worldtree-replica"] == "a"
    assert tail["x-request-id"] == "my-request"


async def test_a_request_id_made_by_the_gateway_reaches_backend_and_client(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        call = client.stub.Step(step("s.a", "x"))
        await call
        tail = [value for key, value in await call.trailing_metadata() if key == "x-request-id"]
    assert tail == [backend.metadata[-1]["x-request-id"]]


@pytest.mark.parametrize(
    ("instruction", "code", "details"),
    [
        ("busy", grpc.StatusCode.ABORTED, {"ErrorInfo"}),
        ("full", grpc.StatusCode.RESOURCE_EXHAUSTED, {"ErrorInfo", "QuotaFailure", "RetryInfo"}),
        ("down", grpc.StatusCode.UNAVAILABLE, {"ErrorInfo", "RetryInfo"}),
    ],
)
async def test_status_details_are_those_of_the_backend(
    start_backend, open_gateway, instruction: str, code: grpc.StatusCode, details: set[str]
) -> None:
    backend = await start_backend("a")
    sequence = pb.ActionSequence(actions=[pb.Action(id=1), pb.Action(id=2, instruction=instruction)])
    async with open_gateway(backend.address) as client, grpc.aio.insecure_channel(backend.address) as channel:
        raised = []
        for each in (client.channel, channel):
            stub = VideoGeneratorStub(each)
            metadata = (("x-request-id", "one"),)
            with pytest.raises(grpc.aio.AioRpcError) as unary:
                await stub.Step(step("s.a", instruction), metadata=metadata)
            call = stub.Rollout(pb.RolloutRequest(session="s.a", sequences=[sequence]), metadata=metadata)
            assert (await call.read()).chunk.action.id == 1
            with pytest.raises(grpc.aio.AioRpcError) as stream:
                await call.read()
            raised.append([(e.value.code(), e.value.details(), rpc_status.from_call(e.value)) for e in (unary, stream)])
    assert raised[0] == raised[1]
    assert raised[0][0][0] is code
    assert set(client.details(unary.value)) == details


async def test_a_plain_status_keeps_its_text_and_trailers(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Step(step("s.a", "plain"))
    assert raised.value.code() is grpc.StatusCode.DATA_LOSS
    assert raised.value.details() == "plain text only"
    assert dict(raised.value.trailing_metadata())["extra-bin"] == b"\x00\xff"


async def test_the_backend_sees_the_time_that_the_client_has_left(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address, unary_timeout_s=33) as client:
        await client.stub.Step(step("s.a", "x"), timeout=5)
        assert 4 < backend.deadlines_s[-1] < 5.1
        async for _ in client.stub.Rollout(pb.RolloutRequest(session="s.a"), timeout=7):
            pass
        assert 6 < backend.deadlines_s[-1] < 7.1
        await client.stub.Step(step("s.a", "x"))
        assert 32 < backend.deadlines_s[-1] < 33.5
        async for _ in client.stub.Rollout(pb.RolloutRequest(session="s.a")):
            pass
        assert backend.deadlines_s[-1] is None


async def test_a_deadline_that_passes_ends_the_call_at_the_backend_too(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Step(step("s.a", "hold"), timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await client.until(lambda: backend.cancelled["Step"] == 1)


async def test_the_gateways_own_deadline_says_what_it_was(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address, unary_timeout_s=0.2) as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.stub.Step(step("s.a", "hold"))
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.details(raised.value)["ErrorInfo"].metadata["timeout_s"] == "0.200"


async def test_a_client_that_cancels_cancels_the_backend(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    held = pb.ActionSequence(actions=[pb.Action(id=1), pb.Action(instruction="hold")])
    async with open_gateway(backend.address) as client:
        unary = client.stub.Step(step("s.a", "hold"))
        stream = client.stub.Rollout(pb.RolloutRequest(session="s.a", sequences=[held]))
        await stream.read()
        play = client.stub.Play()
        await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(actions=held.actions)))
        await play.read()
        await play.read()
        await client.until(lambda: backend.calls["Step"] == 1)
        for call in (unary, stream, play):
            call.cancel()
        await client.until(lambda: backend.cancelled == {"Step": 1, "Rollout": 1, "Play": 1})
        (router,) = client.gateway.routers
        await client.until(lambda: router.backends[0].in_flight == 0)
    assert backend.ended_requests == 0


async def test_a_cancelled_upload_never_looks_complete_to_the_backend(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        calls = [client.channel.stream_unary(VIDEO + "Upload")() for _ in range(20)]
        for call in calls:
            await call.write(b"half")
        await client.until(lambda: backend.calls["Upload"] == 20)
        for call in calls:
            call.cancel()
        await client.until(lambda: backend.cancelled["Upload"] == 20)
        (router,) = client.gateway.routers
        await client.until(lambda: router.backends[0].in_flight == 0)
    assert backend.ended_requests == 0


async def test_a_play_whose_client_vanished_ends_at_the_backend(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        async with grpc.aio.insecure_channel(client.gateway.server.address) as channel:
            play = VideoGeneratorStub(channel).Play()
            await play.write(pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin()))
            await play.read()
            assert backend.closed["Play"] == 0
        await client.until(lambda: backend.closed["Play"] == 1)


async def test_a_play_whose_reader_takes_nothing_leaves_its_replica_and_a_silent_one_stays(
    start_backend, open_gateway
) -> None:
    backend = await start_backend()
    many = pb.PlayRequest.Begin(actions=[pb.Action(id=1)] * 10_000)
    least = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
    async with (
        open_gateway(backend.address, unread_s=0.3) as client,
        grpc.aio.insecure_channel(client.gateway.server.address, options=least) as channel,
    ):
        silent, unread = client.stub.Play(), VideoGeneratorStub(channel).Play()
        for play, begin in ((silent, pb.PlayRequest.Begin()), (unread, many)):
            await play.write(pb.PlayRequest(session="s.a", begin=begin))
            await play.read()
        (replica,) = client.gateway.routers[0].backends
        assert replica.in_flight == 2
        await client.until(lambda: replica.in_flight == 1)
        assert backend.closed["Play"] == 1
        await silent.write(pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])))
        assert (await silent.read()).HasField("played")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read_on(unread)
        assert client.details(raised.value)["ErrorInfo"].reason == "UNREAD"
        silent.cancel()


async def test_a_play_that_is_refused_while_its_client_writes_keeps_the_backends_reason(
    start_backend, open_gateway
) -> None:
    backend = await start_backend("a")
    refused = pb.PlayRequest(session="s.a", begin=pb.PlayRequest.Begin(actions=[pb.Action(instruction="busy")]))
    more = [pb.PlayRequest(act=pb.PlayRequest.Act(actions=[pb.Action(id=1)])) for _ in range(3)]

    def tries(address: str) -> Counter[str]:
        # not over grpc.aio, which loses the reason in the same way at the client's end
        codes: Counter[str] = Counter()
        with grpc.insecure_channel(address) as channel:
            for _ in range(150):
                with pytest.raises(grpc.RpcError) as ended:
                    list(VideoGeneratorStub(channel).Play(iter([refused, *more])))
                codes[ended.value.code().name] += 1
        return codes

    async with open_gateway(backend.address) as client:
        assert await asyncio.to_thread(tries, client.gateway.server.address) == {"ABORTED": 150}


async def test_a_slow_reader_slows_the_backend_down(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    instruction = "x" * 100_000
    sequence = pb.ActionSequence(actions=[pb.Action(instruction=instruction)] * 400)
    async with open_gateway(backend.address) as client:
        call = client.stub.Rollout(pb.RolloutRequest(session="s.a", sequences=[sequence]))
        await call.read()
        await asyncio.sleep(0.7)
        written_count = backend.written["Rollout"]
        await asyncio.sleep(0.3)
        assert backend.written["Rollout"] == written_count < 250, "the transport's windows hold a part, nobody the rest"
        call.cancel()


async def test_a_backend_killed_in_the_middle_of_a_stream_is_unavailable(spawn_backend, open_gateway) -> None:
    process = spawn_backend("a")
    held = pb.ActionSequence(actions=[pb.Action(id=1), pb.Action(instruction="hold")])
    async with open_gateway(process.address, retry_after_s=2.5) as client:
        stream = client.stub.Rollout(pb.RolloutRequest(session="s.a", sequences=[held]))
        await stream.read()
        unary = asyncio.ensure_future(client.stub.Step(step("s.a", "hold")))
        await asyncio.sleep(0.1)
        process.kill()
        for waiting in (stream.read(), unary):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asyncio.wait_for(waiting, 5)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            found = client.details(raised.value)
            assert found["ErrorInfo"].reason == "BACKEND_DOWN"
            assert found["RetryInfo"].retry_delay.ToMilliseconds() == 2500
            assert process.address not in raised.value.details()
        assert await client.metric("worldtree_upstream_failures_total", service="video") == 2


async def test_a_method_that_the_gateway_does_not_know_reaches_the_backend(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.channel.unary_unary(VIDEO + "Nothing")(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.channel.unary_unary("/other.Service/Nothing")(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await client.channel.stream_unary(VIDEO + "Upload")(iter([b"x"])))[:2]


async def test_a_service_without_backends_says_which_setting_names_them(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        for kind in ("unary_unary", "unary_stream"):
            call = getattr(client.channel, kind)("/worldtree.reward.v1.RewardScorer/Score")(b"abc")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await (call if kind == "unary_unary" else call.read())
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "gateway.reward" in raised.value.details()
            assert client.details(raised.value)["ErrorInfo"].reason == "SERVICE_NOT_CONFIGURED"


async def test_a_request_that_is_no_message_is_refused_by_the_backend(start_backend, open_gateway) -> None:
    backend = await start_backend("a")
    async with open_gateway(backend.address) as client:
        for name in ("Step", "Generate", "GetModel"):
            kind = "unary_stream" if name == "Generate" else "unary_unary"
            call = getattr(client.channel, kind)(VIDEO + name)(b"\x0a\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await (call.read() if name == "Generate" else call)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await client.stub.Step(step("s.a", "x"))).chunk_index == 1


async def test_every_kind_by_its_own_descriptor(start_backend, open_gateway, echo_module) -> None:
    """VideoGenerator has no client stream, so this service takes its place: Relay.stream_unary has a caller here."""
    from worldtree_gateway.domain import Service

    name = echo_module.SERVICE.replace("VideoGenerator", "Uploads")
    file = descriptor_pb2.FileDescriptorProto(name="uploads.proto", package="worldtree.video.v1", syntax="proto3")
    file.message_type.add(name="Blob")
    file.service.add(name="Uploads").method.add(
        name="Upload",
        input_type=".worldtree.video.v1.Blob",
        output_type=".worldtree.video.v1.Blob",
        client_streaming=True,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)

    async def upload(requests: Any, context: Any) -> bytes:
        return b"|".join([request async for request in requests])

    backend = echo_module.EchoBackend("a")
    original = backend.register

    def register(server: grpc.aio.Server) -> Any:
        handler = grpc.stream_unary_rpc_method_handler(upload)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Upload": handler}),))
        return original(server)

    backend.register = register
    services = (Service(section="video", full_name=name, descriptor=pool.FindServiceByName(name)),)
    async with backend, open_gateway(backend.address, services=services) as client:
        answer = await client.channel.stream_unary(f"/{name}/Upload")(iter([b"a", b"b", b"c"]))
        assert answer == b"a|b|c"
        assert await client.channel.stream_unary(f"/{name}/Upload")(iter([])) == b""


async def test_names_that_strangers_make_up_take_no_series_from_our_methods(start_backend, open_gateway) -> None:
    backend = await start_backend()
    async with open_gateway(backend.address) as client:
        for number in range(METHOD_COUNT_MAX):
            call = client.channel.unary_unary(f"{VIDEO}MadeUp{number}")
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"")
        await client.stub.Get(pb.GetRequest(session="s.a"))
        for method, count in ((f"{VIDEO[1:]}Get", 1), ("other", 0)):
            assert await client.metric("worldtree_rpc_seconds_count", method=method, code="OK") == count
