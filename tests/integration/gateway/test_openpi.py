"""Robots with openpi's own client, steered through a real gateway by a real navigator with the shipped policy."""

import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import worldtree
from server_loop import ServerLoop
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from worldtree.simulator import Simulator
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.openpi_codec import pack, unpack
from worldtree_gateway.serving import RunningGateway, start_gateway
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.serving import serve_navigator

pytest.importorskip("openpi_client", reason="openpi-client is installed by make install")
with pytest.MonkeyPatch.context() as patch:
    # dm-tree's `tree`, which the broker imports, and not benchmarks/tree.py, which comes first on the path of tests
    patch.setattr(sys, "path", [path for path in sys.path if Path(path).name != "benchmarks"])
    patch.delitem(sys.modules, "tree", raising=False)
    from openpi_client.action_chunk_broker import ActionChunkBroker

    patch.delitem(sys.modules, "tree")
from openpi_client.websocket_client_policy import WebsocketClientPolicy

ROOT = Path(__file__).parents[3]
SEED = 1_060_000_003
ENV = "BabyAI-GoToObj-v0"
CHUNK = 2

pytestmark = pytest.mark.skipif(not (ROOT / "models/joint").is_dir(), reason="the shipped policy is not here")


def gateway_before(navigator: str, **settings: Any) -> Any:
    known = {"port": 0, "metrics_port": 0, "drain_timeout_s": 0.5, "probe_interval_s": 0.1, "video": []}
    return start_gateway(GatewaySettings(**{**known, **settings, "navigator": [navigator]}))


def navigator_on(port: int = 0) -> Any:
    nobody = {"video": "127.0.0.1:1", "reward": "127.0.0.1:1"}
    return serve_navigator(
        NavigatorSettings(port=port, metrics_port=0, drain_timeout_s=0.2, models=str(ROOT / "models"), **nobody)
    )


@pytest.fixture(scope="module")
def servers() -> Iterator[ServerLoop]:
    loop = ServerLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def navigator(servers: ServerLoop) -> str:
    return servers.enter(navigator_on()).address


@pytest.fixture(scope="module")
def gateway(servers: ServerLoop, navigator: str) -> RunningGateway:
    running = servers.enter(gateway_before(navigator))
    servers.run(running.wait_ready())
    return running


@pytest.fixture
def loop() -> Iterator[ServerLoop]:
    """For servers that a test stops."""
    loop = ServerLoop()
    yield loop
    loop.close()


def policy_at(gateway: RunningGateway, **options: Any) -> WebsocketClientPolicy:
    host, _, port = str(gateway.openpi_address).rpartition(":")
    return WebsocketClientPolicy(host, int(port), **options)


@pytest.fixture
def policy(gateway: RunningGateway) -> Iterator[WebsocketClientPolicy]:
    policy = policy_at(gateway)
    yield policy
    policy._ws.close()


def seen(world: Simulator, **more: Any) -> dict[str, Any]:
    return {"image": world.frame(), "prompt": world.goal, "chunk_length": CHUNK, **more}


def drive(policy: Any, world: Simulator, *, steps: int = 40, **more: Any) -> list[int]:
    """The actions of an episode to its end, each asked for as openpi's runtime does."""
    broker, actions = ActionChunkBroker(policy, CHUNK), []
    for _ in range(steps):
        action = int(broker.infer(seen(world, **more))["actions"][0])
        actions.append(action)
        world.step(action)
        if world.over:
            break
    return actions


def drive_by_grpc(gateway: RunningGateway, world: Simulator, seed: int, steps: int = 40) -> list[int]:
    actions: list[int] = []
    with (
        worldtree.Client(gateway.server.address) as client,
        client.navigator.navigate(world.goal, chunk_length=CHUNK, seed=seed) as navigation,
    ):
        executed: list[int] = []
        while not world.over and len(actions) < steps:
            chunk = navigation.observe(world.frame(), executed)
            executed = []
            for action in chunk.actions:
                executed.append(navigation.info.actions.index(str(action)))
                world.step(executed[-1])
                if world.over:
                    break
            actions += executed
    return actions


def error_of(policy: Any, observation: Any) -> str:
    with pytest.raises(RuntimeError, match="Error in inference server") as caught:
        policy.infer(observation)
    return str(caught.value).partition("\n")[2]


