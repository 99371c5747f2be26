"""All services behind a gateway, with tiny models, on an event loop of their own in this process."""

from pathlib import Path
from typing import Any

from server_loop import ServerLoop
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.serving import RunningGateway, start_gateway
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.serving import serve_multitask
from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.serving import serve_navigator
from worldtree_reward.config import RewardSettings
from worldtree_reward.serving import serve_reward
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_experts import TinyExperts
from worldtree_runtime.testing_judges import TinyJudge
from worldtree_runtime.testing_mazes import TinyMaze
from worldtree_video.config import VideoSettings
from worldtree_video.serving import serve_video

SIDE_PX = 8
_FREE = {"port": 0, "metrics_port": 0, "drain_timeout_s": 0.5}
_SMALL = {"pool_mib": 1, "fp16_pool_mib": 1, "int8_pool_mib": 1, "max_batch": 4, "headroom_blocks": 2}


class Whole:
    """Five services; `gateway` is the one in front. Close it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.servers = ServerLoop()
        TinyWorld(height_px=SIDE_PX, width_px=SIDE_PX).write(folder)
        TinyJudge(size_px=SIDE_PX, actions=("left", "right", "stay", "poison")).write(folder)
        TinyExperts().write(folder)
        TinyMaze().write(folder)
        given = {**_FREE, "models": str(folder)}
        enter = self.servers.enter
        video, self.worlds = enter(serve_video(VideoSettings(**given, **_SMALL)))
        self.worlds_address = video.address
        reward, _ = enter(serve_reward(RewardSettings(**given)))
        multitask, _ = enter(serve_multitask(MultitaskSettings(**given)))
        asked = {"video": video.address, "reward": reward.address}
        navigator = enter(serve_navigator(NavigatorSettings(**given, **asked)))
        self._behind = {
            **{name: [address] for name, address in asked.items()},
            "multitask": [multitask.address],
            "navigator": [navigator.address],
        }
        self.gateway = self.open_gateway(**settings)

    def open_gateway(self, **settings: Any) -> RunningGateway:
        """One more gateway before the same services."""
        known = {**_FREE, "openpi_port": 0, "probe_interval_s": 0.1}
        running: RunningGateway = self.servers.enter(
            start_gateway(GatewaySettings(**{**known, **self._behind, **settings}))
        )
        self.servers.run(running.wait_ready())
        return running

    def close(self) -> None:
        self.servers.close()
