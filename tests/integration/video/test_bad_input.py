"""What bad input gets: a canonical status, ErrorInfo, the helpful detail; and the session stays as it was."""

import asyncio
import io
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from PIL import Image
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.testing import TinyWorld

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
SOME = [pb.Action(id=1)]


def png(width: int = 6, height: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def huge_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))


def tensor(*shape: int, dtype: int = common.Tensor.D_TYPE_UINT8, size: int | None = None) -> common.Frames:
    data = bytes(math.prod(shape) if size is None else size)
    return common.Frames(tensor=common.Tensor(dtype=dtype, shape=shape, data=data))


def origin(**fields: Any) -> dict[str, Any]:
    return {"origin": pb.Origin(**fields)}


# What is wrong in a CreateSession or a Generate: fields, then the field that is named and what is said of it.
BAD_RECIPES: dict[str, tuple[dict[str, Any], str, str]] = {
    "nothing": ({"origin": pb.Origin()}, "origin", "got none"),
    "two_origins": (origin(start="dawn", prompt="x"), "origin", "got start and prompt"),
    "prompt": (origin(prompt="a room"), "origin.prompt", "cannot start from a prompt"),
    "start_with_actions": (origin(start="dawn", actions=SOME), "origin.actions", "not with a named start"),
    "wrong_size": (origin(frames=tensor(1, 5, 6, 3)), "origin.frames.tensor.shape", "[frames, 4, 6, 3]"),
    "wrong_dtype": (
        origin(frames=tensor(1, 4, 6, 3, dtype=common.Tensor.D_TYPE_FLOAT32)),
        "origin.frames.tensor.dtype",
        "must be D_TYPE_UINT8, got D_TYPE_FLOAT32",
    ),
    "short_data": (origin(frames=tensor(1, 4, 6, 3, size=9)), "origin.frames.tensor.data", "72 bytes"),
    "too_many_frames": (origin(frames=tensor(5, 4, 6, 3)), "origin.frames", "must hold 1 to 4 frames"),
    "no_actions_between": (origin(frames=tensor(2, 4, 6, 3)), "origin.actions", "must hold 1"),
    "huge_png": (
        origin(frames=common.Frames(png=[huge_png(20_000, 20_000)])),
        "origin.frames.png[0]",
        "at most 1048576 pixels, got 20000 x 20000",
    ),
    "png_of_another_size": (origin(frames=common.Frames(png=[png(7)])), "origin.frames.png[0]", "got 7 x 4"),
    "cut_png": (origin(frames=common.Frames(png=[png()[:45]])), "origin.frames.png[0]", "cannot be decoded"),
    "no_png": (origin(frames=common.Frames(png=[b"GIF89a"])), "origin.frames.png[0]", "must be a PNG file"),
    "seed_-1": ({"seed": -1}, "seed", "seed must be 0 to 9007199254740991, got -1"),
    "seed_2^53": ({"seed": 2**53}, "seed", f"got {2**53}"),
    "nfe": ({"nfe": 3}, "nfe", "nfe must be one of [1, 2]"),
    "window": ({"kv": pb.KvPolicy(window_chunks=5)}, "kv.window_chunks", "must be 1 to 4, got 5"),
    "sink": ({"kv": pb.KvPolicy(sink_chunks=4)}, "kv.sink_chunks", "must be 0 to 3, got 4"),
    "storage": ({"kv": pb.KvPolicy(storage=77)}, "kv.storage", "STORAGE_INT8, got 77"),
    "policy": ({"kv": pb.KvPolicy(kind=42)}, "kv.kind", "got 42"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
async def test_a_bad_recipe_opens_no_session_and_makes_no_clip(video: Any, case: str) -> None:
    fields, field, said = BAD_RECIPES[case]
    fields = {"model": video.model, "origin": pb.Origin(start="dawn"), **fields}
    for call in (
        video.stub.CreateSession(pb.CreateSessionRequest(**fields)),
        video.stub.Generate(pb.GenerateRequest(actions=SOME, **fields)),
    ):
        refusal = await video.refused(call)
        assert (refusal.code, refusal.reason, refusal.field) == (INVALID, "INVALID_FIELD", field)
        assert said in refusal.message
    assert (await video.stub.List(pb.ListRequest())).sessions == []


@pytest.mark.parametrize("seconds", [0, -1, 86_401])
async def test_a_bad_lease_is_refused(video: Any, seconds: int) -> None:
    ttl = Duration(seconds=seconds)
    name = await video.create()
    for call in (
        video.stub.CreateSession(pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dawn"), ttl=ttl)),
        video.stub.KeepAlive(pb.KeepAliveRequest(session=name, ttl=ttl)),
        video.stub.Fork(pb.ForkRequest(session=name, ttl=ttl)),
        video.stub.Save(pb.SaveRequest(session=name, ttl=ttl)),
    ):
        refusal = await video.refused(call)
        assert (refusal.code, refusal.field) == (INVALID, "ttl")
        assert "above 0 to 86400 s" in refusal.message


@pytest.mark.parametrize(
    ("ref", "resource", "said"),
    [
        (common.ModelRef(name="tinny"), "tinny", "known: tiny"),
        (common.ModelRef(name="tiny", version="2"), "tiny/2", "known: tiny/1"),
        (common.ModelRef(name="tiny", digest="0" * 64), f"tiny@{'0' * 64}", "known: tiny@"),
    ],
)
async def test_an_unknown_model_names_the_known_ones(
    video: Any, ref: common.ModelRef, resource: str, said: str
) -> None:
    start = pb.Origin(start="dawn")
    for call in (
        video.stub.GetModel(pb.GetModelRequest(model=ref)),
        video.stub.CreateSession(pb.CreateSessionRequest(model=ref, origin=start)),
        video.stub.Generate(pb.GenerateRequest(model=ref, origin=start, actions=SOME)),
    ):
        refusal = await video.refused(call)
        assert (refusal.code, refusal.reason) == (NOT_FOUND, "MODEL_NOT_FOUND")
        assert refusal.details["ResourceInfo"].resource_name == resource
        assert said in refusal.message


async def test_a_model_without_a_name_and_an_unknown_start_are_refused(video: Any) -> None:
    refusal = await video.refused(video.stub.GetModel(pb.GetModelRequest()))
    assert (refusal.code, refusal.field) == (INVALID, "model.name")
    request = pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="noon"))
    refusal = await video.refused(video.stub.CreateSession(request))
    assert (refusal.code, refusal.reason) == (NOT_FOUND, "START_NOT_FOUND")
    assert "known: dawn, dusk" in refusal.message


def begin(session: str, **fields: Any) -> pb.PlayRequest:
    return pb.PlayRequest(session=session, begin=pb.PlayRequest.Begin(**fields))


SESSION_CALLS: dict[str, Callable[[Any, str], Any]] = {
    "Step": lambda stub, name: stub.Step(pb.StepRequest(session=name, actions=SOME)),
    "Play": lambda stub, name: stub.Play(iter([begin(name)])),
    "Rollout": lambda stub, name: stub.Rollout(
        pb.RolloutRequest(session=name, sequences=[pb.ActionSequence(actions=SOME)])
    ),
    "Fork": lambda stub, name: stub.Fork(pb.ForkRequest(session=name)),
    "Rewind": lambda stub, name: stub.Rewind(pb.RewindRequest(session=name, chunk_count=1)),
    "Save": lambda stub, name: stub.Save(pb.SaveRequest(session=name)),
    "Get": lambda stub, name: stub.Get(pb.GetRequest(session=name)),
    "Delete": lambda stub, name: stub.Delete(pb.DeleteRequest(session=name)),
    "KeepAlive": lambda stub, name: stub.KeepAlive(pb.KeepAliveRequest(session=name)),
}


@pytest.mark.parametrize("method", SESSION_CALLS)
async def test_an_unknown_or_closed_session_is_not_found(video: Any, method: str) -> None:
    closed = await video.create(chunks=2)
    await video.stub.Delete(pb.DeleteRequest(session=closed))
    for name in (closed, "nobody.video-1", "x" * 10_000):
        refusal = await video.refused(SESSION_CALLS[method](video.stub, name))
        assert (refusal.code, refusal.reason) == (NOT_FOUND, "SESSION_NOT_FOUND")
        assert refusal.details["ResourceInfo"].resource_type == "session"
        assert refusal.details["ResourceInfo"].resource_name[:40] == name[:40]


def rollout(*sequences: list[pb.Action], **fields: Any) -> pb.RolloutRequest:
    return pb.RolloutRequest(sequences=[pb.ActionSequence(actions=actions) for actions in sequences], **fields)


# What is wrong in a call on a session: the call, then the field that is named and what is said of it.
BAD_CALLS: dict[str, tuple[Callable[[Any, str], Any], str, str]] = {
    "no_actions": (lambda s, n: s.Step(pb.StepRequest(session=n)), "actions", "must hold 1 to 256 actions, got 0"),
    "10000_actions": (
        lambda s, n: s.Step(pb.StepRequest(session=n, actions=SOME * 10_000)),
        "actions",
        "must hold 1 to 256 actions, got 10000",
    ),
    "id": (lambda s, n: s.Step(pb.StepRequest(session=n, actions=[*SOME, pb.Action(id=4)])), "actions[1].id", "got 4"),
    "name": (
        lambda s, n: s.Step(pb.StepRequest(session=n, actions=[pb.Action(name="fly")])),
        "actions[0].name",
        "must be one of left, right, stay, poison, got 'fly'",
    ),
    "vector": (
        lambda s, n: s.Step(pb.StepRequest(session=n, actions=[pb.Action(vector=pb.Action.Vector(values=[1]))])),
        "actions[0].vector",
        "actions are discrete",
    ),
    "empty_action": (
        lambda s, n: s.Step(pb.StepRequest(session=n, actions=[pb.Action()])),
        "actions[0]",
        "must set id, name or vector",
    ),
    "instruction": (
        lambda s, n: s.Step(pb.StepRequest(session=n, actions=[pb.Action(id=1, instruction="go")])),
        "actions[0].instruction",
        "takes no instruction",
    ),
    "rewind_past_the_start": (
        lambda s, n: s.Rewind(pb.RewindRequest(session=n, chunk_count=4)),
        "chunk_count",
        "chunk_count must be 1 to 3, got 4",
    ),
    "rewind_0": (lambda s, n: s.Rewind(pb.RewindRequest(session=n)), "chunk_count", "must be 1 to 3, got 0"),
    "rewind_-1": (lambda s, n: s.Rewind(pb.RewindRequest(session=n, chunk_count=-1)), "chunk_count", "got -1"),
    "fork_count": (lambda s, n: s.Fork(pb.ForkRequest(session=n, count=257)), "count", "must be 1 to 256, got 257"),
    "fork_-1": (lambda s, n: s.Fork(pb.ForkRequest(session=n, count=-1)), "count", "got -1"),
    "fork_seeds": (lambda s, n: s.Fork(pb.ForkRequest(session=n, count=2, seeds=[1])), "seeds", "hold 2"),
    "fork_seed": (
        lambda s, n: s.Fork(pb.ForkRequest(session=n, count=2, seeds=[1, -1])),
        "seeds[1]",
        "must be 0 to 9007199254740991, got -1",
    ),
    "no_sequences": (lambda s, n: s.Rollout(rollout(session=n)), "sequences", "must hold 1 to 256, got 0"),
    "257_sequences": (lambda s, n: s.Rollout(rollout(*[SOME] * 257, session=n)), "sequences", "got 257"),
    "empty_sequence": (
        lambda s, n: s.Rollout(rollout(SOME, [], session=n)),
        "sequences[1].actions",
        "must hold 1 to 4096 actions, got 0",
    ),
    "too_many_chunks": (
        lambda s, n: s.Rollout(rollout(*[SOME * 100] * 41, session=n)),
        "sequences",
        "may hold 4096 actions in all, got 4100",
    ),
    "rollout_action": (
        lambda s, n: s.Rollout(rollout(SOME, [*SOME, pb.Action(id=9)], session=n)),
        "sequences[1].actions[1].id",
        "got 9",
    ),
    "rollout_seed": (
        lambda s, n: s.Rollout(pb.RolloutRequest(session=n, sequences=[pb.ActionSequence(actions=SOME, seed=2**53)])),
        "sequences[0].seed",
        "got 9007199254740992",
    ),
    "rollout_frames_from_depth": (
        lambda s, n: s.Rollout(rollout(SOME, session=n, frames_from_depth=-1)),
        "frames_from_depth",
        "must be 0 or more, got -1",
    ),
    "rollout_detail": (lambda s, n: s.Rollout(rollout(SOME, session=n, detail=7)), "detail", "got 7"),
    "play_fps": (lambda s, n: s.Play(iter([begin(n, fps=241)])), "begin.fps", "must be 0 to 240, got 241"),
    "play_fps_nan": (lambda s, n: s.Play(iter([begin(n, fps=math.nan)])), "begin.fps", "got nan"),
    "play_fps_-1": (lambda s, n: s.Play(iter([begin(n, fps=-1)])), "begin.fps", "got -1"),
    "play_lookahead": (lambda s, n: s.Play(iter([begin(n, lookahead_chunks=65)])), "begin.lookahead_chunks", "got 65"),
    "play_idle": (lambda s, n: s.Play(iter([begin(n, idle=9)])), "begin.idle", "got 9"),
    "play_action": (lambda s, n: s.Play(iter([begin(n, actions=[pb.Action(id=9)])])), "begin.actions[0].id", "got 9"),
    "play_nothing": (lambda s, n: s.Play(iter([])), "begin", "must begin with a message"),
    "play_without_begin": (
        lambda s, n: s.Play(iter([pb.PlayRequest(session=n, pause=pb.PlayRequest.Pause())])),
        "begin",
        "must set begin, got pause",
    ),
    "play_without_session": (lambda s, n: s.Play(iter([begin("")])), "session", "must name its session"),
    "play_twice_begun": (lambda s, n: s.Play(iter([begin(n), begin(n)])), "begin", "first message"),
    "play_no_control": (
        lambda s, n: s.Play(iter([begin(n), pb.PlayRequest(session=n)])),
        "control",
        "must set a control",
    ),
    "play_other_session": (
        lambda s, n: s.Play(iter([begin(n), pb.PlayRequest(session="other", stop=pb.PlayRequest.Stop())])),
        "session",
        "within a play, got other",
    ),
    "play_no_actions": (
        lambda s, n: s.Play(iter([begin(n), pb.PlayRequest(act=pb.PlayRequest.Act())])),
        "act.actions",
        "must hold 1 to 256 actions, got 0",
    ),
    "play_rewind": (
        lambda s, n: s.Play(iter([begin(n), pb.PlayRequest(rewind=pb.PlayRequest.Rewind(chunk_count=4))])),
        "chunk_count",
        "must be 1 to 3, got 4",
    ),
    "play_fork": (
        lambda s, n: s.Play(iter([begin(n), pb.PlayRequest(fork=pb.PlayRequest.Fork(count=300))])),
        "count",
        "must be 1 to 256, got 300",
    ),
    "save_nothing_to_restore": (lambda s, n: s.Restore(pb.RestoreRequest()), "snapshot", "exactly one"),
    "restore_twice": (lambda s, n: s.Restore(pb.RestoreRequest(snapshot="a", data=b"b")), "snapshot", "exactly one"),
    "page_size": (lambda s, n: s.List(pb.ListRequest(page_size=1001)), "page_size", "must be 1 to 1000, got 1001"),
    "page_size_-1": (lambda s, n: s.List(pb.ListRequest(page_size=-1)), "page_size", "got -1"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
async def test_a_bad_call_is_refused_and_its_session_stays_as_it_was(video: Any, case: str) -> None:
    call, field, said = BAD_CALLS[case]
    name = await video.create(chunks=3)
    before = await video.get(name)
    refusal = await video.refused(call(video.stub, name))
    assert (refusal.code, refusal.reason, refusal.field) == (INVALID, "INVALID_FIELD", field)
    assert said in refusal.message
    assert refusal.details["ErrorInfo"].metadata["field"] == field
    await video.until(video.is_quiet)
    assert await video.get(name) == before
    assert len((await video.stub.List(pb.ListRequest())).sessions) == 1
    await video.stub.Step(pb.StepRequest(session=name, actions=SOME))


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ([0.5, math.nan], "actions[0].vector.values[1]", "must be finite, got nan"),
        ([math.inf, 0.5], "actions[0].vector.values[0]", "must be finite, got inf"),
        ([1.5, 0.5], "actions[0].vector.values[0]", "must be -1.0 to 1.0, got 1.5"),
        ([0.5], "actions[0].vector.values", "must hold 2 numbers, got 1"),
        ([], "actions[0].vector.values", "must hold 2 numbers, got 0"),
    ],
)
async def test_a_bad_vector_is_refused(start_video: Any, values: list[float], field: str, said: str) -> None:
    video = await start_video(TinyWorld(action_size=2))
    name = await video.create()
    before = await video.get(name)
    action = pb.Action(vector=pb.Action.Vector(values=values))
    refusal = await video.refused(video.stub.Step(pb.StepRequest(session=name, actions=[action])))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert said in refusal.message
    assert await video.get(name) == before
    good = pb.Action(vector=pb.Action.Vector(values=[-1.0, 0.5]))
    assert (await video.stub.Step(pb.StepRequest(session=name, actions=[good]))).chunk_index == 1


async def test_of_two_steps_at_once_one_is_told_that_the_session_is_busy(start_video: Any) -> None:
    video = await start_video(TinyWorld(work=12))
    name = await video.create()
    request = pb.StepRequest(session=name, actions=SOME * 8)
    outcomes = await asyncio.gather(
        *(asyncio.ensure_future(_answer(video, request)) for _ in range(2)), return_exceptions=False
    )
    (refusal,) = [outcome for outcome in outcomes if not isinstance(outcome, pb.StepResponse)]
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "SESSION_BUSY")
    assert "busy with a Step" in refusal.message
    assert refusal.details["ErrorInfo"].metadata["session"] == name
    assert (await video.get(name)).session.chunk_index == 8