def test_a_robot_is_told_who_plans_what_and_of_which_observations(policy: WebsocketClientPolicy) -> None:
    metadata = policy.get_server_metadata()
    joint = metadata["planners"]["joint"]
    assert metadata["planner"] == "joint"
    assert joint["actions"][:3] == metadata["actions"][:3] == ["left", "right", "forward"]
    assert {"go", "red", "ball"} <= set(joint["words"])
    assert joint["image"] == metadata["image"] == [56, 56, 3]
    assert joint["chunk_length"] == metadata["chunk_length"] >= CHUNK
    assert {"image", "prompt", "executed", "episode", "reset"} <= set(metadata["observation"])
    assert "mlm-u" not in metadata["planners"]


def test_a_chunk_brings_its_actions_its_time_and_what_is_expected(policy: WebsocketClientPolicy) -> None:
    world = Simulator(ENV, SEED)
    answer = policy.infer(seen(world, frames=True))
    assert (answer["actions"].dtype, answer["actions"].shape) == (np.int64, (CHUNK, 1))
    assert (answer["frames"].dtype, answer["frames"].shape) == (np.uint8, (CHUNK, 56, 56, 3))
    assert 0 < answer["confidence"] <= 1
    timing = answer["server_timing"]
    assert 0 < timing["world_model_ms"] <= timing["total_ms"] <= timing["infer_ms"]
    assert "prev_total_ms" not in timing
    again = policy.infer(seen(world, frames=True))
    assert again["server_timing"]["prev_total_ms"] >= timing["infer_ms"]
    assert again["step"] == CHUNK


def test_the_stock_client_drives_as_grpc_does(gateway: RunningGateway) -> None:
    reached = 0
    for seed in range(SEED, SEED + 6):
        world = Simulator(ENV, seed)
        policy = policy_at(gateway)
        actions = drive(policy, world, seed=seed)
        policy._ws.close()
        assert actions == drive_by_grpc(gateway, Simulator(ENV, seed), seed)
        reached += world.outcome.success
    assert reached >= 3


def test_an_episode_goes_on_after_its_connection_was_killed(gateway: RunningGateway) -> None:
    seed = SEED + 7
    whole = drive(policy_at(gateway), Simulator(ENV, seed), steps=12, episode=f"whole {time.time_ns()}")
    assert len(whole) > 4 * CHUNK
    world, episode, parts = Simulator(ENV, seed), f"killed {time.time_ns()}", []
    while len(parts) < len(whole):
        policy = policy_at(gateway)
        parts += drive(policy, world, steps=min(2 * CHUNK, len(whole) - len(parts)), episode=episode)
        policy._ws.socket.close()  # no closing handshake: the process is gone
    assert parts == whole


def test_an_answer_that_never_arrived_was_not_executed(gateway: RunningGateway) -> None:
    world, episode = Simulator(ENV, SEED + 2), f"unheard {time.time_ns()}"
    twin = Simulator(ENV, SEED + 2)
    expected = drive(policy_at(gateway), twin, steps=2 * CHUNK)
    first = drive(policy_at(gateway), world, steps=CHUNK, episode=episode)
    unheard = policy_at(gateway)
    unheard._ws.send(pack(seen(world, episode=episode)))
    unheard._ws.recv()
    unheard._ws.socket.close()
    answer = policy_at(gateway).infer(seen(world, episode=episode, executed=[]))
    assert [*first, *answer["actions"][:, 0].tolist()] == expected
    assert answer["step"] == CHUNK


def test_what_was_executed_may_be_said_by_names_ids_and_arrays(gateway: RunningGateway) -> None:
    def second(executed: Callable[[list[int], list[str]], Any]) -> tuple[list[int], int]:
        policy, world = policy_at(gateway), Simulator(ENV, SEED + 3)
        chunk = policy.infer(seen(world))["actions"][:, 0].tolist()
        for action in chunk:
            world.step(action)
        said = executed(chunk, policy.get_server_metadata()["actions"])
        answer = policy.infer(seen(world, **said))
        return answer["actions"][:, 0].tolist(), answer["step"]

    left_out = second(lambda chunk, names: {})
    assert second(lambda chunk, names: {"executed": chunk}) == left_out
    assert second(lambda chunk, names: {"executed": [names[each] for each in chunk]}) == left_out
    assert second(lambda chunk, names: {"executed": np.array(chunk)[:, None]}) == left_out
    assert second(lambda chunk, names: {"executed": chunk[:1]})[1] == 1


