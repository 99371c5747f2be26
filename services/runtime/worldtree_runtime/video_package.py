"""The `model.yaml` of a video model."""

import struct
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, ValidationInfo, field_validator, model_validator

from worldtree_runtime.model_package import Name, Package, Part
from worldtree_runtime.model_repository import StoredPackage

_FLOAT32_MAX = 3.4028234663852886e38
Count = Annotated[int, Field(ge=1)]
Place = Annotated[int, Field(ge=0)]
NoiseLevel = Annotated[float, Field(gt=0.0, le=1.0)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9]+$", max_length=64)]


class FrameSpec(Part):
    """Size and pace of the frames."""

    height_px: Count
    width_px: Count
    channels: Literal[3] = 3
    fps: Annotated[float, Field(gt=0, le=240)]


class DiscreteActions(Part):
    """A finite set of named actions; an action's id is its place in `names`."""

    kind: Literal["discrete"]
    names: Annotated[tuple[str, ...], Field(min_length=1)]

    def accepts(self, value: int | tuple[float, ...]) -> bool:
        """Whether this is an action's id."""
        return isinstance(value, int) and 0 <= value < len(self.names)


class ContinuousActions(Part):
    """A box of float vectors."""

    kind: Literal["continuous"]
    size: Count
    low: float = -1.0
    high: float = 1.0

    @field_validator("low", "high")
    @classmethod
    def _as_sent(cls, value: float) -> float:
        # The wire and the graph know 32-bit floats: -0.1 sent by a client must not lie below a low of -0.1.
        if not abs(value) <= _FLOAT32_MAX:
            raise ValueError(f"must be a finite 32-bit float, got {value}")
        return float(struct.unpack("<f", struct.pack("<f", value))[0])

    def accepts(self, value: int | tuple[float, ...]) -> bool:
        """Whether this is a vector of the box; one with a NaN is not."""
        return (
            isinstance(value, tuple)
            and len(value) == self.size
            and all(self.low <= part <= self.high for part in value)
        )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low={self.low} high={self.high}")
        return self


class PoseSpec(Part):
    """Where in a block the agent's pose stands: three numbers in a row, x, y and heading, from `offset` on.

    `step`: by how much one step moves x or y. `turn`: by how much a full turn changes the heading, which is 0 along x
    and grows towards y. `ahead`: steps from there to the middle of what is seen, which is what policies compare: a view
    from here to the other side shares less with this one than a view from some steps behind.

    In fp16 and int8 blocks it stands in 16 bits, where whole numbers are exact up to 2048.
    """

    layer: Place
    part: Literal["key", "value"]
    head: Place
    token: Place
    offset: Place = 0
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    turn: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    ahead: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def size(self) -> int:
        return 3

    @property
    def part_index(self) -> int:
        """Keys stand before values in a block."""
        return ("key", "value").index(self.part)


class KvSpec(Part):
    """Shape of a block, [layers, 2, heads, tokens, head_dim], and how many blocks the model sees.

    `state_tokens`: the last so many tokens of a block hold state, not keys and values; no format of 8 bits touches
    them. All of them may: a model without attention keeps what it remembers there. `pose`: where the pose stands, for
    policies that choose blocks by it.
    """

    layers: Count
    heads: Count
    tokens: Count
    head_dim: Count
    window: Count
    dtype: Literal["float32"] = "float32"
    state_tokens: Place = 0
    pose: PoseSpec | None = None

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        return (self.layers, 2, self.heads, self.tokens, self.head_dim)

    @property
    def block_bytes(self) -> int:
        return 4 * self.layers * 2 * self.heads * self.tokens * self.head_dim

    @model_validator(mode="after")
    def _places_inside(self) -> Self:
        if self.state_tokens > self.tokens:
            raise ValueError(f"state_tokens must be 0 to {self.tokens}, got {self.state_tokens}")
        if self.pose is None:
            return self
        limits = {
            "layer": (0, self.layers - 1),
            "head": (0, self.heads - 1),
            # A pose in 8 bits would be another place.
            "token": (self.tokens - self.state_tokens, self.tokens - 1),
            "offset": (0, self.head_dim - self.pose.size),
        }
        for name, (low, high) in limits.items():
            value = getattr(self.pose, name)
            if not low <= value <= high:
                allowed = f"{low} to {high}" if low <= high else "impossible"
                raise ValueError(
                    f"pose.{name} must be {allowed} in a block of {self.layers} layers, {self.heads} heads, "
                    f"{self.tokens} tokens ({self.state_tokens} of state) and head_dim {self.head_dim}, got {value}"
                )
        return self


def _check_levels(field: str, levels: tuple[float, ...]) -> None:
    if levels[0] != 1.0 or any(a <= b for a, b in pairwise(levels)):
        raise ValueError(f"{field} must start at 1.0 and fall strictly, got {list(levels)}")


