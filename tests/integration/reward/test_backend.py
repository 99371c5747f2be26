"""A judge whose trunk a Triton server runs: a real one where there is one, and a stand-in made of tritonclient's stubs.

`make test-triton` has the real one.
"""

import asyncio
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import triton_server
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from oip_server import StandIn
from prometheus_client import CollectorRegistry
from triton_server import TritonServer
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree_reward.config import RewardSettings
from worldtree_reward.metrics import RewardMetrics
from worldtree_reward.served import Served
from worldtree_reward.serving import serve_reward
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.reward_package import RewardPackage
from worldtree_runtime.testing_judges import TinyJudge

SHIPPED = Path(__file__).parents[3] / "models/judge/1"
SOON = {"backend_look_s": 0.1, "backend_timeout_s": 2.0}
SHARED_MEMORY = Path("/dev/shm")
Open = Callable[..., Any]
Package = Callable[..., str]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the names that servers know them by: trunks as they should be, and others."""
    folder = tmp_path_factory.mktemp("graphs")
    tiny = TinyJudge().write(folder / "models") / "trunk.onnx"
    small = TinyJudge(name="small", size_px=6).write(folder / "models") / "trunk.onnx"
    louder = onnx.load(tiny)
    white = next(each for each in louder.graph.initializer if each.name == "white")
    white.raw_data = np.float32(254).tobytes()
    onnx.save(louder, folder / "louder.onnx")
    return {"shipped": SHIPPED / "trunk.onnx", "tiny": tiny, "small": small, "louder": folder / "louder.onnx"}


@pytest.fixture(params=["stand-in", "triton"])
def open_server(
    request: pytest.FixtureRequest, graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    if request.param == "triton" and triton_server.PYTHON is None:
        pytest.skip("WORLDTREE_TRITON_PYTHON names no interpreter that has nvidia-pytriton; see make test-triton")
    opened: list[Any] = []

    def open_server(**options: Any) -> Any:
        if request.param == "triton":
            opened.append(TritonServer(tmp_path_factory.mktemp("triton"), graphs, **options))
        else:
            opened.append(StandIn(graphs, **options))
        return opened[-1]

    yield open_server
    for server in opened:
        server.stop()


@pytest.fixture
def server(open_server: Open) -> Any:
    return open_server()


@pytest.fixture(autouse=True)
def no_memory_is_left() -> Iterator[None]:
    yield
    assert not list(SHARED_MEMORY.glob(f"worldtree-{os.getpid()}-*"))  # other runs have their own


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Writes a judge whose trunk is run elsewhere into a repository of its own."""

    def write(backend: str, *, shipped: bool = False) -> str:
        models = tmp_path / f"elsewhere-{len(list(tmp_path.iterdir()))}"
        folder = Path(shutil.copytree(SHIPPED, models / "judge/1")) if shipped else TinyJudge().write(models)
        manifest = yaml.safe_load((folder / "model.yaml").read_text())
        (folder / "model.yaml").write_text(yaml.safe_dump({**manifest, "backend": backend}))
        return str(models)

    return write


