"""Every knob of the video service."""

from typing import ClassVar

from pydantic import Field
from worldtree_runtime.settings import ServiceSettings


class VideoSettings(ServiceSettings):
    """The video service: generates worlds, and keeps their KV cache."""

    section: ClassVar[str] = "video"

    port: int = Field(7110, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    reload_s: float = Field(
        2.0, ge=0, description="seconds between two looks for new and removed model versions; 0: none is looked for"
    )
    device: str = Field("cpu", pattern="^(cpu|cuda)$", description="where the models run: cpu or cuda")
    threads: int = Field(1, ge=1, le=256, description="threads of one tick")
    pool_mib: int = Field(512, ge=1, description="MiB of KV blocks for each version of a model")
    fp16_pool_mib: int = Field(
        128, ge=0, description="MiB of KV blocks in 16 bits; on a CPU taken as they are used. 0: fp16 is not offered"
    )
    int8_pool_mib: int = Field(
        128, ge=0, description="MiB of KV blocks in 8 bits; on a CPU taken as they are used. 0: int8 is not offered"
    )
    max_batch: int | None = Field(None, ge=1, le=1024, description="members of a tick; unset: measured at start")
    prefix_cache: bool = Field(True, description="share chunks that were made before, whoever made them")
    reserve_chunks: int = Field(16, ge=0, description="chunks out of view that a session keeps for instant rewinds")
    headroom_blocks: int = Field(32, ge=0, description="free blocks below which no new session is admitted")
    host_mib: int = Field(256, ge=0, description="MiB of host memory for blocks of idle sessions; 0: none")
    tier_url: str | None = Field(
        None, description="folder or fsspec URL for blocks below host memory; unset: Redis where redis_url is set"
    )
    tier_ttl_s: float = Field(86_400.0, gt=0, description="how long a block is kept there")
    journal_folder: str | None = Field(
        None, description="folder for the journals of sessions when there is no Redis; unset: none, they die with us"
    )
    journal_grace_s: float = Field(3600.0, gt=0, description="how long a journal outlives its session's lease")
    journal_timeout_s: float = Field(0.5, gt=0, le=60, description="what a stream waits for its journal at most")
    checkpoint_chunks: int = Field(
        16, ge=1, description="chunks between two checkpoints of a journaled session's blocks"
    )
    max_sessions: int = Field(1024, ge=1, description="sessions of one version of a model")
    session_ttl_s: float = Field(600.0, gt=0, description="lease of a session that asks for none")
    session_ttl_max_s: float = Field(86_400.0, gt=0, description="longest lease")
    snapshot_ttl_s: float = Field(86_400.0, gt=0, description="how long a snapshot is kept that asks for no time")
    snapshot_store_mib: int = Field(256, ge=1, description="MiB of snapshots kept in memory when there is no Redis")
    sink_chunks: int = Field(1, ge=0, description="chunks of the start that stay in view by default")
    max_bank_chunks: int = Field(256, ge=1, description="older chunks that a retrieving session keeps to choose from")
    max_step_actions: int = Field(256, ge=1, description="actions of one Step or Generate")
    max_rollout_sequences: int = Field(256, ge=1, description="sequences of one Rollout")
    max_rollout_chunks: int = Field(4096, ge=1, description="chunks of one Rollout, all sequences together")
    max_fork_count: int = Field(256, ge=1, description="children of one Fork")
    max_prompt_chars: int = Field(1000, ge=1, description="characters of a scene prompt")
    max_waiting_scenes: int = Field(64, ge=1, description="prompts of one model that wait for their scenes")
    max_image_pixels: int = Field(1 << 20, ge=1, description="pixels of one PNG, read from its header before decoding")
    max_untaken_chunks: int = Field(64, ge=1, description="chunks made ahead of a slow reader of Rollout or Generate")
    max_queued_actions: int = Field(1024, ge=1, description="actions waiting in one Play")
    play_load_max: float = Field(
        0.75,
        gt=0,
        le=1,
        description="share of the engine's time that plays with a target fps may be promised; the bars of "
        "benchmarks/realtime.py hold at it on a quiet machine",
    )
    queue_s: float = Field(
        10.0,
        gt=0,
        description="estimated wait from which a Step or a new session is refused; one that could not be answered "
        "before its own deadline is refused earlier",
    )
    play_idle_s: float = Field(300.0, gt=0, description="a Play without control or chunk for so long is ended")
