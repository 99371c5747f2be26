"""Messages to the words of domain.py: pure functions, each refusal naming field, value and limit."""

import math
from collections.abc import Collection, Sequence

from google.protobuf.duration_pb2 import Duration
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.errors import InvalidRequest, NotFound
from worldtree_runtime.frames import read_frames
from worldtree_runtime.video_package import ContinuousActions, DiscreteActions, VideoPackage

from worldtree_video import domain
from worldtree_video.catalog import Served
from worldtree_video.config import VideoSettings
from worldtree_video.errors import OutOfRange, UnknownPolicy
from worldtree_video.policies import plugin_names, resolve
from worldtree_video.prompt import Prompt, read_prompt

_POLICY_KINDS = {
    pb.KvPolicy.KIND_UNSPECIFIED: domain.PolicyKind.SINK_WINDOW,
    pb.KvPolicy.KIND_SLIDING: domain.PolicyKind.SLIDING,
    pb.KvPolicy.KIND_SINK_WINDOW: domain.PolicyKind.SINK_WINDOW,
    pb.KvPolicy.KIND_FULL: domain.PolicyKind.FULL,
    pb.KvPolicy.KIND_RETRIEVE: domain.PolicyKind.RETRIEVE,
    pb.KvPolicy.KIND_PLUGIN: domain.PolicyKind.PLUGIN,
}
_STORAGES = {
    pb.KvPolicy.STORAGE_UNSPECIFIED: domain.Storage.FP32,
    pb.KvPolicy.STORAGE_FP32: domain.Storage.FP32,
    pb.KvPolicy.STORAGE_FP16: domain.Storage.FP16,
    pb.KvPolicy.STORAGE_INT8: domain.Storage.INT8,
}
_BANK_DEFAULT = 64
_STATE_HASH_BYTES = 32


def to_action(message: pb.Action, package: VideoPackage, field: str) -> domain.Action:
    """Checks an action against a model's action space."""
    if message.instruction:
        raise InvalidRequest(f"{field}.instruction", f"model {package.name} takes no instruction")
    space = package.action
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest(field, f"{field} must set id, name or vector")
    if isinstance(space, DiscreteActions):
        return domain.Action(_discrete(message, kind, space, field))
    if kind != "vector":
        raise InvalidRequest(f"{field}.{kind}", f"model {package.name} takes vectors of {space.size} numbers")
    return domain.Action(_vector(message.vector.values, space, f"{field}.vector.values"))


def to_actions(
    messages: Sequence[pb.Action], package: VideoPackage, field: str, *, limit: int, least: int = 1
) -> list[domain.Action]:
    """Checks a list of actions and its length."""
    if not least <= len(messages) <= limit:
        raise InvalidRequest(
            field,
            f"{field} must hold {least} to {limit} actions, got {len(messages)}",
            limit=limit,
            count=len(messages),
        )
    return [to_action(message, package, f"{field}[{index}]") for index, message in enumerate(messages)]


def to_terms(
    message: pb.CreateSessionRequest | pb.GenerateRequest, served: Served, settings: VideoSettings
) -> tuple[int, int, domain.KvPolicy]:
    """Seed, nfe and KV policy of a new world."""
    package = served.package
    policy = to_policy(message.kv, package, settings, served.worlds.engine.pools)
    return to_seed(message.seed, "seed"), to_nfe(message.nfe, package), policy


def to_prompt(message: pb.Origin, package: VideoPackage, settings: VideoSettings) -> Prompt | None:
    """What a model is told of a prompt; None: the world begins with something else."""
    if _check_origin_kind(message) != "prompt":
        return None
    if package.prompt is None:
        raise InvalidRequest("origin.prompt", f"model {package.name} cannot start from a prompt; use start or frames")
    if message.actions:
        raise InvalidRequest("origin.actions", "origin.actions go with origin.frames, not with a prompt")
    limit = settings.max_prompt_chars
    if len(message.prompt) > limit:
        raise InvalidRequest(
            "origin.prompt",
            f"origin.prompt must hold 1 to {limit} characters, got {len(message.prompt)}",
            limit=limit,
            count=len(message.prompt),
        )
    return read_prompt(message.prompt, package.prompt)


def to_origin(message: pb.Origin, served: Served, policy: domain.KvPolicy, settings: VideoSettings) -> domain.Origin:
    """Where a world begins that has a start or frames."""
    package = served.package
    if _check_origin_kind(message) == "start":
        if message.actions:
            raise InvalidRequest("origin.actions", "origin.actions go with origin.frames, not with a named start")
        origin = served.starts.get(message.start)
        if origin is None:
            raise NotFound("start", message.start, known=sorted(served.starts))
    else:
        chunks = to_chunks(message.frames, package, settings)
        actions = _between(message.actions, len(chunks), package)
        origin = domain.Origin(tuple(chunks), tuple(actions))
    if policy.kind is domain.PolicyKind.FULL and len(origin.chunks) > policy.window_chunks:
        raise InvalidRequest(
            "origin",
            f"origin must hold 1 to {policy.window_chunks} chunks under kv policy full, got {len(origin.chunks)}",
            limit=policy.window_chunks,
            count=len(origin.chunks),
        )
    return origin