def test_a_reset_begins_anew(gateway: RunningGateway) -> None:
    for more in ({}, {"episode": f"reset {time.time_ns()}"}):
        policy, world = policy_at(gateway), Simulator(ENV, SEED + 4)
        first = policy.infer(seen(world, **more))
        assert policy.infer(seen(world, **more))["step"] == CHUNK
        again = policy.infer(seen(world, reset=True, **more))
        assert again["step"] == 0
        assert again["actions"].tolist() == first["actions"].tolist()
        if more:  # and it is the new one that another connection goes on with
            assert policy_at(gateway).infer(seen(world, **more))["step"] == CHUNK


def test_another_goal_is_another_episode_where_none_is_named(policy: WebsocketClientPolicy) -> None:
    world = Simulator(ENV, SEED)
    policy.infer(seen(world))
    assert policy.infer(seen(world))["step"] == CHUNK
    other = "go to the red ball" if world.goal != "go to the red ball" else "go to the green box"
    assert policy.infer(seen(world, prompt=other))["step"] == 0
    name = f"goals {time.time_ns()}"
    policy.infer(seen(world, episode=name))
    assert policy.infer(seen(world, episode=name, prompt=other))["step"] == CHUNK
    assert policy.infer(seen(world, episode=f"{name} too"))["step"] == 0
    assert policy.infer(seen(world, episode=name))["step"] == 2 * CHUNK


def test_whoever_names_an_episode_later_has_it(gateway: RunningGateway) -> None:
    world, name = Simulator(ENV, SEED), f"taken {time.time_ns()}"
    first, second = policy_at(gateway), policy_at(gateway)
    first.infer(seen(world, episode=name))
    assert second.infer(seen(world, episode=name))["step"] == CHUNK
    assert name in error_of(first, seen(world, episode=name))
    assert first.infer(seen(world, episode=name))["step"] == 2 * CHUNK


def test_episodes_belong_to_who_has_the_key(gateway: RunningGateway) -> None:
    world, name = Simulator(ENV, SEED), f"mine {time.time_ns()}"
    policy_at(gateway, api_key="a").infer(seen(world, episode=name))
    # What the gateway remembers is the key's; it authenticates nobody yet, so what the navigator saw is everybody's.
    assert policy_at(gateway, api_key="b").infer(seen(world, episode=name))["step"] == 0


