"""Sequences of Triton's clients are sessions: their frames, their turns, their ends; and no session is ever left."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import worldtree
from inference_servers import Servers, actions, given, until
from server_loop import ServerLoop
from tritonclient.utils import InferenceServerException
from worldtree_gateway.serving import RunningGateway

WALK = [0, 1, 2, 1, 0, 2]
SEED = 23


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("oip"))
    yield servers
    servers.close()


@pytest.fixture(scope="module")
def gateway(servers: Servers) -> RunningGateway:
    return servers.gateway()


@pytest.fixture
def client(gateway: RunningGateway, servers: Servers) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(gateway.server.address) as client:
        yield client
    servers.no_session_is_left()


@pytest.fixture(scope="module")
def expected(gateway: RunningGateway) -> Any:
    """The frames of the walk by our own client, [chunks, height, width, 3]."""
    with worldtree.Client(gateway.server.address) as sdk, sdk.world("tiny", start="dusk", seed=SEED) as world:
        return np.concatenate([world.step(action) for action in WALK])


def beginning() -> list[triton.InferInput]:
    return [given("start", ["dusk"], "BYTES"), given("seed", [SEED], "INT64")]


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


class Stream:
    """A stream of the stock client: what it has brought, in order."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.client = client
        self.told: list[Any] = []
        client.start_stream(lambda result, error: self.told.append(error or result))

    def ask(self, *ids: int, sequence: int | str = 0, **options: Any) -> None:
        inputs = [actions(*ids)] if ids else []
        if options.get("sequence_start"):
            inputs += beginning()
        self.client.async_stream_infer("tiny", inputs, sequence_id=sequence, **options)

    def ended(self) -> list[Any]:
        self.client.stop_stream()
        return self.told


def test_a_sequence_of_requests_is_a_session_bit_for_bit(client: triton.InferenceServerClient, expected: Any) -> None:
    frames, last = [], len(WALK) - 1
    for place, action in enumerate(WALK):
        begins = beginning() if place == 0 else []
        answer = client.infer(
            "tiny", [actions(action), *begins], sequence_id=5, sequence_start=place == 0, sequence_end=place == last
        )
        frames.append(answer.as_numpy("frames"))
        assert answer.as_numpy("chunk_index").tolist() == [place]
        assert len(answer.as_numpy("start_frames")) == (3 if place == 0 else 0)
    assert np.concatenate(frames).tobytes() == expected.tobytes()


@pytest.mark.parametrize("parts", [[1] * 6, [6], [2, 1, 3]], ids=str)
def test_a_stream_of_requests_is_the_same_session_however_it_is_cut(
    client: triton.InferenceServerClient, expected: Any, parts: list[int]
) -> None:
    stream, at = Stream(client), 0
    for place, count in enumerate(parts):
        stream.ask(
            *WALK[at : at + count],
            sequence="walk",
            sequence_start=place == 0,
            sequence_end=place == len(parts) - 1,
            request_id=str(place),
        )
        at += count
    told = stream.ended()
    assert np.concatenate([each.as_numpy("frames") for each in told]).tobytes() == expected.tobytes()
    finals = [
        (each.get_response().id, each.get_response().parameters["triton_final_response"].bool_param) for each in told
    ]
    assert finals == [(str(place), n == count - 1) for place, count in enumerate(parts) for n in range(count)]


def test_sequences_of_one_stream_do_not_mix(client: triton.InferenceServerClient, expected: Any) -> None:
    stream, names = Stream(client), [7, "7", 8, "eight"]
    for place, action in enumerate(WALK):
        for name in names:
            stream.ask(action, sequence=name, sequence_start=place == 0, sequence_end=place == 5, request_id=repr(name))
    told = stream.ended()
    for name in names:
        frames = [each.as_numpy("frames") for each in told if each.get_response().id == repr(name)]
        assert np.concatenate(frames).tobytes() == expected.tobytes(), name


