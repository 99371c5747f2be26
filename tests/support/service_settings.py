"""The settings of each service, by its name."""

from worldtree_gateway.config import GatewaySettings
from worldtree_multitask.config import MultitaskSettings
from worldtree_navigator.config import NavigatorSettings
from worldtree_reward.config import RewardSettings
from worldtree_runtime.settings import ServiceSettings
from worldtree_video.config import VideoSettings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "video": VideoSettings,
    "multitask": MultitaskSettings,
    "reward": RewardSettings,
    "navigator": NavigatorSettings,
}
