"""Every knob of the reward service."""

from typing import ClassVar

from pydantic import Field
from worldtree_runtime.settings import ServiceSettings


class RewardSettings(ServiceSettings):
    """The reward service: scores rollouts."""

    section: ClassVar[str] = "reward"

    port: int = Field(7130, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    device: str = Field("cpu", pattern="^(cpu|cuda)$", description="where the networks run: cpu or cuda")
    threads: int = Field(1, ge=1, le=256, description="threads of one run")
    backend_hosts: list[str] = Field(
        [], description="hosts that a package's Triton server may be on besides this machine: they see callers' frames"
    )
    backend_timeout_s: float = Field(
        10.0, gt=0, le=600, description="seconds that a run may take at the Triton server that a package names"
    )
    backend_look_s: float = Field(
        1.0, ge=0.05, le=60, description="seconds between two looks whether that server is there"
    )
    max_batch: int = Field(64, ge=2, le=4096, description="clips of one run, a frame of each")
    max_steps: int = Field(256, ge=1, description="steps of one clip, also of one that is streamed")
    max_candidates: int = Field(256, ge=2, description="clips of one Rank")
    max_waiting_frames: int = Field(16384, ge=1, description="frames of one judge that wait for their run")
    max_image_pixels: int = Field(1 << 20, ge=1, description="pixels of one PNG, read from its header before decoding")
    max_goal_chars: int = Field(1024, ge=1, description="characters of a goal")
    max_tree_nodes: int = Field(8192, ge=2, description="nodes of one tree that is scored, less those forgotten")
    max_nodes: int = Field(65_536, ge=2, description="the same of all trees, about 20 KiB each")
    max_streams: int = Field(1024, ge=1, description="clips and trees that are streamed at a time")
