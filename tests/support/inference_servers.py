"""A gateway before real services with tiny models, on an event loop of its own: stock clients block their thread."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from server_loop import ServerLoop
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import RunningGateway, start_gateway
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.serving import serve_multitask
from worldtree_reward.config import RewardSettings
from worldtree_reward.serving import serve_reward
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_experts import TinyExperts
from worldtree_runtime.testing_judges import TinyJudge
from worldtree_video.catalog import Catalog
from worldtree_video.config import VideoSettings
from worldtree_video.serving import serve_video

ANYWHERE: dict[str, Any] = {"port": 0, "metrics_port": 0, "drain_timeout_s": 1.0}


class Servers:
    """The services, each with its tiny models, and gateways before them."""

    def __init__(self, folder: Path) -> None:
        self.loop = ServerLoop()
        models = folder / "models"
        TinyWorld().write(models)
        TinyWorld(name="tiny-arm", action_size=2, frames_per_chunk=2).write(models)
        TinyWorld(name="tiny-scene", prompt=True).write(models)
        TinyExperts().write(models)
        TinyJudge().write(models)
        known = {**ANYWHERE, "models": str(models)}
        pools = {"pool_mib": 1, "fp16_pool_mib": 1, "int8_pool_mib": 1, "max_batch": 4, "headroom_blocks": 2}
        self.video, self.worlds = self.loop.enter(serve_video(VideoSettings(**known, **pools, max_sessions=64)))
        self.multitask, _ = self.loop.enter(serve_multitask(MultitaskSettings(**known)))
        self.reward, _ = self.loop.enter(serve_reward(RewardSettings(**known)))

    def gateway(self, loop: ServerLoop | None = None, *, wait: bool = True, **settings: Any) -> RunningGateway:
        """One more, on a loop of its own where a test stops it. `wait`: until all its services answer."""
        loop = loop or self.loop
        given = {
            "probe_interval_s": 0.1,
            "rehome_timeout_s": 0.5,
            "video": [self.video.address],
            "multitask": [self.multitask.address],
            "reward": [self.reward.address],
            **ANYWHERE,
            **settings,
        }
        running: RunningGateway = loop.enter(start_gateway(GatewaySettings(**given)))
        if wait:
            loop.run(running.wait_ready())
        return running

    def session_count(self) -> int:
        """Sessions of all worlds."""
        return session_count(self.worlds)

    def no_session_is_left(self, timeout_s: float = 5.0) -> None:
        """Fails where one is: sessions of calls that were cancelled go a moment later."""
        until(lambda: self.session_count() == 0, timeout_s=timeout_s)
        for each in self.worlds:
            each.worlds.engine.check_integrity()

    def close(self) -> None:
        self.loop.close()


def session_count(worlds: Catalog) -> int:
    return sum(len(each.worlds.engine.sessions) for each in worlds)


def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Returns when it holds; fails when it never does."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not come true"
        time.sleep(0.01)


def given(name: str, value: Any, datatype: str) -> triton.InferInput:
    """An input of the stock client."""
    array = np.array(value, object if datatype == "BYTES" else triton.triton_to_np_dtype(datatype))
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def actions(*ids: int) -> triton.InferInput:
    return given("actions", ids, "INT64")
