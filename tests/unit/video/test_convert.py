"""Every refusal names the field, its value and the limit."""

import io
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from PIL import Image
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.errors import InvalidRequest, Kind, NotFound, WorldtreeError
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage
from worldtree_video import convert, replies
from worldtree_video.config import VideoSettings
from worldtree_video.domain import Action, KvPolicy, PolicyKind

SETTINGS = VideoSettings()
DISCRETE = VideoPackage.model_validate(TinyWorld().manifest())
PAIRS = VideoPackage.model_validate(TinyWorld(frames_per_chunk=2).manifest())
CONTINUOUS = VideoPackage.model_validate(
    {**TinyWorld(action_size=2).manifest(), "action": {"kind": "continuous", "size": 2, "low": -0.1, "high": 0.3}}
)
SINK = KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)


def refused(call: Any, *arguments: Any, **options: Any) -> WorldtreeError:
    with pytest.raises(WorldtreeError) as caught:
        call(*arguments, **options)
    return caught.value


def png(width: int = 6, height: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


def frames(
    shape: tuple[int, ...] = (1, 4, 6, 3), *, dtype: int = common.Tensor.D_TYPE_UINT8, size: int | None = None
) -> common.Frames:
    data = bytes(max(0, math.prod(shape)) if size is None else size)
    return common.Frames(tensor=common.Tensor(dtype=dtype, shape=shape, data=data))


@pytest.mark.parametrize("message", [pb.Action(id=2), pb.Action(name="stay")])
def test_a_discrete_action_goes_by_id_or_name(message: pb.Action) -> None:
    assert convert.to_action(message, DISCRETE, "a") == Action(2)
    assert replies.from_action(Action(2)) == pb.Action(id=2)


@pytest.mark.parametrize(
    ("message", "field", "said"),
    [
        (pb.Action(), "actions[0]", "must set id, name or vector"),
        (pb.Action(id=4), "actions[0].id", "must be 0 to 3, got 4"),
        (pb.Action(id=-1), "actions[0].id", "must be 0 to 3, got -1"),
        (pb.Action(name="fly"), "actions[0].name", "must be one of left, right, stay, poison, got 'fly'"),
        (pb.Action(name=""), "actions[0].name", "got ''"),
        (pb.Action(vector=pb.Action.Vector(values=[1])), "actions[0].vector", "actions are discrete: id 0 to 3"),
        (pb.Action(id=1, instruction="turn"), "actions[0].instruction", "model tiny takes no instruction"),
    ],
)
def test_a_bad_discrete_action_is_refused(message: pb.Action, field: str, said: str) -> None:
    error = refused(convert.to_actions, [message], DISCRETE, "actions", limit=3)
    assert (error.kind, error.field) == (Kind.INVALID, field)
    assert said in error.message


@pytest.mark.parametrize("values", [[-0.1, 0.3], [0.0, -0.0]])
def test_a_vector_at_the_edge_of_its_box_is_inside(values: list[float]) -> None:
    """-0.1 as a 32-bit float lies below -0.1 as a 64-bit one."""
    action = convert.to_action(pb.Action(vector=pb.Action.Vector(values=values)), CONTINUOUS, "a")
    assert action.value == pytest.approx(tuple(values))
    assert replies.from_action(action).vector.values == pytest.approx(values)


@pytest.mark.parametrize(
    ("message", "field", "said"),
    [
        (pb.Action(id=1), "a.id", "takes vectors of 2 numbers"),
        (pb.Action(name="left"), "a.name", "takes vectors of 2 numbers"),
        (pb.Action(vector=pb.Action.Vector(values=[0.1])), "a.vector.values", "must hold 2 numbers, got 1"),
        (pb.Action(vector=pb.Action.Vector(values=[0.1] * 3)), "a.vector.values", "must hold 2 numbers, got 3"),
        (pb.Action(vector=pb.Action.Vector()), "a.vector.values", "must hold 2 numbers, got 0"),
        (pb.Action(vector=pb.Action.Vector(values=[0, math.nan])), "a.vector.values[1]", "must be finite, got nan"),
        (pb.Action(vector=pb.Action.Vector(values=[math.inf, 0])), "a.vector.values[0]", "must be finite, got inf"),
        (pb.Action(vector=pb.Action.Vector(values=[0, 0.5])), "a.vector.values[1]", "got 0.5"),
        (pb.Action(vector=pb.Action.Vector(values=[-0.5, 0])), "a.vector.values[0]", "got -0.5"),
    ],
)
def test_a_bad_vector_is_refused(message: pb.Action, field: str, said: str) -> None:
    error = refused(convert.to_action, message, CONTINUOUS, "a")
    assert (error.kind, error.field) == (Kind.INVALID, field)
    assert said in error.message


@pytest.mark.parametrize("count", [0, 4, 10_000])
def test_a_list_of_too_few_or_too_many_actions_is_refused_with_its_length(count: int) -> None:
    error = refused(convert.to_actions, [pb.Action(id=9)] * count, DISCRETE, "actions", limit=3)
    assert error.field == "actions"
    assert error.message == f"actions must hold 1 to 3 actions, got {count}"
    assert (error.metadata["limit"], error.metadata["count"]) == ("3", str(count))


@pytest.mark.parametrize("seed", [0, 7, 2**53 - 1])
def test_a_seed_in_range_is_taken(seed: int) -> None:
    assert convert.to_seed(seed, "seed") == seed


@pytest.mark.parametrize("seed", [-1, 2**53, 2**63 - 1, -(2**63)])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    error = refused(convert.to_seed, seed, "seeds[3]")
    assert error.field == "seeds[3]"
    assert error.message == f"seeds[3] must be 0 to 9007199254740991, got {seed}"
    assert error.metadata["high"] == str(2**53 - 1)


def test_nfe_is_one_of_the_models_and_0_its_default() -> None:
    assert [convert.to_nfe(nfe, DISCRETE) for nfe in (0, 1, 2)] == [2, 1, 2]


@pytest.mark.parametrize("nfe", [3, -1, 2**31 - 1])
def test_another_nfe_is_refused_with_the_choices(nfe: int) -> None:
    error = refused(convert.to_nfe, nfe, DISCRETE)
    assert (error.field, error.message) == ("nfe", f"nfe must be one of [1, 2] (0: the default), got {nfe}")


@pytest.mark.parametrize(
    ("message", "policy"),
    [
        (pb.KvPolicy(), KvPolicy(PolicyKind.SINK_WINDOW, 4, 1)),
        (pb.KvPolicy(window_chunks=1), KvPolicy(PolicyKind.SINK_WINDOW, 1, 0)),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_SINK_WINDOW, sink_chunks=0), KvPolicy(PolicyKind.SINK_WINDOW, 4, 0)),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_SLIDING, window_chunks=2), KvPolicy(PolicyKind.SLIDING, 2)),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_SLIDING, sink_chunks=0), KvPolicy(PolicyKind.SLIDING, 4)),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_FULL, storage=pb.KvPolicy.STORAGE_FP32), KvPolicy(PolicyKind.FULL, 4)),
    ],
)
def test_a_kv_policy_has_its_defaults_filled_in(message: pb.KvPolicy, policy: KvPolicy) -> None:
    assert convert.to_policy(message, DISCRETE, SETTINGS) == policy


