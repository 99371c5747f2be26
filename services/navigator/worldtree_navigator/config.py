"""Every knob of the navigator service."""

from typing import ClassVar

from pydantic import Field
from worldtree_runtime.settings import ServiceSettings

_ADDRESS = r"^.+:[0-9]{1,5}$"


class NavigatorSettings(ServiceSettings):
    """The navigator service: plans by imagining."""

    section: ClassVar[str] = "navigator"

    port: int = Field(7140, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    video: str = Field(
        "127.0.0.1:7110", pattern=_ADDRESS, description="HOST:PORT of the video service, or of a gateway before several"
    )
    reward: str = Field(
        "127.0.0.1:7130",
        pattern=_ADDRESS,
        description="HOST:PORT of the reward service, or of a gateway before several",
    )
    max_candidates: int = Field(256, ge=1, le=10_000, description="futures of one Imagine")
    max_horizon: int = Field(64, ge=1, description="actions of one future")
    max_chunks: int = Field(4096, ge=1, description="distinct chunks of all futures of one Imagine")
    max_imaginings: int = Field(64, ge=1, description="calls of Imagine and Plan at a time")
    video_timeout_s: float = Field(20.0, gt=0, le=3600, description="seconds that the next chunk may take")
    reward_timeout_s: float = Field(10.0, gt=0, le=3600, description="seconds that scoring one round may take")
    fork_ttl_s: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="lease of the fork that futures start from, if this process dies",
    )