async def is_serving(service: Any) -> bool:
    async with grpc.aio.insecure_channel(service.server.address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def until_serving(service: Any, serving: bool, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while await is_serving(service) is not serving:  # noqa: ASYNC110 - a server tells nobody here
            await asyncio.sleep(0.05)


def remote(service: Any) -> Any:
    """What runs the trunk of the only judge."""
    (served,) = service.catalog
    return served.judge.trunk


@pytest.mark.parametrize("shares_memory", [True, False])
async def test_scores_are_those_of_the_package_s_own_graph_bit_for_bit(
    serve: Any, open_server: Open, package: Package, tools: Any, shares_memory: bool
) -> None:
    server = open_server(shares_memory=shares_memory)
    here = await serve(models=str(SHIPPED.parents[1]))
    there = await serve(models=package(f"triton://{server.address}/shipped", shipped=True))
    await until_serving(there, True)
    assert remote(there).shares_memory is shares_memory
    question = pb.Question(goal="go to the green goal")
    clips = [tools.clip(tools.pixels(5, seed=each, size_px=56)) for each in range(3)]
    own, other = await here.rank(clips, question), await there.rank(clips, question)
    assert len(own.ranked) == 3
    assert list(other.ranked) == list(own.ranked)
    alone = (await there.score(clips[0], question)).judgement
    assert alone == (await here.score(clips[0], question)).judgement


async def test_shared_memory_is_given_back(serve: Any, server: Any, package: Package, tools: Any) -> None:
    service = await serve(models=package(f"triton://{server.address}/tiny"))
    await until_serving(service, True)
    assert server.region_count == 1
    await service.score(tools.clip())
    remote(service).close()
    assert server.region_count == 0


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("small", r"input frames: must have shape \(None, 8, 8, 3\), got \(None, 6, 6, 3\)"),
        ("louder", "output here: must be that of the package's own graph"),
    ],
)
async def test_a_server_that_runs_another_graph_is_refused(
    server: Any, package: Package, model: str, told: str
) -> None:
    models = package(f"triton://{server.address}/{model}")
    with pytest.raises(PackageError, match=f"model.yaml: backend: {told}"):
        async with serve_reward(RewardSettings(port=0, metrics_port=0, models=models)):
            pass


async def test_a_server_that_goes_and_comes_is_unavailable_in_between(
    serve: Any, server: Any, package: Package, tools: Any
) -> None:
    service = await serve(models=package(f"triton://{server.address}/tiny"), **SOON)
    await until_serving(service, True)
    before = await service.score(tools.clip())
    server.stop()
    refusal = await tools.refused(service.stub.Score(pb.ScoreRequest(question=pb.Question(), clip=tools.clip())))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_AWAY")
    assert "RetryInfo" in refusal.details
    await until_serving(service, False)
    assert await service.metric("worldtree_score_backend_up") == {'{model="tiny-judge"}': 0.0}
    server.start()
    await until_serving(service, True)
    assert await service.metric("worldtree_score_backend_up") == {'{model="tiny-judge"}': 1.0}
    assert (await service.score(tools.clip())).judgement == before.judgement


async def test_a_judge_waits_for_its_server(serve: Any, server: Any, package: Package, tools: Any) -> None:
    server.stop()
    service = await serve(models=package(f"triton://{server.address}/tiny"), **SOON)
    assert not await is_serving(service)
    refusal = await tools.refused(service.stub.Score(pb.ScoreRequest(question=pb.Question(), clip=tools.clip())))
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert f"triton://{server.address}/tiny" in refusal.message
    server.start()
    await until_serving(service, True)
    await service.score(tools.clip())


async def test_a_model_that_is_not_loaded_yet_is_waited_for(serve: Any, server: Any, package: Package) -> None:
    service = await serve(models=package(f"triton://{server.address}/nobody"), **SOON)
    assert not await is_serving(service)


async def test_a_server_that_was_started_anew_meanwhile_is_told_of_the_memory_again(
    serve: Any, server: Any, package: Package, tools: Any
) -> None:
    service = await serve(models=package(f"triton://{server.address}/tiny"), backend_look_s=60.0)
    before = await service.score(tools.clip())
    server.stop()
    server.start()
    assert (await service.score(tools.clip())).judgement == before.judgement
    assert server.region_count == 1


async def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_is_set(
    serve: Any, server: Any, package: Package, tools: Any
) -> None:
    service = await serve(models=package(f"triton://{server.address}/tiny"), **SOON)
    await until_serving(service, True)
    server.pause()
    refusal = await tools.refused(service.stub.Score(pb.ScoreRequest(question=pb.Question(), clip=tools.clip())))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_AWAY")
    await until_serving(service, False)
    server.resume()
    await until_serving(service, True)
    await service.score(tools.clip())


@pytest.fixture
def stand_in(graphs: dict[str, Path]) -> Iterator[StandIn]:
    server = StandIn(graphs)
    yield server
    server.stop()


async def test_a_run_that_took_too_long_is_not_asked_for_again(
    serve: Any, stand_in: StandIn, package: Package, tools: Any
) -> None:
    models = package(f"triton://{stand_in.address}/tiny")
    service = await serve(models=models, backend_look_s=60.0, backend_timeout_s=1.0)
    await service.score(tools.clip())
    stand_in.pause()
    stand_in.asked.clear()
    for _ in range(2):
        refusal = await tools.refused(service.stub.Score(pb.ScoreRequest(question=pb.Question(), clip=tools.clip())))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_AWAY")
    assert stand_in.asked == ["ModelInfer"]


