"""Versions of models by the inference protocol: the newest, one that is asked for, one that the gateway tries."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
import worldtree
from inference_servers import ANYWHERE, actions, given
from server_loop import ServerLoop
from tritonclient.utils import InferenceServerException
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import RunningGateway, start_gateway
from worldtree_runtime.testing import TinyWorld
from worldtree_video.config import VideoSettings
from worldtree_video.serving import serve_video


@pytest.fixture(scope="module")
def loop() -> Iterator[ServerLoop]:
    loop = ServerLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def video(loop: ServerLoop, tmp_path_factory: pytest.TempPathFactory) -> str:
    models: Path = tmp_path_factory.mktemp("versions")
    TinyWorld(version="1").write(models)
    TinyWorld(version="2", window=3).write(models)
    pools = {"pool_mib": 1, "fp16_pool_mib": 1, "int8_pool_mib": 1, "max_batch": 4, "headroom_blocks": 2}
    server, _ = loop.enter(serve_video(VideoSettings(**ANYWHERE, **pools, models=str(models))))
    return str(server.address)


def gateway(loop: ServerLoop, video: str, **settings: object) -> RunningGateway:
    known = {**ANYWHERE, "video": [video], "probe_interval_s": 0.1}
    running: RunningGateway = loop.enter(start_gateway(GatewaySettings(**{**known, **settings})))
    loop.run(running.wait_ready())
    return running


def test_the_newest_is_meant_and_another_can_be_asked_for(loop: ServerLoop, video: str) -> None:
    running = gateway(loop, video)
    with (
        triton.InferenceServerClient(running.server.address) as client,
        worldtree.Client(running.server.address) as sdk,
    ):
        assert list(client.get_model_metadata("tiny").versions) == ["2"]
        assert list(client.get_model_metadata("tiny", "1").versions) == ["1"]
        frames = {}
        for version in ("", "1", "2"):
            answer = client.infer("tiny", [actions(*[0, 1] * 4)], model_version=version)
            assert answer.get_response().model_version == (version or "2")
            frames[version] = answer.as_numpy("frames").tobytes()
            name = f"tiny/{version}" if version else "tiny"
            assert frames[version] == sdk.generate(name, start="dawn", actions=[0, 1] * 4).frames.tobytes()
        assert frames[""] == frames["2"] != frames["1"]
        for version in ("1", "2"):
            (stats,) = client.get_inference_statistics("tiny", version).model_stats
            assert stats.execution_count >= 1, version


def test_a_sequence_stays_with_the_version_that_it_began_with(loop: ServerLoop, video: str) -> None:
    running = gateway(loop, video)
    with triton.InferenceServerClient(running.server.address) as client:
        begun = client.infer("tiny", [actions(0)], model_version="1", sequence_id=1, sequence_start=True)
        assert begun.get_response().model_version == "1"
        with pytest.raises(InferenceServerException, match='must be empty or "1"'):
            client.infer("tiny", [actions(0)], model_version="2", sequence_id=1)
        ended = client.infer("tiny", [actions(0)], sequence_id=1, sequence_end=True)
        assert ended.get_response().model_version == "1"


def test_where_the_gateway_tries_a_version_the_answer_says_which(loop: ServerLoop, video: str) -> None:
    running = gateway(loop, video, canary=["tiny/1=1.0"])
    with (
        triton.InferenceServerClient(running.server.address) as client,
        worldtree.Client(running.server.address) as sdk,
    ):
        begun = client.infer("tiny", [actions(0)], sequence_id=1, sequence_start=True)
        assert begun.get_response().model_version == "1"
        assert client.infer("tiny", [], sequence_id=1, sequence_end=True).get_response().model_version == "1"
        walk = [actions(*[0, 1] * 4), given("seed", [3], "INT64")]
        clip = client.infer("tiny", walk)
        assert clip.get_response().model_version == ""  # of a clip nobody tells
        expected = sdk.generate("tiny/1", start="dawn", seed=3, actions=[0, 1] * 4)
        assert clip.as_numpy("frames").tobytes() == expected.frames.tobytes()
        assert client.infer("tiny", walk, model_version="2").get_response().model_version == "2"
