"""Planners as models: Triton's client steers a robot in the simulator as our own client does, by the shipped policy."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import worldtree
from inference_servers import ANYWHERE, given, until
from server_loop import ServerLoop
from tritonclient.utils import InferenceServerException
from worldtree.simulator import Simulator
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import RunningGateway, start_gateway
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.serving import serve_navigator

ROOT = Path(__file__).parents[3]
SEED = 1_060_000_003
ENV = "BabyAI-GoToObj-v0"
CHUNK = 2

pytestmark = pytest.mark.skipif(not (ROOT / "models/joint").is_dir(), reason="the shipped policy is not here")


@pytest.fixture(scope="module")
def loop() -> Iterator[ServerLoop]:
    loop = ServerLoop()
    yield loop
    loop.close()


def gateway_before(loop: ServerLoop, navigator: str, **settings: Any) -> RunningGateway:
    known = {**ANYWHERE, "video": [], "probe_interval_s": 0.1, "oip_sequence_idle_s": 1.0, "navigator": [navigator]}
    running: RunningGateway = loop.enter(start_gateway(GatewaySettings(**{**known, **settings})))
    loop.run(running.wait_ready())
    return running


@pytest.fixture(scope="module")
def navigator(loop: ServerLoop) -> str:
    nobody = {"video": "127.0.0.1:1", "reward": "127.0.0.1:1"}
    settings = NavigatorSettings(**ANYWHERE, models=str(ROOT / "models"), **nobody)
    return str(loop.enter(serve_navigator(settings)).address)


@pytest.fixture(scope="module")
def gateway(loop: ServerLoop, navigator: str) -> RunningGateway:
    return gateway_before(loop, navigator)


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(gateway.server.address) as client:
        yield client


def seen(world: Simulator, *, begins: bool = True, **more: triton.InferInput) -> list[triton.InferInput]:
    inputs = [given("image", world.frame(), "UINT8"), *more.values()]
    if begins:
        inputs += [given("goal", [world.goal], "BYTES"), given("chunk_length", [CHUNK], "INT32")]
    return inputs


def metric(gateway: RunningGateway, sample: str) -> float:
    with urllib.request.urlopen(f"http://{gateway.server.metrics_address}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == sample)


def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def drive(client: triton.InferenceServerClient, world: Simulator, sequence: int, seed: int) -> list[int]:
    """The actions of an episode to its end."""
    actions: list[int] = []
    while not world.over and len(actions) < 40:
        begins = not actions
        more = {"seed": given("seed", [seed], "INT64")} if begins else {}
        answer = client.infer("joint", seen(world, begins=begins, **more), sequence_id=sequence, sequence_start=begins)
        assert answer.as_numpy("step").tolist() == [len(actions)]
        for action in answer.as_numpy("actions").tolist():
            actions.append(action)
            world.step(action)
            if world.over:
                break
    client.infer("joint", [], sequence_id=sequence, sequence_end=True)
    return actions


def drive_by_sdk(gateway: RunningGateway, world: Simulator, seed: int) -> list[int]:
    actions: list[int] = []
    with (
        worldtree.Client(gateway.server.address) as sdk,
        sdk.navigator.navigate(world.goal, chunk_length=CHUNK, seed=seed) as navigation,
    ):
        executed: list[int] = []
        while not world.over and len(actions) < 40:
            chunk, executed = navigation.observe(world.frame(), executed), []
            for action in chunk.actions:
                executed.append(navigation.info.actions.index(str(action)))
                world.step(executed[-1])
                if world.over:
                    break
            actions += executed
    return actions


def test_planners_that_steer_are_models(client: triton.InferenceServerClient) -> None:
    names = {each.name for each in client.get_model_repository_index().models}
    assert "joint" in names
    assert "mlm-u" not in names
    metadata = client.get_model_metadata("joint")
    assert {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs}["image"] == ("UINT8", [56, 56, 3])
    config = client.get_model_config("joint").config
    assert config.parameters["labels.actions"].string_value.split("\n")[:3] == ["left", "right", "forward"]
    assert config.HasField("sequence_batching")
    assert client.is_model_ready("joint")
    assert not client.is_model_ready("joint", "3")


def test_one_image_is_answered_with_a_chunk(client: triton.InferenceServerClient) -> None:
    answer = client.infer("joint", seen(Simulator(ENV, SEED)))
    assert answer.as_numpy("actions").shape == (CHUNK,)
    assert answer.as_numpy("frames").shape == (CHUNK, 56, 56, 3)
    assert 0 < answer.as_numpy("confidence")[0] <= 1
    (stats,) = client.get_inference_statistics("joint").model_stats
    assert stats.inference_count >= 1
    assert stats.inference_stats.compute_infer.ns > 0


def test_a_sequence_drives_as_our_own_client_does(
    client: triton.InferenceServerClient, gateway: RunningGateway
) -> None:
    for seed in range(SEED, SEED + 3):
        driven = drive(client, Simulator(ENV, seed), seed % 100 + 1, seed)
        assert driven == drive_by_sdk(gateway, Simulator(ENV, seed), seed)


def test_what_was_executed_may_be_said(client: triton.InferenceServerClient) -> None:
    world = Simulator(ENV, SEED)
    client.infer("joint", seen(world), sequence_id=1, sequence_start=True)
    one = given("executed", ["left"], "BYTES")
    answer = client.infer("joint", seen(world, begins=False, executed=one), sequence_id=1, sequence_end=True)
    assert answer.as_numpy("step").tolist() == [1]


def test_a_stream_of_images_is_a_sequence_too(client: triton.InferenceServerClient) -> None:
    told: list[Any] = []
    client.start_stream(lambda result, error: told.append(error or result))
    world = Simulator(ENV, SEED + 1)
    for place in range(3):
        begins, ends = place == 0, place == 2
        client.async_stream_infer(
            "joint", seen(world, begins=begins), sequence_id="s", sequence_start=begins, sequence_end=ends
        )
        until(lambda: len(told) == place + 1)  # noqa: B023
        for action in told[-1].as_numpy("actions").tolist():
            world.step(action)
    client.stop_stream()
    assert [each.as_numpy("step")[0] for each in told] == [0, CHUNK, 2 * CHUNK]


def test_what_cannot_be_steered_by_is_told(client: triton.InferenceServerClient) -> None:
    world = Simulator(ENV, SEED)
    image = given("image", world.frame(), "UINT8")
    assert refusal(lambda: client.infer("joint", [image]))[1].startswith("input goal must be there")
    strange = given("goal", ["write a poem"], "BYTES")
    code, message = refusal(lambda: client.infer("joint", [image, strange]))
    assert code == "INVALID_ARGUMENT"
    assert "goal" in message
    noise = given("image", np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8), "UINT8")
    code, message = refusal(lambda: client.infer("joint", [noise, given("goal", [world.goal], "BYTES")]))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("image")
    client.infer("joint", seen(world), sequence_id=2, sequence_start=True)
    assert "goal" in refusal(lambda: client.infer("joint", seen(world), sequence_id=2))[1]
    assert refusal(lambda: client.infer("joint", [noise], sequence_id=2))[0] == "INVALID_ARGUMENT"
    assert len(client.infer("joint", [image], sequence_id=2, sequence_end=True).as_numpy("actions")) == CHUNK


def test_an_episode_that_never_ends_is_given_up_and_its_navigation_ended(
    client: triton.InferenceServerClient, gateway: RunningGateway
) -> None:
    client.infer("joint", seen(Simulator(ENV, SEED)), sequence_id=3, sequence_start=True)
    assert metric(gateway, "worldtree_oip_sequences") == 1
    assert metric(gateway, 'worldtree_rpc_in_flight{service="gateway"}') == 1
    until(lambda: metric(gateway, "worldtree_oip_sequences") == 0)
    until(lambda: metric(gateway, 'worldtree_rpc_in_flight{service="gateway"}') == 0)


def test_so_many_robots_share_a_connection_and_no_more(loop: ServerLoop, navigator: str) -> None:
    limits = {"max_connection_streams": 2, "openpi_connections": 2, "oip_sequence_idle_s": 60.0}
    running = gateway_before(loop, navigator, **limits)
    world = Simulator(ENV, SEED)
    with triton.InferenceServerClient(running.server.address) as client:
        for sequence in (1, 2):
            client.infer("joint", seen(world), sequence_id=sequence, sequence_start=True)
        code, message = refusal(lambda: client.infer("joint", seen(world), sequence_id=3, sequence_start=True))
        assert code == "RESOURCE_EXHAUSTED"
        assert "max_connection_streams" in message
        assert refusal(lambda: client.infer("joint", seen(world)))[0] == "RESOURCE_EXHAUSTED"
        assert client.is_model_ready("joint")  # what comes and goes has places of its own
        client.infer("joint", [], sequence_id=1, sequence_end=True)
        client.infer("joint", seen(world))
        client.infer("joint", seen(world), sequence_id=3, sequence_start=True)
        for sequence in (2, 3):
            client.infer("joint", [], sequence_id=sequence, sequence_end=True)
