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
    device: str = Field("cpu", pattern="^(cpu|cuda)$", description="where policies run: cpu or cuda")
    threads: int = Field(1, ge=1, le=256, description="threads of one run of a policy")
    max_policy_batch: int = Field(32, ge=1, le=1024, description="robots of one run of a policy")
    world: str = Field("minigrid", min_length=1, description="the world that imagines what a robot may see")
    max_past_frames: int = Field(256, ge=1, description="frames of what a Plan says was seen")
    max_navigations: int = Field(1024, ge=1, description="robots that are steered at a time")
    max_image_pixels: int = Field(1 << 20, ge=1, description="pixels of one PNG, read from its header before decoding")
    start_timeout_s: float = Field(10.0, gt=0, le=3600, description="seconds within which a stream's Start must come")
    observation_timeout_s: float = Field(300.0, gt=0, le=86_400, description="seconds between two observations")
    episode_ttl_s: float = Field(600.0, gt=0, le=86_400, description="how long an episode is kept after its stream")
    max_episodes: int = Field(4096, ge=1, description="episodes that are kept and no stream goes on with")
    max_map_side: int = Field(256, ge=1, le=1024, description="rows and columns of a map")
    max_map_batch: int = Field(32, ge=1, le=1024, description="maps that a maze model looks at together")
    max_waiting_maps: int = Field(1024, ge=1, description="maps that wait for a maze model; A* takes those beyond")
    fork_ttl_s: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="lease of the fork that futures start from, if this process dies",
    )