def test_a_sequence_may_begin_and_end_without_an_action(client: triton.InferenceServerClient, expected: Any) -> None:
    begun = client.infer("tiny", beginning(), sequence_id=1, sequence_start=True)
    assert begun.as_numpy("frames").shape == (0, 4, 6, 3)
    assert begun.as_numpy("start_frames").shape == (3, 4, 6, 3)
    stepped = client.infer("tiny", [actions(*WALK)], sequence_id=1)
    assert stepped.as_numpy("frames").tobytes() == expected.tobytes()
    ended = client.infer("tiny", [], sequence_id=1, sequence_end=True)
    assert ended.as_numpy("chunk_index").shape == (0,)


def test_the_session_of_a_sequence_can_be_asked_for_by_our_own_client(
    client: triton.InferenceServerClient, gateway: RunningGateway
) -> None:
    answer = client.infer("tiny", [actions(0), *beginning()], sequence_id=2, sequence_start=True)
    name = answer.get_response().parameters["worldtree_session"].string_param
    with worldtree.Client(gateway.server.address) as sdk:
        world = sdk.session(name)
        assert world.chunk_index == 1
        with world.fork() as branch:
            frames = branch.step(1)
    ended = client.infer("tiny", [actions(1)], sequence_id=2, sequence_end=True)
    assert ended.as_numpy("frames").tobytes() == frames.tobytes()


def test_a_sequence_that_is_started_again_begins_anew(
    client: triton.InferenceServerClient, servers: Servers, expected: Any
) -> None:
    client.infer("tiny", [actions(2, 2), *beginning()], sequence_id=3, sequence_start=True)
    again = client.infer("tiny", [actions(*WALK), *beginning()], sequence_id=3, sequence_start=True)
    assert servers.session_count() == 1
    assert again.as_numpy("frames").tobytes() == expected.tobytes()
    client.infer("tiny", [], sequence_id=3, sequence_end=True)


def test_sequences_of_two_models_may_have_one_id(client: triton.InferenceServerClient, servers: Servers) -> None:
    client.infer("tiny", [actions(0)], sequence_id=4, sequence_start=True)
    client.infer("tiny-scene", [actions(0)], sequence_id=4, sequence_start=True)
    assert servers.session_count() == 2
    for name in ("tiny", "tiny-scene"):
        assert client.infer(name, [actions(0)], sequence_id=4, sequence_end=True).as_numpy("chunk_index").tolist() == [
            1
        ]


def test_a_request_that_no_sequence_was_started_for_is_refused(client: triton.InferenceServerClient) -> None:
    code, message = refusal(lambda: client.infer("tiny", [actions(0)], sequence_id=99))
    assert code == "FAILED_PRECONDITION"
    assert '"99"' in message
    assert "sequence_start" in message
    assert refusal(lambda: client.infer("tiny", [], sequence_id=99, sequence_end=True))[0] == "FAILED_PRECONDITION"


def test_a_refused_request_leaves_its_sequence_as_it_is(client: triton.InferenceServerClient, expected: Any) -> None:
    client.infer("tiny", [actions(*WALK[:2]), *beginning()], sequence_id=6, sequence_start=True)
    assert refusal(lambda: client.infer("tiny", [actions(0, 99)], sequence_id=6))[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: client.infer("tiny", [], sequence_id=6))[0] == "INVALID_ARGUMENT"
    code, message = refusal(lambda: client.infer("tiny", [actions(0), given("seed", [1], "INT64")], sequence_id=6))
    assert code == "INVALID_ARGUMENT"
    assert "seed" in message
    rest = client.infer("tiny", [actions(*WALK[2:])], sequence_id=6, sequence_end=True)
    assert rest.as_numpy("frames").tobytes() == expected[2:].tobytes()