async def test_a_look_that_was_begun_before_a_server_was_joined_says_nothing_of_it(
    serve: Any, stand_in: StandIn, package: Package, tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service = await serve(models=package(f"triton://{stand_in.address}/tiny"), **SOON)
    await until_serving(service, True)
    held = stand_in.held_look = threading.Event()
    async with asyncio.timeout(20):
        while stand_in.held_look is held:  # noqa: ASYNC110 - a server tells nobody here
            await asyncio.sleep(0.01)
        stand_in.forget_regions()
        await service.score(tools.clip())
        looks = stand_in.asked.count("ModelReady")
        while stand_in.asked.count("ModelReady") == looks:  # noqa: ASYNC110 - until that look is given up
            await asyncio.sleep(0.01)
    held.set()
    assert "a backend is away" not in caplog.text
    await service.score(tools.clip())


async def test_a_judge_whose_server_is_away_keeps_no_other_from_being_served(
    serve: Any, stand_in: StandIn, package: Package, tools: Any
) -> None:
    models = package(f"triton://{stand_in.address}/tiny")
    TinyJudge(name="here").write(Path(models))
    stand_in.stop()
    service = await serve(models=models, **SOON)
    assert await is_serving(service)
    for name, reason in (("here", None), ("tiny-judge", "BACKEND_AWAY")):
        asked = pb.ScoreRequest(model=common.ModelRef(name=name), question=pb.Question(), clip=tools.clip())
        if reason is None:
            await service.stub.Score(asked)
        else:
            assert (await tools.refused(service.stub.Score(asked))).reason == reason


async def test_frames_go_to_no_other_machine_that_the_operator_has_not_named(serve: Any, package: Package) -> None:
    models = package("triton://nobody.invalid:8001/tiny")
    with pytest.raises(PackageError, match=r"backend: host nobody.invalid must .* reward.backend_hosts"):
        await serve(models=models)
    assert not await is_serving(await serve(models=models, backend_hosts=["nobody.invalid"]))


@pytest.mark.skipif("WORLDTREE_TRITON_PYTHON" not in os.environ, reason="figures are of the real server")
async def test_what_a_run_costs_beside_one_of_this_process(
    open_server: Open, package: Package, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the time of a step there over that of one here, medians of interleaved steps."""
    servers = {"shared memory": open_server(), "messages": open_server(shares_memory=False)}
    settings = RewardSettings(port=0, metrics_port=0)
    judges = {"here": served(SHIPPED, settings)}
    for name, each in servers.items():
        models = package(f"triton://{each.address}/shipped", shipped=True)
        judges[name] = served(Path(models) / "judge/1", settings)
    seconds: dict[str, list[float]]
    for clips in (2, 16, 64):
        rng = np.random.default_rng(0)
        frames, actions = rng.integers(0, 256, (clips, 56, 56, 3), np.uint8), np.zeros(clips, np.int64)
        seconds = {name: [] for name in judges}
        tracks = {
            name: [each.judge.begin(np.ones(16, np.int64)) for _ in range(clips)] for name, each in judges.items()
        }
        for _ in range(30):
            for name, each in judges.items():
                begun_s = time.perf_counter()
                each.judge.step(tracks[name], frames, actions)
                seconds[name].append(time.perf_counter() - begun_s)
        here_s = statistics.median(seconds.pop("here"))
        ratios = ", ".join(f"{name} {statistics.median(each) / here_s:.2f}" for name, each in seconds.items())
        with capsys.disabled():
            print(f"\na step of {clips} clips, over one with the trunk here ({here_s * 1000:.1f} ms): {ratios}")
    for each in judges.values():
        each.close()


def served(folder: Path, settings: RewardSettings) -> Served:
    stored = ModelRepository(folder.parents[1], RewardPackage).read(folder)
    return Served(stored, settings, RewardMetrics(CollectorRegistry()))