@pytest.mark.parametrize(
    ("message", "field", "said"),
    [
        (pb.KvPolicy(window_chunks=5), "kv.window_chunks", "must be 1 to 4, got 5"),
        (pb.KvPolicy(window_chunks=-1), "kv.window_chunks", "must be 1 to 4, got -1"),
        (pb.KvPolicy(sink_chunks=4), "kv.sink_chunks", "must be 0 to 3, got 4"),
        (pb.KvPolicy(sink_chunks=-1), "kv.sink_chunks", "must be 0 to 3, got -1"),
        (
            pb.KvPolicy(kind=pb.KvPolicy.KIND_FULL, sink_chunks=1),
            "kv.sink_chunks",
            "goes with the kinds SINK_WINDOW, RETRIEVE only",
        ),
        (pb.KvPolicy(kind=9), "kv.kind", "must be 0 to 5, got 9"),
        (pb.KvPolicy(recent_chunks=1), "kv.recent_chunks", "goes with the kinds RETRIEVE only"),
        (pb.KvPolicy(bank_chunks=1), "kv.bank_chunks", "goes with the kinds RETRIEVE, PLUGIN only"),
        (pb.KvPolicy(plugin="x"), "kv.plugin", "goes with the kinds PLUGIN only, got x"),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_RETRIEVE, recent_chunks=4), "kv.recent_chunks", "must be 1 to 3, got 4"),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_RETRIEVE, recent_chunks=-1), "kv.recent_chunks", "must be 1 to 3, got -1"),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_RETRIEVE, bank_chunks=257), "kv.bank_chunks", "must be 1 to 256, got 257"),
        (pb.KvPolicy(kind=pb.KvPolicy.KIND_PLUGIN, plugin="nobodys"), "kv.plugin", "is not installed here"),
        (pb.KvPolicy(storage=77), "kv.storage", "got 77"),
    ],
)
def test_a_bad_kv_policy_is_refused(message: pb.KvPolicy, field: str, said: str) -> None:
    error = refused(convert.to_policy, message, DISCRETE, SETTINGS)
    assert error.field == field
    assert said in error.message