GOOD = np.zeros((56, 56, 3), np.uint8)
NANS = np.full((56, 56, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": None}, "INVALID_FIELD: image or observation/image must be set, exactly one of them, got neither"),
        ({"observation/image": GOOD}, "got image and observation/image"),
        ({"image": GOOD.astype(np.float32)}, "image must be uint8 [height, width, 3], got float32"),
        ({"image": NANS}, "got float32 with 9408 values that are not finite"),
        ({"image": GOOD[..., :1]}, "image must be uint8 [height, width, 3], got [56, 56, 1]"),
        ({"image": GOOD[0]}, "got [56, 3]"),
        ({"image": GOOD[:0]}, "got [0, 56, 3]"),
        ({"image": GOOD[:40]}, "image.shape must be"),
        ({"image": GOOD.tolist()}, "NOT_MSGPACK: observation must be msgpack: it has more than 256 maps and lists"),
        ({"image": GOOD + 255}, "NOT_OF_THIS_WORLD: image"),
        ({"prompt": None}, "prompt must be a text, got nothing"),
        ({"prompt": " "}, "prompt must be a text, got ' '"),
        ({"prompt": 5}, "prompt must be a text, got 5"),
        ({"prompt": "go " * 1000}, "prompt must have 1024 characters at most, got 3000"),
        ({"prompt": "sing a song"}, "GOAL_UNKNOWN: prompt does not know 'sing'"),
        ({"planner": "nobody"}, 'PLANNER_NOT_FOUND: planner "nobody" not found; known: joint'),
        ({"planner": 1}, "planner must be a text, got 1"),
        ({"chunk_length": 0}, "chunk_length must be an integer from 1 to 1024, got 0"),
        ({"chunk_length": 1000}, "chunk_length must be"),
        ({"chunk_length": 2.0}, "got 2.0"),
        ({"seed": -1}, "seed must be an integer from 0 to 9007199254740991, got -1"),
        ({"frames": 1}, "frames must be true or false, got 1"),
        ({"reset": "yes"}, "reset must be true or false, got 'yes'"),
        ({"episode": "e" * 129}, "episode must have 128 characters at most, got 129"),
        ({"executed": [0]}, "executed must be 0 to 0, got 1"),
        ({"executed": [0.5]}, "executed must be integers, or a list of ids and names, got [0.5]"),
        ({"executed": [0] * 257}, "executed must have 256 actions at most, got 257"),
        ({"executed": [True]}, "got [True]"),
        ({"executed": np.zeros(2)}, "executed must be integers"),
        ({"state": np.zeros(7)}, "observation must have no keys but chunk_length, episode"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_and_the_connection_goes_on(
    gateway: RunningGateway, change: dict[str, Any], said: str
) -> None:
    policy, world = policy_at(gateway), Simulator(ENV, SEED)
    bad = {key: value for key, value in {**seen(world), **change}.items() if value is not None}
    assert said in error_of(policy, bad)
    assert policy.infer(seen(world))["step"] == 0
    policy._ws.close()


def test_a_refused_observation_changes_nothing(policy: WebsocketClientPolicy, gateway: RunningGateway) -> None:
    world, twin = Simulator(ENV, SEED + 7), Simulator(ENV, SEED + 7)
    expected = drive(policy_at(gateway), twin, steps=3 * CHUNK)
    actions: list[int] = []
    for bad in ({"executed": ["jump"]}, {"image": GOOD + 255}, {"image": GOOD[:40]}):
        actions += drive(policy, world, steps=CHUNK)
        error_of(policy, seen(world, **bad))
    assert actions == expected


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "NOT_MSGPACK: observation must be msgpack"),
        (b"\x80\x04\x95\x00.", "NOT_MSGPACK: observation must be msgpack"),
        ("text", "NOT_MSGPACK: observation must be msgpack in a binary message, got text"),
        (msgpack.packb([1, 2]), "observation must be a map, got [1, 2]"),
        (msgpack.packb({"image": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": []}}), "image.dtype"),
        (msgpack.packb({"image": {b"__ndarray__": True, b"data": b"", b"dtype": "|V0", b"shape": []}}), "image.dtype"),
        (b"\x81\xa1a" + b"\x91" * 20 + b"\x01", "nested 8 deep at most"),
        (bytes(5 << 20), "observation must be 4194304 bytes at most (setting gateway.openpi_message_bytes), got 5242"),
    ],
)  # fmt: skip
def test_what_is_no_observation_is_told_and_the_connection_goes_on(
    gateway: RunningGateway, message: bytes | str, said: str
) -> None:
    with connect(f"ws://{gateway.openpi_address}", max_size=None) as socket:
        socket.recv()
        socket.send(message)
        told = socket.recv()
        assert isinstance(told, str)
        assert said in told
        socket.send(pack(seen(Simulator(ENV, SEED))))
        answer: Any = unpack(socket.recv())
        assert answer["step"] == 0


def test_what_is_far_too_large_is_not_even_read(gateway: RunningGateway) -> None:
    with connect(f"ws://{gateway.openpi_address}", max_size=None) as socket:
        socket.recv()
        socket.send(bytes(17 << 20))
        assert closed_with(socket).code == 1009


def test_robots_are_steered_at_once_and_one_that_does_not_read_delays_nobody(gateway: RunningGateway) -> None:
    stuck = connect(f"ws://{gateway.openpi_address}", max_size=None)
    for _ in range(20):  # asks, and takes no answer
        stuck.send(pack(seen(Simulator(ENV, SEED), frames=True)))
    seeds = range(SEED, SEED + 4)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: drive(policy_at(gateway), Simulator(ENV, seed), steps=8), seeds))
    assert together == [drive(policy_at(gateway), Simulator(ENV, seed), steps=8) for seed in seeds]
    stuck.socket.close()


def test_many_robots_begin_at_once(gateway: RunningGateway) -> None:
    world = Simulator(ENV, SEED)
    policies = [policy_at(gateway) for _ in range(48)]
    with ThreadPoolExecutor(len(policies)) as pool:
        answers = list(pool.map(lambda policy: policy.infer(seen(world))["actions"].tolist(), policies))
    assert answers == [answers[0]] * len(policies)
    for policy in policies:
        policy._ws.close()


def test_health_is_told_over_http_on_the_same_port(gateway: RunningGateway) -> None:
    with urllib.request.urlopen(f"http://{gateway.openpi_address}/healthz", timeout=5) as answer:
        assert (answer.status, answer.read()) == (200, b"OK\n")


def test_a_page_in_a_browser_steers_no_robot(gateway: RunningGateway) -> None:
    with pytest.raises(InvalidStatus) as caught, connect(f"ws://{gateway.openpi_address}", origin="http://page.test"):
        pass
    assert caught.value.response.status_code == 403


def test_a_navigator_that_went_away_is_told_and_found_again(loop: ServerLoop) -> None:
    navigating = navigator_on()
    navigator = loop.run(navigating.__aenter__())
    gateway = loop.enter(gateway_before(navigator.address))
    loop.run(gateway.wait_ready())
    policy, world = policy_at(gateway), Simulator(ENV, SEED)
    first = policy.infer(seen(world))
    loop.run(navigating.__aexit__(None, None, None))
    assert error_of(policy, seen(world)).startswith(("BACKEND_DOWN: ", "NO_BACKEND: "))
    assert error_of(policy, seen(world)).startswith(("BACKEND_DOWN: ", "NO_BACKEND: "))
    late = policy_at(gateway)
    assert late.get_server_metadata()["planners"] == {}
    assert "NO_BACKEND" in late.get_server_metadata()["notes"][0]
    loop.enter(navigator_on(int(navigator.address.rpartition(":")[2])))
    loop.run(gateway.wait_ready())
    again = policy.infer(seen(world))  # of which the new one knows nothing
    assert again["step"] == 0
    assert again["actions"].tolist() == first["actions"].tolist()
    assert policy.infer(seen(world))["step"] == CHUNK


def test_a_navigator_that_is_too_slow_is_told(loop: ServerLoop, navigator: str) -> None:
    gateway = loop.enter(gateway_before(navigator, openpi_timeout_s=0.001))
    loop.run(gateway.wait_ready())
    policy, world = policy_at(gateway), Simulator(ENV, SEED)
    for _ in range(2):
        told = error_of(policy, seen(world))
        assert told == "NAVIGATOR_TOO_SLOW: no chunk within 0.001 s (setting gateway.openpi_timeout_s)"


def test_beyond_the_limit_a_robot_is_told_to_come_again(loop: ServerLoop, navigator: str) -> None:
    gateway = loop.enter(gateway_before(navigator, openpi_connections=1))
    loop.run(gateway.wait_ready())
    first = policy_at(gateway)
    with pytest.raises(ConnectionClosed) as caught:
        policy_at(gateway)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1013
    assert "gateway.openpi_connections" in caught.value.rcvd.reason
    first._ws.close()
    wait_until(lambda: sample(gateway, "worldtree_openpi_connections") == 0)
    assert policy_at(gateway).infer(seen(Simulator(ENV, SEED)))["step"] == 0
    assert sample(gateway, 'worldtree_openpi_seconds_count{result="chunk"}') == 1


def test_a_stop_closes_each_connection_with_1001_and_leaves_nothing(loop: ServerLoop, navigator: str) -> None:
    running = gateway_before(navigator)
    gateway = loop.run(running.__aenter__())
    loop.run(gateway.wait_ready())
    idle, busy = policy_at(gateway), policy_at(gateway)
    busy.infer(seen(Simulator(ENV, SEED)))
    busy._ws.send(pack(seen(Simulator(ENV, SEED), frames=True)))
    began_s = time.monotonic()
    loop.run(running.__aexit__(None, None, None))
    assert time.monotonic() - began_s < 5
    for policy in (idle, busy):
        assert closed_with(policy._ws).code == 1001
    wait_until(lambda: not [task for task in loop.tasks() if "openpi" in task or "websockets" in task])


def test_it_is_served_only_where_a_navigator_is(loop: ServerLoop) -> None:
    settings = GatewaySettings(port=0, metrics_port=0, drain_timeout_s=0, video=["127.0.0.1:1"])
    assert loop.enter(start_gateway(settings)).openpi_address is None


def closed_with(socket: Any) -> Any:
    """The close frame of the other side, after what was on its way."""
    try:
        while True:
            socket.recv(10)
    except ConnectionClosed as error:
        return error.rcvd


def wait_until(condition: Callable[[], object], timeout_s: float = 8.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true"
        time.sleep(0.02)


def sample(gateway: RunningGateway, name: str) -> float:
    url = f"http://{gateway.server.metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)