def test_a_sequence_that_could_not_begin_is_none(client: triton.InferenceServerClient, servers: Servers) -> None:
    for inputs in (
        [actions(99)],
        [actions(0), given("start", ["nowhere"], "BYTES")],
        [actions(0), given("nfe", [9], "INT32")],
    ):
        code, _ = refusal(lambda inputs=inputs: client.infer("tiny", inputs, sequence_id=10, sequence_start=True))
        assert code in ("INVALID_ARGUMENT", "NOT_FOUND")
        assert servers.session_count() == 0
        assert refusal(lambda: client.infer("tiny", [actions(0)], sequence_id=10))[0] == "FAILED_PRECONDITION"


def test_an_error_in_a_stream_is_a_message_and_the_stream_goes_on(client: triton.InferenceServerClient) -> None:
    stream = Stream(client)
    stream.ask(0, request_id="good")
    stream.ask(77, request_id="bad")
    stream.ask(0, sequence=11, request_id="early")
    stream.ask(1, request_id="good too")
    good, bad, early, good_too = stream.ended()
    assert bad.message().startswith("INVALID_ARGUMENT: ")
    assert "77" in bad.message()
    assert early.message().startswith("FAILED_PRECONDITION: ")
    assert (len(good.as_numpy("frames")), len(good_too.as_numpy("frames"))) == (1, 1)


def test_a_stream_may_ask_for_errors_as_its_status(client: triton.InferenceServerClient) -> None:
    told: list[Any] = []
    client.start_stream(lambda result, error: told.append(error or result), headers={"triton_grpc_error": "true"})
    client.async_stream_infer("tiny", [actions(0)])
    client.async_stream_infer("tiny", [actions(77)])
    until(lambda: len(told) == 2)
    client.stop_stream()
    assert told[1].status() == "StatusCode.INVALID_ARGUMENT"


def test_a_session_that_is_gone_ends_its_sequence(
    client: triton.InferenceServerClient, gateway: RunningGateway
) -> None:
    answer = client.infer("tiny", [actions(0)], sequence_id=12, sequence_start=True)
    with worldtree.Client(gateway.server.address) as sdk:
        sdk.session(answer.get_response().parameters["worldtree_session"].string_param).close()
    assert refusal(lambda: client.infer("tiny", [actions(0)], sequence_id=12))[0] == "NOT_FOUND"
    assert refusal(lambda: client.infer("tiny", [actions(0)], sequence_id=12))[0] == "FAILED_PRECONDITION"


def test_a_sequence_that_never_ends_is_given_up_and_its_session_deleted(servers: Servers) -> None:
    gateway = servers.gateway(oip_sequence_idle_s=0.6)
    with triton.InferenceServerClient(gateway.server.address) as client:
        assert client.get_model_config("tiny").config.sequence_batching.max_sequence_idle_microseconds == 600_000
        client.infer("tiny", [actions(0)], sequence_id=1, sequence_start=True)
        stream = Stream(client)  # one that stays open, too
        stream.ask(0, sequence=2, sequence_start=True)
        until(lambda: servers.session_count() == 2)
        begun_s = time.monotonic()
        while time.monotonic() < begun_s + 1.5:  # what is asked of now and then stays
            client.infer("tiny", [actions(0)], sequence_id=1)
            time.sleep(0.1)
        assert servers.session_count() == 1
        until(lambda: servers.session_count() == 0)
        assert refusal(lambda: client.infer("tiny", [actions(0)], sequence_id=1))[0] == "FAILED_PRECONDITION"
        stream.ended()
    servers.no_session_is_left()


def test_so_many_sequences_and_no_more(servers: Servers) -> None:
    gateway = servers.gateway(oip_sequences=3)
    with triton.InferenceServerClient(gateway.server.address) as client:
        for number in (1, 2, 3):
            client.infer("tiny", [actions(0)], sequence_id=number, sequence_start=True)
        code, message = refusal(lambda: client.infer("tiny", [actions(0)], sequence_id=4, sequence_start=True))
        assert code == "RESOURCE_EXHAUSTED"
        assert "gateway.oip_sequences" in message
        for number in (1, 2, 3):
            client.infer("tiny", [], sequence_id=number, sequence_end=True)
        client.infer("tiny", [actions(0)], sequence_id=4, sequence_start=True, sequence_end=True)
    servers.no_session_is_left()