class LatentSpec(Part):
    """What the denoiser works on in place of pixels. `shape`: of one chunk's latents."""

    shape: Annotated[tuple[Count, ...], Field(min_length=1, max_length=6)]


class PromptSpec(Part):
    """What a scene prompt may say, and how its first chunk is drawn.

    `tokens`: the most words of a prompt that count. `words`: a word's id is its place here plus 1; 0 fills up short
    prompts. `aliases`: other spellings of words. `schedule`: the noise level of each evaluation.
    """

    tokens: Annotated[int, Field(ge=1, le=256)]
    words: Annotated[tuple[Word, ...], Field(min_length=1)]
    aliases: dict[Word, Word] = Field(default_factory=dict)
    schedule: Annotated[tuple[NoiseLevel, ...], Field(min_length=1)]
    examples: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if twice := sorted({word for word in self.words if self.words.count(word) > 1}):
            raise ValueError(f"words must be distinct, got {twice[0]!r} twice")
        for alias, word in self.aliases.items():
            if word not in self.words:
                raise ValueError(f"aliases must name one of words, got {alias!r}: {word!r}")
            if alias in self.words:
                raise ValueError(f"aliases must not be words themselves, got {alias!r}")
        _check_levels("schedule", self.schedule)
        return self


class SamplerSpec(Part):
    """How a chunk is drawn: the noise level of each evaluation, for each allowed number of evaluations (nfe)."""

    kind: Literal["euler", "renoise"]
    default_nfe: Count
    schedules: Annotated[dict[int, tuple[NoiseLevel, ...]], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for nfe, levels in self.schedules.items():
            if len(levels) != nfe:
                raise ValueError(f"schedules[{nfe}] must hold {nfe} noise levels, got {len(levels)}")
            _check_levels(f"schedules[{nfe}]", levels)
        if self.default_nfe not in self.schedules:
            raise ValueError(f"default_nfe must be one of {sorted(self.schedules)}, got {self.default_nfe}")
        return self


class StartSpec(Part):
    """A start scene: a PNG strip of its frames side by side, and the actions between its chunks."""

    name: Name
    file: str
    actions: tuple[str | int | tuple[float, ...], ...] = ()
    description: str = ""


class FilesSpec(Part):
    """The ONNX graphs, relative to the package: `encode` and `decode` of a latent model, `scene` for prompts."""

    denoise: str
    commit: str
    encode: str | None = None
    decode: str | None = None
    scene: str | None = None

    def named(self) -> dict[str, str]:
        """The file of each graph that there is."""
        return {name: path for name, path in self if path is not None}


class VideoPackage(Package):
    """The `model.yaml` of a video model (DESIGN section 5).

    `cache_quality`: whether the graphs are told with how many evaluations each chunk in view was made.
    """

    stays = "a chunk is committed in place into the block pool, which is memory of this process"

    kind: Literal["video"]
    frame: FrameSpec
    frames_per_chunk: Count = 1
    latent: LatentSpec | None = None
    cache_quality: bool = False
    prompt: PromptSpec | None = None
    action: Annotated[DiscreteActions | ContinuousActions, Field(discriminator="kind")]
    kv: KvSpec
    sampler: SamplerSpec
    files: FilesSpec
    starts: tuple[StartSpec, ...] = ()

    @field_validator("files")
    @classmethod
    def _graphs_belong(cls, files: FilesSpec, info: ValidationInfo) -> FilesSpec:
        # Each part that takes graphs of its own has them, and no graph lies there unused.
        for part, names in (("latent", ("encode", "decode")), ("prompt", ("scene",))):
            if part not in info.data:
                continue  # it is wrong itself, and that is told
            wanted = info.data[part] is not None
            for name in names:
                if wanted != (getattr(files, name) is not None):
                    raise ValueError(f"{name} must be {'set, as' if wanted else 'unset, as no'} {part} is")
        return files

    @model_validator(mode="after")
    def _distinct_starts(self) -> Self:
        if len({start.name for start in self.starts}) != len(self.starts):
            raise ValueError("starts must have distinct names")
        return self

    def paths(self) -> dict[str, str]:
        return {
            **{f"files.{name}": path for name, path in self.files.named().items()},
            **{f"starts.{start.name}.file": start.file for start in self.starts},
        }

    @property
    def chunk_shape(self) -> tuple[int, int, int, int]:
        """Shape of one chunk's pixels: [frames, height, width, channels]."""
        return (self.frames_per_chunk, self.frame.height_px, self.frame.width_px, self.frame.channels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of what the denoiser makes of one chunk: its latents where the model has some, else its pixels."""
        return self.latent.shape if self.latent else self.chunk_shape

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk's uint8 pixels."""
        frames, height, width, channels = self.chunk_shape
        return frames * height * width * channels


StoredVideo: TypeAlias = StoredPackage[VideoPackage]