async def _answer(video: Any, request: pb.StepRequest) -> Any:
    try:
        return await video.stub.Step(request)
    except grpc.aio.AioRpcError as error:
        return await video.refused(_raise(error))


async def _raise(error: Exception) -> None:
    raise error


async def test_a_rewind_from_another_index_than_expected_is_aborted(video: Any) -> None:
    name = await video.create(chunks=3)
    request = pb.RewindRequest(session=name, chunk_count=1, expected_chunk_index=5)
    refusal = await video.refused(video.stub.Rewind(request))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "CHUNK_INDEX_MISMATCH")
    assert dict(refusal.details["ErrorInfo"].metadata) == {"expected": "5", "actual": "3"}
    assert (await video.get(name)).session.chunk_index == 3


async def test_a_session_at_its_start_cannot_go_back(video: Any) -> None:
    refusal = await video.refused(video.stub.Rewind(pb.RewindRequest(session=await video.create(), chunk_count=1)))
    assert (refusal.code, refusal.field) == (INVALID, "chunk_count")
    assert "stands at its start" in refusal.message


async def test_frames_that_are_not_finite_are_a_loss_for_their_session_alone(video: Any) -> None:
    name, other = await video.create(chunks=1), await video.create(chunks=1)
    before = await video.get(name)
    poisoned = pb.StepRequest(session=name, actions=[*SOME, pb.Action(name="poison")])
    refusal, answer = await asyncio.gather(
        video.refused(video.stub.Step(poisoned)), video.stub.Step(pb.StepRequest(session=other, actions=SOME * 4))
    )
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "MODEL_OUTPUT_NOT_FINITE")
    assert refusal.details["ErrorInfo"].metadata["chunk_index"] == "2"
    assert answer.chunk_index == 5
    assert await video.get(name) == before