def test_a_gateway_that_stops_gives_back_all_sessions(servers: Servers) -> None:
    loop = ServerLoop()
    try:
        gateway = servers.gateway(loop)
        with triton.InferenceServerClient(gateway.server.address) as client:
            client.infer("tiny", [actions(0)], sequence_id=1, sequence_start=True)
            stream = Stream(client)
            stream.ask(0, sequence=2, sequence_start=True)
            until(lambda: len(stream.told) == 1)
            assert servers.session_count() == 2
            began_s = time.monotonic()
            loop.run(loop.stack.aclose())
            assert time.monotonic() - began_s < 4
            servers.no_session_is_left()
            until(lambda: len(stream.told) == 2)
            assert stream.told[1].status() == "StatusCode.UNAVAILABLE"
            client.stop_stream(cancel_requests=True)
    finally:
        loop.close()


def test_clients_that_leave_in_the_middle_leave_nothing(servers: Servers) -> None:
    gateway = servers.gateway(oip_sequence_idle_s=1.0)
    with triton.InferenceServerClient(gateway.server.address) as client:
        client.infer("tiny", [actions(0)])
    task_count = len(servers.loop.tasks())

    def leave(number: int) -> None:
        with triton.InferenceServerClient(gateway.server.address) as client:
            stream = Stream(client)
            stream.ask(*WALK * 20, sequence=number, sequence_start=True)
            time.sleep(0.01 * number)
            client.stop_stream(cancel_requests=True)

    threads = [threading.Thread(target=leave, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    servers.no_session_is_left(8.0)
    until(lambda: len(servers.loop.tasks()) <= task_count)


def test_a_stream_that_is_over_leaves_no_request_of_it_behind(servers: Servers) -> None:
    gateway = servers.gateway(oip_stream_requests=2)
    with triton.InferenceServerClient(gateway.server.address) as client:
        client.infer("tiny", [actions(0)])
    task_count = len(servers.loop.tasks())

    def stream(*, errors_end: bool) -> tuple[triton.InferenceServerClient, list[Any]]:
        client, told = triton.InferenceServerClient(gateway.server.address), list[Any]()
        headers = {"triton_grpc_error": "true"} if errors_end else {}
        client.start_stream(lambda result, error: told.append(error or result), headers=headers)
        return client, told

    for _ in range(5):
        leaving, told = stream(errors_end=False)
        for _ in range(9):
            leaving.async_stream_infer("tiny", [actions(*WALK * 200)])
        until(lambda told=told: told)  # type: ignore[misc]
        leaving.stop_stream(cancel_requests=True)
        leaving.close()
        refused, told = stream(errors_end=True)
        for place in range(9):
            refused.async_stream_infer("tiny", [actions(*[77 if place == 0 else 0] * 9)])
        until(lambda told=told: told)  # type: ignore[misc]
        assert told[0].status() == "StatusCode.INVALID_ARGUMENT"
        refused.stop_stream()
        refused.close()
    until(lambda: len(servers.loop.tasks()) <= task_count)


async def test_many_asyncio_clients_each_walk_their_own_world(
    gateway: RunningGateway, servers: Servers, expected: Any
) -> None:
    async def walk(number: int) -> bytes:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            for place, action in enumerate(WALK):
                yield {
                    "model_name": "tiny",
                    "inputs": [actions(action), *(beginning() if place == 0 else [])],
                    "sequence_id": number,
                    "sequence_start": place == 0,
                    "sequence_end": place == len(WALK) - 1,
                }

        async with triton_aio.InferenceServerClient(gateway.server.address) as client:
            frames = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                frames.append(result.as_numpy("frames"))
            return np.concatenate(frames).tobytes()

    assert set(await asyncio.gather(*(walk(100 + number) for number in range(16)))) == {expected.tobytes()}
    await asyncio.to_thread(servers.no_session_is_left)
