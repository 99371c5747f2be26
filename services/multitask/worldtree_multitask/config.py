"""Every knob of the multi-task service."""

from typing import ClassVar

from pydantic import Field
from worldtree_runtime.settings import ServiceSettings


class MultitaskSettings(ServiceSettings):
    """The multi-task service: answers tasks with merged experts."""

    section: ClassVar[str] = "multitask"

    port: int = Field(7120, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    device: str = Field("cpu", pattern="^(cpu|cuda)$", description="where the networks run: cpu or cuda")
    threads: int = Field(1, ge=1, le=256, description="threads of one run")
    shelf_mib: int = Field(256, ge=1, description="MiB of made weights for each model; the longest unused leave")
    max_batch: int = Field(32, ge=2, le=4096, description="images of one run")
    max_images: int = Field(256, ge=1, description="images of one Predict")
    max_waiting_images: int = Field(4096, ge=1, description="images of one model that wait for their run")
    max_image_pixels: int = Field(1 << 20, ge=1, description="pixels of one PNG, read from its header before decoding")
    max_learning_images: int = Field(4096, ge=1, description="images that one CreateMerge may bring")
    max_creations: int = Field(8, ge=1, description="merges that are being made or wait for it")
    max_merges: int = Field(1024, ge=1, description="merges that have a name")
    merges_folder: str | None = Field(
        None, description="folder where named merges outlive the process when there is no Redis; unset: in memory"
    )
    # more than an answer may be cached for: Predict's ttl of 600 s in its proto, from when it has come, which is a call
    # and a gateway's flight_ttl_s after it was made
    name_reuse_s: float = Field(
        1200.0, ge=0, description="how long the name of a deleted merge stands for nothing else: answers may be cached"
    )