@pytest.mark.parametrize("seconds", [0, -5, 100.5, 1e9])
def test_a_lease_of_no_time_or_too_much_is_refused(seconds: float) -> None:
    message = Duration(seconds=int(seconds), nanos=int((seconds - int(seconds)) * 1e9))
    error = refused(convert.to_ttl, message, True, default_s=10, limit_s=100)
    assert error.field == "ttl"
    assert f"ttl must be above 0 to 100 s, got {seconds:g} s" == error.message


def test_a_lease_that_is_not_given_is_the_default() -> None:
    assert convert.to_ttl(Duration(), False, default_s=10, limit_s=100) == 10
    assert convert.to_ttl(Duration(nanos=1), True, default_s=10, limit_s=100) == 1e-9


def test_frames_of_both_kinds_become_chunks() -> None:
    pixels = np.arange(2 * 72, dtype=np.uint8).tobytes()
    tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=(2, 4, 6, 3), data=pixels)
    assert convert.to_chunks(common.Frames(tensor=tensor), DISCRETE, SETTINGS) == [pixels[:72], pixels[72:]]
    assert convert.to_chunks(common.Frames(tensor=tensor), PAIRS, SETTINGS) == [pixels]
    assert convert.to_chunks(common.Frames(png=[png()] * 2), PAIRS, SETTINGS) == [bytes([1, 2, 3]) * 48]


T = "origin.frames.tensor"