async def test_a_full_window_is_a_failed_precondition(video: Any) -> None:
    name = await video.create(start="dawn", kv=pb.KvPolicy(kind=pb.KvPolicy.KIND_FULL))
    refusal = await video.refused(video.stub.Step(pb.StepRequest(session=name, actions=SOME * 4)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KV_WINDOW_FULL")
    assert refusal.details["PreconditionFailure"].violations[0].subject == "kv.kind"
    assert (await video.get(name)).session.chunk_index == 0
    assert (await video.stub.Step(pb.StepRequest(session=name, actions=SOME * 3))).chunk_index == 3


@pytest.mark.parametrize("data", [b"no snapshot", b"\x10" + bytes(200)])
async def test_bytes_that_are_no_snapshot_are_a_data_loss(video: Any, data: bytes) -> None:
    refusal = await video.refused(video.stub.Restore(pb.RestoreRequest(data=data)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "SNAPSHOT_CORRUPT")


async def test_an_unknown_snapshot_is_not_found(video: Any) -> None:
    refusal = await video.refused(video.stub.Restore(pb.RestoreRequest(snapshot="snapshot-0")))
    assert (refusal.code, refusal.reason) == (NOT_FOUND, "SNAPSHOT_NOT_FOUND")
    assert refusal.details["ResourceInfo"].resource_name == "snapshot-0"