def to_chunks(message: common.Frames, package: VideoPackage, settings: VideoSettings) -> list[bytes]:
    """A client's frames as chunks of uint8 pixels [frames_per_chunk, height, width, 3]."""
    limit = package.kv.window * package.frames_per_chunk
    pixels = read_frames(
        message,
        "origin.frames",
        height_px=package.frame.height_px,
        width_px=package.frame.width_px,
        max_pixels=settings.max_image_pixels,
        check_count=lambda count: _check_frame_count(count, package, limit),
    )
    size = package.chunk_bytes
    return [pixels[offset : offset + size] for offset in range(0, len(pixels), size)]


def to_policy(
    message: pb.KvPolicy,
    package: VideoPackage,
    settings: VideoSettings,
    offered: Collection[domain.Storage] = tuple(domain.Storage),
) -> domain.KvPolicy:
    """A KV policy, defaults filled in; its storage one of those offered."""
    if message.kind not in _POLICY_KINDS:
        raise InvalidRequest("kv.kind", f"kv.kind must be 0 to {max(_POLICY_KINDS)}, got {message.kind}")
    kind = _POLICY_KINDS[message.kind]
    most = package.kv.window
    window = message.window_chunks or most
    if not 1 <= window <= most:
        raise OutOfRange("kv.window_chunks", window, 1, most)
    _check_unset(message, kind)
    storage = _storage(message, offered)
    match kind:
        case domain.PolicyKind.SINK_WINDOW:
            return domain.KvPolicy(kind, window, _sink(message, window, settings), storage)
        case domain.PolicyKind.RETRIEVE:
            sink = _sink(message, window, settings)
            recent = message.recent_chunks or max(1, (window - sink) // 2)
            if not 1 <= recent <= window - sink:
                raise OutOfRange("kv.recent_chunks", recent, 1, window - sink)
            return domain.KvPolicy(kind, window, sink, storage, recent, _bank(message, settings))
        case domain.PolicyKind.PLUGIN:
            if message.plugin not in plugin_names():
                raise UnknownPolicy(message.plugin, plugin_names())
            policy = domain.KvPolicy(
                kind, window, storage=storage, bank_chunks=_bank(message, settings), plugin=message.plugin
            )
            resolve(policy)  # one that cannot be loaded is refused here, not at its first chunk
            return policy
        case _:
            return domain.KvPolicy(kind, window, storage=storage)


def _sink(message: pb.KvPolicy, window: int, settings: VideoSettings) -> int:
    sink = message.sink_chunks if message.HasField("sink_chunks") else min(settings.sink_chunks, window - 1)
    if not 0 <= sink < window:
        raise OutOfRange("kv.sink_chunks", sink, 0, window - 1)
    return sink


def _check_unset(message: pb.KvPolicy, kind: domain.PolicyKind) -> None:
    retrieves = kind is domain.PolicyKind.RETRIEVE
    plugged = kind is domain.PolicyKind.PLUGIN
    for field, given, belongs, kinds in (
        (
            "sink_chunks",
            message.sink_chunks,
            retrieves or kind is domain.PolicyKind.SINK_WINDOW,
            "SINK_WINDOW, RETRIEVE",
        ),
        ("recent_chunks", message.recent_chunks, retrieves, "RETRIEVE"),
        ("bank_chunks", message.bank_chunks, retrieves or plugged, "RETRIEVE, PLUGIN"),
        ("plugin", message.plugin, plugged, "PLUGIN"),
    ):
        if given and not belongs:
            raise InvalidRequest(f"kv.{field}", f"kv.{field} goes with the kinds {kinds} only, got {str(given)[:80]}")


def _bank(message: pb.KvPolicy, settings: VideoSettings) -> int:
    bank = message.bank_chunks or min(_BANK_DEFAULT, settings.max_bank_chunks)
    if not 1 <= bank <= settings.max_bank_chunks:
        raise OutOfRange("kv.bank_chunks", bank, 1, settings.max_bank_chunks)
    return bank


def _storage(message: pb.KvPolicy, offered: Collection[domain.Storage]) -> domain.Storage:
    storage = _STORAGES.get(message.storage)
    if storage is None or storage not in offered:
        names = ", ".join(f"STORAGE_{each.name}" for each in offered)
        raise InvalidRequest("kv.storage", f"kv.storage must be one of {names}, got {_enum_name(message, 'storage')}")
    return storage


def to_standing(message: pb.PlayRequest.Continue, package: VideoPackage) -> tuple[int, list[domain.Record]]:
    """Where the reader of a play that broke off stands: the next chunk's index, and the last chunks that it has."""
    if message.chunk_index < 0:
        raise InvalidRequest(
            "begin.resume_from.chunk_index", f"chunk_index must be 0 or more, got {message.chunk_index}"
        )
    records = []
    first = message.chunk_index - len(message.delivered)
    for place, chunk in enumerate(message.delivered):
        field = f"begin.resume_from.delivered[{place}]"
        if chunk.index != first + place or chunk.index < 0:
            raise InvalidRequest(
                f"{field}.index",
                f"{field}.index must be {first + place}: the chunks before {message.chunk_index}, oldest first; "
                f"got {chunk.index}",
            )
        nfe = to_nfe(chunk.nfe, package, f"{field}.nfe")
        records.append(
            domain.Record(
                chunk.index, to_action(chunk.action, package, f"{field}.action"), 0, nfe, _state_hash(chunk, field)
            )
        )
    return message.chunk_index, records


def _state_hash(chunk: pb.PlayRequest.Continue.Delivered, field: str) -> bytes:
    try:
        key = bytes.fromhex(chunk.state_hash)
    except ValueError:
        key = b""
    if len(key) != _STATE_HASH_BYTES:
        raise InvalidRequest(f"{field}.state_hash", f"{field}.state_hash must be 64 hex digits")
    return key


def to_seed(seed: int, field: str) -> int:
    """A seed in range."""
    if not 0 <= seed <= domain.SEED_MAX:
        raise OutOfRange(field, seed, 0, domain.SEED_MAX)
    return seed


def to_fork_seeds(message: pb.ForkRequest, settings: VideoSettings) -> list[int | None]:
    """A seed for each child to make; None: the parent's."""
    count = message.count or 1
    if not 1 <= count <= settings.max_fork_count:
        raise OutOfRange("count", count, 1, settings.max_fork_count)
    if not message.seeds:
        return [None] * count
    if len(message.seeds) != count:
        raise InvalidRequest("seeds", f"seeds must be empty or hold {count}, one a child, got {len(message.seeds)}")
    return [to_seed(seed, f"seeds[{index}]") for index, seed in enumerate(message.seeds)]


def to_nfe(nfe: int, package: VideoPackage, field: str = "nfe") -> int:
    """One of the model's numbers of function evaluations; 0 means its default."""
    choices = sorted(package.sampler.schedules)
    if nfe and nfe not in choices:
        raise InvalidRequest(field, f"{field} must be one of {choices} (0: the default), got {nfe}", nfe=nfe)
    return nfe or package.sampler.default_nfe


def to_ttl(message: Duration, given: bool, *, default_s: float, limit_s: float) -> float:
    """A lease in seconds."""
    if not given:
        return default_s
    seconds = message.seconds + message.nanos / 1e9
    if not 0 < seconds <= limit_s:
        raise InvalidRequest("ttl", f"ttl must be above 0 to {limit_s:g} s, got {seconds:g} s", limit_s=f"{limit_s:g}")
    return seconds


def _discrete(message: pb.Action, kind: str, space: DiscreteActions, field: str) -> int:
    if kind == "id":
        if not 0 <= message.id < len(space.names):
            raise OutOfRange(f"{field}.id", message.id, 0, len(space.names) - 1)
        return message.id
    if kind == "name":
        if message.name not in space.names:
            raise InvalidRequest(
                f"{field}.name", f"{field}.name must be one of {', '.join(space.names)}, got {message.name[:40]!r}"
            )
        return space.names.index(message.name)
    raise InvalidRequest(f"{field}.vector", f"actions are discrete: id 0 to {len(space.names) - 1}, or a name")


def _vector(values: Sequence[float], space: ContinuousActions, field: str) -> tuple[float, ...]:
    if len(values) != space.size:
        raise InvalidRequest(field, f"{field} must hold {space.size} numbers, got {len(values)}", size=space.size)
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise InvalidRequest(f"{field}[{index}]", f"{field}[{index}] must be finite, got {value}")
        if not space.low <= value <= space.high:
            raise OutOfRange(f"{field}[{index}]", value, space.low, space.high)
    return tuple(values)


def _check_origin_kind(message: pb.Origin) -> str:
    kinds = {"start": bool(message.start), "frames": message.HasField("frames"), "prompt": bool(message.prompt)}
    given = [name for name, is_given in kinds.items() if is_given]
    if len(given) != 1:
        what = f"got {' and '.join(given)}" if given else "got none"
        raise InvalidRequest("origin", f"origin must set exactly one of start, frames and prompt, {what}")
    return given[0]


def _between(messages: Sequence[pb.Action], chunk_count: int, package: VideoPackage) -> list[domain.Action]:
    if len(messages) != chunk_count - 1:
        raise InvalidRequest(
            "origin.actions",
            f"origin.actions must hold {chunk_count - 1}, one between each two of {chunk_count} chunks, "
            f"got {len(messages)}",
            expected=chunk_count - 1,
            count=len(messages),
        )
    return [to_action(message, package, f"origin.actions[{index}]") for index, message in enumerate(messages)]


def _check_frame_count(count: int, package: VideoPackage, limit: int) -> None:
    if not 1 <= count <= limit or count % package.frames_per_chunk:
        raise InvalidRequest(
            "origin.frames",
            f"origin.frames must hold 1 to {limit} frames, a multiple of {package.frames_per_chunk}, got {count}",
            limit=limit,
            count=count,
        )


def _enum_name(message: pb.KvPolicy, field: str) -> str:
    number = getattr(message, field)
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = enum.values_by_number.get(number) if enum else None
    return value.name if value else str(number)