@pytest.mark.parametrize(
    ("message", "field", "said"),
    [
        (common.Frames(), "origin.frames", "must set exactly one of tensor and png"),
        (common.Frames(tensor=common.Tensor(), png=[b"x"]), "origin.frames", "must set exactly one"),
        (frames(dtype=common.Tensor.D_TYPE_FLOAT32), f"{T}.dtype", "must be D_TYPE_UINT8, got D_TYPE_FLOAT32"),
        (frames(dtype=0), f"{T}.dtype", "got D_TYPE_UNSPECIFIED"),
        (frames(dtype=99), f"{T}.dtype", "got 99"),
        (frames((1, 6, 4, 3)), f"{T}.shape", "must be [frames, 4, 6, 3], got [1, 6, 4, 3]"),
        (frames((4, 6, 3)), f"{T}.shape", "got [4, 6, 3]"),
        (frames((1, 4, 6, 1)), f"{T}.shape", "got [1, 4, 6, 1]"),
        (frames(()), f"{T}.shape", "got []"),
        (frames((0, 4, 6, 3)), "origin.frames", "must hold 1 to 4 frames, a multiple of 1, got 0"),
        (frames((5, 4, 6, 3)), "origin.frames", "must hold 1 to 4 frames, a multiple of 1, got 5"),
        (frames((-1, 4, 6, 3), size=72), "origin.frames", "got -1"),
        (frames((2**62, 4, 6, 3), size=72), "origin.frames", f"got {2**62}"),
        (frames(size=71), f"{T}.data", "must hold 72 bytes for shape [1, 4, 6, 3], got 71"),
        (frames(size=0), f"{T}.data", "got 0"),
        (common.Frames(png=[png()] * 5), "origin.frames", "must hold 1 to 4 frames, a multiple of 1, got 5"),
        (common.Frames(png=[png(), png(7)]), "origin.frames.png[1]", "must be 6 x 4 pixels, got 7 x 4"),
        (common.Frames(png=[b"GIF89a"]), "origin.frames.png[0]", "must be a PNG file, got 6 other bytes"),
        (common.Frames(png=[png()[:-30]]), "origin.frames.png[0]", "cannot be decoded"),
        (common.Frames(png=[png(1025, 1024)]), "origin.frames.png[0]", "at most 1048576 pixels, got 1025 x 1024"),
    ],
)
def test_bad_frames_are_refused(message: common.Frames, field: str, said: str) -> None:
    error = refused(convert.to_chunks, message, DISCRETE, SETTINGS)
    assert (error.kind, error.field) == (Kind.INVALID, field)
    assert said in error.message


def test_frames_that_do_not_fill_their_chunks_are_refused() -> None:
    error = refused(convert.to_chunks, frames((3, 4, 6, 3)), PAIRS, SETTINGS)
    assert "must hold 1 to 8 frames, a multiple of 2, got 3" in error.message


@pytest.mark.parametrize(
    ("origin", "field", "said"),
    [
        (pb.Origin(), "origin", "exactly one of start, frames and prompt, got none"),
        (pb.Origin(start="dawn", frames=frames()), "origin", "got start and frames"),
        (pb.Origin(start="dawn", prompt="a room"), "origin", "got start and prompt"),
        (pb.Origin(start="dawn", actions=[pb.Action(id=1)]), "origin.actions", "not with a named start"),
        (
            pb.Origin(frames=frames((3, 4, 6, 3))),
            "origin.actions",
            "must hold 2, one between each two of 3 chunks, got 0",
        ),
        (pb.Origin(frames=frames(), actions=[pb.Action(id=1)]), "origin.actions", "must hold 0"),
        (pb.Origin(frames=frames((2, 4, 6, 3)), actions=[pb.Action(id=9)]), "origin.actions[0].id", "got 9"),
    ],
)
def test_a_bad_origin_is_refused(serve: Any, origin: pb.Origin, field: str, said: str) -> None:
    error = refused(convert.to_origin, origin, serve(), SINK, SETTINGS)
    assert (error.kind, error.field) == (Kind.INVALID, field)
    assert said in error.message


def test_a_prompt_is_refused_by_a_model_that_takes_none() -> None:
    error = refused(convert.to_prompt, pb.Origin(prompt="a room"), DISCRETE, SETTINGS)
    assert (error.kind, error.field) == (Kind.INVALID, "origin.prompt")
    assert "model tiny cannot start from a prompt" in error.message


def test_an_unknown_start_is_not_found_and_the_known_ones_are_named(serve: Any) -> None:
    error = refused(convert.to_origin, pb.Origin(start="noon"), serve(), SINK, SETTINGS)
    assert isinstance(error, NotFound)
    assert (error.resource_type, error.resource_name) == ("start", "noon")
    assert "dawn, dusk" in error.message


def test_a_start_that_fills_a_full_policy_more_than_up_is_refused(serve: Any) -> None:
    error = refused(convert.to_origin, pb.Origin(start="dusk"), serve(), KvPolicy(PolicyKind.FULL, 2), SETTINGS)
    assert isinstance(error, InvalidRequest)
    assert error.message == "origin must hold 1 to 2 chunks under kv policy full, got 3"
