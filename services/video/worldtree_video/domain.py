"""The words of the video service as plain values: actions, policies, records, chunks."""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum

SEED_MAX = 2**53 - 1  # exact in JSON and JavaScript


class Priority(IntEnum):
    """What kind of work a run is; lower goes first. PLAY: has a target fps. STEP: also starts, replays, other plays."""

    PLAY = 0
    STEP = 1
    BULK = 2


@dataclass(frozen=True, slots=True)
class Action:
    """What steers one chunk: a discrete id or a float vector, checked against the model's action space."""

    value: int | tuple[float, ...]

    def encode(self) -> bytes:
        """Canonical bytes, for hashing."""
        if isinstance(self.value, int):
            return struct.pack("<cq", b"d", self.value)
        return struct.pack(f"<cq{len(self.value)}f", b"c", len(self.value), *self.value)


class Storage(Enum):
    """How the numbers of a block are stored."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class PolicyKind(Enum):
    """Which blocks of a history stay in view."""

    SLIDING = "sliding"
    SINK_WINDOW = "sink_window"
    FULL = "full"
    RETRIEVE = "retrieve"
    PLUGIN = "plugin"


@dataclass(frozen=True, slots=True)
class KvPolicy:
    """Which chunks of a history the model sees when it makes the next one, and how they are stored.

    The rules themselves are in policies.py. `recent_chunks`: of kind retrieve, the newest that always stay in view;
    `bank_chunks`: of kinds retrieve and plugin, the older ones kept to choose from; `plugin`: its name.
    """

    kind: PolicyKind
    window_chunks: int
    sink_chunks: int = 0
    storage: Storage = Storage.FP32
    recent_chunks: int = 0
    bank_chunks: int = 0
    plugin: str = ""

    def __post_init__(self) -> None:
        if self.window_chunks < 1:
            raise ValueError(f"window_chunks must be 1 or more, got {self.window_chunks}")
        if not 0 <= self.sink_chunks < self.window_chunks:
            raise ValueError(f"sink_chunks must be 0 to {self.window_chunks - 1}, got {self.sink_chunks}")
        # What a kind does not use must be unset: equal worlds have equal keys.
        most_recent = self.window_chunks - self.sink_chunks
        if self.kind is not PolicyKind.RETRIEVE:
            if self.recent_chunks:
                raise ValueError(f"recent_chunks must be 0 for kind {self.kind.value}, got {self.recent_chunks}")
        elif not 1 <= self.recent_chunks <= most_recent:
            raise ValueError(f"recent_chunks must be 1 to {most_recent}, got {self.recent_chunks}")
        if not self.compares:
            if self.bank_chunks:
                raise ValueError(f"bank_chunks must be 0 for kind {self.kind.value}, got {self.bank_chunks}")
        elif self.bank_chunks < 1:
            raise ValueError(f"bank_chunks must be 1 or more, got {self.bank_chunks}")
        if (self.kind is PolicyKind.PLUGIN) != bool(self.plugin):
            raise ValueError(f"plugin must be set for kind plugin and for no other, got {self.plugin[:80]!r}")

    @property
    def compares(self) -> bool:
        """Whether it may ask for the summaries of chunks."""
        return self.kind in (PolicyKind.RETRIEVE, PolicyKind.PLUGIN)

    def visible(self, length: int) -> list[int]:
        """Positions in view after `length` chunks, ascending, at most `window_chunks`; the last is always there.

        Only where they follow from the length alone: ask the table of a history that `compares`.
        """
        if self.compares:
            raise ValueError(f"what kind {self.kind.value} shows does not follow from a history's length")
        if length <= self.window_chunks:
            return list(range(length))
        recent = self.window_chunks - self.sink_chunks
        return [*range(self.sink_chunks), *range(length - recent, length)]

    def can_grow(self, length: int) -> bool:
        """Whether a history of `length` chunks may get one more."""
        return self.kind is not PolicyKind.FULL or length < self.window_chunks

    def encode(self) -> bytes:
        """Canonical bytes, for hashing: what is in view, and how exactly, decides what the keys and values are."""
        # Nothing is added for FP32: the keys of snapshots made before there were formats stay what they are.
        storage = b"" if self.storage is Storage.FP32 else self.storage.value.encode()
        parts = [struct.pack("<qq", self.window_chunks, self.sink_chunks), storage]
        if self.compares:
            chosen = struct.pack("<qq", self.recent_chunks, self.bank_chunks)
            parts += [b"\0", self.kind.value.encode(), chosen, self.plugin.encode()]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Record:
    """How one chunk of a history came to be: enough to make it again, bit for bit.

    `chunk_index` counts from the start (negative: a chunk of the start, given and not generated, nfe 0).
    `key` chains over everything before it, so equal keys mean equal worlds.
    """

    chunk_index: int
    action: Action | None
    seed: int
    nfe: int
    key: bytes

    @property
    def given(self) -> bool:
        return self.nfe == 0


def root_key(digest: str, fingerprint: str, policy: KvPolicy) -> bytes:
    """The key that every history under one model, backend and policy begins with."""
    return hashlib.sha256(b"\0".join((digest.encode(), fingerprint.encode(), policy.encode()))).digest()


def chain_key(parent: bytes, action: Action | None, *, seed: int, nfe: int, given: bytes = b"") -> bytes:
    """The key of a chunk made after `parent`. `given`: a start chunk's uint8 pixels."""
    content = hashlib.sha256(given).digest() if given else b""
    steering = action.encode() if action else b"-"
    # The seed draws the noise only of generated chunks: a start is the same world under any seed.
    return hashlib.sha256(parent + steering + struct.pack("<qq", seed if nfe else 0, nfe) + content).digest()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a world begins: its first chunks as uint8 pixels [frames_per_chunk, height, width, 3] in C order."""

    chunks: tuple[bytes, ...]
    actions: tuple[Action, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if not self.chunks or len(self.actions) != len(self.chunks) - 1:
            raise ValueError(f"an origin of {len(self.chunks)} chunks cannot have {len(self.actions)} actions")


@dataclass(frozen=True, slots=True)
class Known:
    """What a journal knows of a history: pixels of generated chunks by chunk_index, and a length that was checkpointed.

    Both only save time: what is not known is made again.
    """

    frames: Mapping[int, bytes] = field(default_factory=dict)
    checkpoint: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick that a chunk was in, by the engine's clock, and how many were."""

    begin_s: float
    end_s: float
    member_count: int


