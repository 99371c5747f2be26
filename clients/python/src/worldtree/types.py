"""What the calls answer with: frozen values, nothing that talks to a server."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from worldtree.actions import Action, ActionValue
from worldtree.errors import FailedPrecondition

# Pixels, RGB, 0 to 255: [frames, height, width, 3].
Frames = npt.NDArray[np.uint8]
# Seconds, or a timedelta.
Seconds = float | timedelta
# Called with (done, total) as work goes on.
Progress = Callable[[int, int], None]
Detail = Literal["all", "last", "none"]
Idle = Literal["wait", "repeat"]
# What a play may give up to keep its fps: function evaluations.
Degrade = Literal["nfe"]
Storage = Literal["default", "fp32", "fp16", "int8"]
World = TypeVar("World", covariant=True)


class Start(str):
    """A start scene. It is its own name, so it can be passed as `start=` and looked up in `model.starts` by name."""

    __slots__ = ("description", "frame_count")
    description: str
    frame_count: int

    def __new__(cls, name: str, *, description: str = "", frame_count: int = 1) -> "Start":
        start = super().__new__(cls, name)
        start.description = description
        start.frame_count = frame_count
        return start

    @property
    def name(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class ContinuousActions:
    """A box of float vectors: each of `size` components is within [low, high]."""

    size: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """One way in which a model's blocks can be stored, and what it costs: bytes a block, blocks in its pool."""

    storage: Storage
    block_bytes: int
    block_count: int


@dataclass(frozen=True, slots=True)
class PromptSpace:
    """What a model knows to make of a scene prompt: the `words` it knows, how many of them it heeds, some to try."""

    words: tuple[str, ...]
    token_limit: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model. `actions` are the names by id of a discrete model; `continuous` is set for one that is not.

    `storage_formats` are what kv={"storage": ...} may name, `policy_plugins` what kv={"plugin": ...} may;
    `prompt_space` is None for one that takes no prompts.
    """

    name: str
    version: str
    digest: str
    description: str
    license: str
    height_px: int
    width_px: int
    fps: float
    frames_per_chunk: int
    actions: tuple[str, ...]
    continuous: ContinuousActions | None
    nfe_choices: tuple[int, ...]
    nfe_default: int
    window_chunks: int
    block_bytes: int
    starts: tuple[Start, ...]
    prompt_supported: bool
    prompt_space: PromptSpace | None
    storage_formats: tuple[StorageFormat, ...]
    policy_plugins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KvPolicy:
    """Which chunks of its history a session sees, and how their keys and values are stored.

    What goes together, and up to which number, the server says.
    """

    kind: Literal["default", "sliding", "sink_window", "full", "retrieve", "plugin"] = "default"
    window: int = 0  # chunks in view; 0: the model's window
    sink: int | None = None  # chunks of the start that stay in view
    storage: Storage = "default"
    recent: int = 0  # newest chunks that stay in view beside what is retrieved; 0: half of the window
    bank: int = 0  # older chunks kept to choose from; 0: 64
    plugin: str = ""  # the policy's name, for kind "plugin"


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the server described it when asked."""

    id: str
    model: str
    version: str
    digest: str
    chunk_index: int
    start_frame_count: int
    seed: int
    nfe: int
    kv: KvPolicy
    state: Literal["idle", "busy", "spilled", "unknown"]
    parent: str | None
    start: str | None
    create_time: datetime
    expire_time: datetime
    block_count: int
    shared_block_count: int
    state_hash: str
    journaled: bool  # its journal is written: it outlives the process of its replica


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a chunk went."""

    queue_s: float
    denoise_s: float
    commit_s: float
    tick_count: int
    mean_batch_size: float
    nfe: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frames made together, steered by one action. `frames` is None where none were asked for."""

    index: int
    actions: tuple[ActionValue | Action, ...]
    frames: Frames | None = field(repr=False)
    timing: Timing
    state_hash: str


@dataclass(frozen=True, slots=True)
class PlayedChunk:
    """A chunk of a live play and how it kept its time."""

    index: int
    actions: tuple[ActionValue | Action, ...]
    frames: Frames = field(repr=False)
    timing: Timing
    state_hash: str
    control_latency_s: float | None  # from the arrival of its control to its frames; None: the action was repeated
    late_s: float
    queued_count: int
    done_action_count: int  # actions that this play has used or forgotten so far


@dataclass(frozen=True, slots=True)
class Rollout:
    """One imagined future. `frames` holds all of it, its last chunk or nothing, by the detail asked for."""

    actions: tuple[ActionValue | Action, ...]
    frames: Frames | None = field(repr=False)
    state_hash: str
    seed: int | None
    timings: tuple[Timing, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Begun:
    """A play has begun, with its session at `chunk_index`."""

    chunk_index: int


@dataclass(frozen=True, slots=True)
class Rewound:
    """A play went back."""

    chunk_index: int
    last_frame: Frames = field(repr=False)  # [height, width, 3]


@dataclass(frozen=True, slots=True)
class Forked(Generic[World]):
    """A play was forked as it stood; the play itself goes on."""

    worlds: tuple[World, ...]


@dataclass(frozen=True, slots=True)
class Paused:
    """A play stands still until it is resumed."""

    chunk_index: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """A play goes on: after a pause, or (`rehomed`) after its session was brought to life on another replica."""

    chunk_index: int
    rehomed: bool = False
    replica: str = ""  # where it lives now; only when rehomed
    bit_identical: bool = True  # False: another kind of machine, so new frames may differ in the last bit
    pause_s: float | None = None  # how long the play stood still; None: not rehomed, or nobody measured it


@dataclass(frozen=True, slots=True)
class Clip:
    """A generated clip. `frames` are the generated ones; `start_frames` are what the world began with.

    `warnings`: what the server ignored of the request, such as words of a prompt that the model does not know.
    """

    frames: Frames = field(repr=False)
    actions: tuple[ActionValue | Action, ...]
    start_frames: Frames = field(repr=False)
    chunks: tuple[Chunk, ...] = field(repr=False)
    state_hash: str
    warnings: tuple[str, ...] = ()

    def save(self, path: str | Path, *, fps: float = 10.0, scale: int = 1) -> Path:
        """Writes the start and the clip as .mp4, .gif or .png (a contact sheet), by the suffix.

        `scale` enlarges each pixel to a square of that side. Needs the extra `media`.
        """
        from worldtree.media import save_frames

        return save_frames(np.concatenate([self.start_frames, self.frames]), path, fps=fps, scale=scale)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A saved session: an id in the server's store, its bytes, or both."""

    id: str = ""
    data: bytes | None = field(default=None, repr=False)
    size_bytes: int = 0
    state_hash: str = ""
    expire_time: datetime | None = None

    def to_bytes(self) -> bytes:
        """The snapshot itself. Raises FailedPrecondition when only the server holds it."""
        if self.data is None:
            raise FailedPrecondition(
                f"the snapshot {self.id} holds no bytes",
                reason="SNAPSHOT_WITHOUT_DATA",
                metadata={"snapshot": self.id},
                remedy="take it with world.save(include_data=True)",
            )
        return self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Snapshot":
        return cls(data=data, size_bytes=len(data))

    def save(self, path: str | Path) -> Path:
        """Writes the bytes to a file (safetensors)."""
        path = Path(path)
        path.write_bytes(self.to_bytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Snapshot":
        return cls.from_bytes(Path(path).read_bytes())