@dataclass(slots=True)
class Timing:
    """Where a chunk's time went, in seconds of wall time."""

    queue_s: float = 0.0
    denoise_s: float = 0.0
    commit_s: float = 0.0
    tick_count: int = 0
    batch_size_sum: int = 0
    ticks: list[Tick] = field(default_factory=list)

    @property
    def mean_batch_size(self) -> float:
        return self.batch_size_sum / self.tick_count if self.tick_count else 0.0


class SummaryKind(Enum):
    """What the numbers of a summary mean."""

    POSE = "pose"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a policy may compare of a chunk. All summaries of one history are of one kind and length.

    `pose`: (x, y, heading) at the end of the chunk, integrated from actions: x and y in steps (the way of one step
    forward is 1), heading in turns, counter-clockwise (a quarter turn is 0.25, and 0.25 and 1.25 look the same way).
    `key`: a mean of the chunk's keys, of any length, compared by its direction only.
    """

    kind: SummaryKind
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or (self.kind is SummaryKind.POSE and len(self.values) != 3):
            raise ValueError(f"a {self.kind.value} cannot have {len(self.values)} values")


@dataclass(frozen=True, slots=True)
class Made:
    """What a commit gives. `frames`: uint8 pixels [frames_per_chunk, height, width, 3] in C order.

    `summary`: where the session's policy `compares`.
    """

    frames: bytes
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One committed chunk. `frames`: uint8 pixels [frames_per_chunk, height, width, 3] in C order."""

    record: Record
    frames: bytes
    timing: Timing = field(default_factory=Timing)
