"""Worlds that begin with words, over the wire."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.testing import PROMPT_WORDS, TinyWorld

SOME = [pb.Action(id=1)]
WORLDS = [
    TinyWorld(prompt=True),
    TinyWorld(prompt=True, sampler="euler", frames_per_chunk=2),
    TinyWorld(prompt=True, latent=True),
]


def asked(video: Any, prompt: str, *, seed: int = 7, **fields: Any) -> dict[str, Any]:
    return {"model": video.model, "origin": pb.Origin(prompt=prompt), "seed": seed, **fields}


async def opened(video: Any, prompt: str, **fields: Any) -> pb.CreateSessionResponse:
    return await video.stub.CreateSession(pb.CreateSessionRequest(**asked(video, prompt, **fields)))


@pytest.mark.parametrize("tiny", WORLDS, ids=["renoise", "euler", "latent"])
async def test_equal_words_and_seed_give_the_same_first_chunk_and_others_another(
    start_video: Any, tiny: TinyWorld
) -> None:
    video = await start_video(tiny)
    first = await opened(video, "red door")
    assert list(first.frames.tensor.shape) == [tiny.frames_per_chunk, 4, 6, 3]
    assert list(first.warnings) == []
    again = await opened(video, "a RED doors")
    assert again.frames == first.frames
    assert list(again.warnings) == ["the model does not know 1 of the prompt's words, and ignores them: a"]
    others = [await opened(video, "door red"), await opened(video, "red"), await opened(video, "red door", seed=8)]
    pictures = {each.frames.tensor.data for each in (first, *others)}
    assert len(pictures) == 4
    assert first.session.start == ""
    assert len({again.session.state_hash, first.session.state_hash}) == 1


@pytest.mark.parametrize("tiny", WORLDS, ids=["renoise", "euler", "latent"])
async def test_a_world_of_words_is_the_world_of_its_first_frames(start_video: Any, tiny: TinyWorld) -> None:
    """So all that holds of worlds holds of it: rewind, journal and snapshot know nothing of prompts."""
    video = await start_video(tiny)
    world = await opened(video, "blue key")
    origin = pb.Origin(frames=world.frames)
    twin = await video.stub.CreateSession(pb.CreateSessionRequest(model=video.model, origin=origin, seed=7))
    assert twin.session.state_hash == world.session.state_hash
    steps = [
        await video.stub.Step(pb.StepRequest(session=each.session.session, actions=SOME * 3)) for each in (world, twin)
    ]
    assert [chunk.frames for chunk in steps[0].chunks] == [chunk.frames for chunk in steps[1].chunks]
    saved = await video.stub.Save(pb.SaveRequest(session=world.session.session))
    restored = await video.stub.Restore(pb.RestoreRequest(snapshot=saved.snapshot))
    assert restored.session.state_hash == steps[0].chunks[-1].state_hash


async def test_a_clip_begins_with_the_scene_and_its_warnings(start_video: Any) -> None:
    video = await start_video(TinyWorld(prompt=True))
    world = await opened(video, "red dragon")
    pieces = [
        piece async for piece in video.stub.Generate(pb.GenerateRequest(actions=SOME * 2, **asked(video, "red dragon")))
    ]
    assert pieces[0].start_frames == world.frames
    assert "dragon" in pieces[0].warnings[0]
    assert [len(piece.warnings) for piece in pieces[1:]] == [0, 0]


async def test_a_repeat_with_one_request_id_opens_one_session(start_video: Any) -> None:
    video = await start_video(TinyWorld(prompt=True))
    answers = [await opened(video, "red dragon", request_id="one") for _ in range(2)]
    assert answers[0].session.session == answers[1].session.session
    assert answers[0].warnings == answers[1].warnings


async def test_a_repeat_finds_its_session_when_a_version_without_prompts_is_the_newest(
    start_video: Any, tmp_path: Path
) -> None:
    TinyWorld(prompt=True).write(tmp_path / "models")
    video = await start_video(models=tmp_path / "models", reload_s=0.05)
    first = await opened(video, "red dragon", request_id="one")
    TinyWorld(version="2").write(tmp_path / "models")

    async def newest() -> str:
        return str((await video.stub.GetModel(pb.GetModelRequest(model=video.model))).model.ref.version)

    async def replaced() -> bool:
        return await newest() == "2"

    await video.until(replaced, timeout_s=30)
    again = await opened(video, "red dragon", request_id="one")
    assert (again.session.session, again.frames, again.warnings) == (
        first.session.session,
        first.frames,
        first.warnings,
    )
    refusal = await video.refused(video.stub.CreateSession(pb.CreateSessionRequest(**asked(video, "red"))))
    assert refusal.field == "origin.prompt"


async def test_scenes_are_drawn_one_at_a_time_also_when_their_callers_leave(start_video: Any) -> None:
    video = await start_video(TinyWorld(prompt=True), max_waiting_scenes=3)
    scene = next(iter(video.catalog)).scene
    running, most, release = 0, 0, threading.Event()
    draw = scene._draw

    def slow(tokens: Any, seed: int) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(10)
        drawn = draw(tokens, seed)
        running -= 1
        return bytes(drawn)

    scene._draw = slow
    calls = [video.stub.CreateSession(pb.CreateSessionRequest(**asked(video, "red", seed=seed))) for seed in range(4)]
    await video.until(lambda: running == 1 and scene._waiting_count == 3)
    refusal = await video.refused(video.stub.CreateSession(pb.CreateSessionRequest(**asked(video, "red"))))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SCENES_BUSY")
    assert refusal.details["ErrorInfo"].metadata["limit"] == "3"
    assert "RetryInfo" in refusal.details
    calls[0].cancel()  # the one that is drawn
    calls[1].cancel()  # one that waits
    await video.until(lambda: scene._waiting_count == 2)
    release.set()
    answers = await asyncio.gather(*calls[2:])
    assert len({answer.frames.tensor.data for answer in answers}) == 2
    assert most == 1


@pytest.mark.parametrize(
    ("settings", "fields", "reason"), [({}, {"nfe": 99}, "INVALID_FIELD"), ({"max_sessions": 1}, {}, "SESSION_LIMIT")]
)
async def test_nothing_is_drawn_for_a_world_that_is_refused(
    start_video: Any, settings: dict[str, Any], fields: dict[str, Any], reason: str
) -> None:
    video = await start_video(TinyWorld(prompt=True), **settings)
    await video.create()
    scene = next(iter(video.catalog)).scene
    draws = []
    scene._draw = lambda *terms: draws.append(terms)
    refusal = await video.refused(video.stub.CreateSession(pb.CreateSessionRequest(**asked(video, "red", **fields))))
    assert refusal.reason == reason
    assert draws == []


async def test_a_model_says_what_prompts_may_say(start_video: Any) -> None:
    video = await start_video(TinyWorld(prompt=True))
    model = (await video.stub.GetModel(pb.GetModelRequest(model=video.model))).model
    assert model.prompt_supported
    assert list(model.prompt_space.words) == list(PROMPT_WORDS)
    assert (model.prompt_space.token_limit, list(model.prompt_space.examples)) == (4, ["a red door"])


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "actions": ({"origin": pb.Origin(prompt="door", actions=SOME)}, "origin.actions", "not with a prompt"),
    "long": ({"origin": pb.Origin(prompt="x" * 1001)}, "origin.prompt", "must hold 1 to 1000 characters, got 1001"),
    "seed": ({"seed": -1}, "seed", "seed must be 0 to"),
    "nfe": ({"nfe": 3}, "nfe", "nfe must be one of [1, 2]"),
    "two": ({"origin": pb.Origin(prompt="door", start="dawn")}, "origin", "got start and prompt"),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_prompt_opens_no_session_and_makes_no_clip(start_video: Any, case: str) -> None:
    video = await start_video(TinyWorld(prompt=True))
    fields, field, said = BAD[case]
    fields = {"model": video.model, "origin": pb.Origin(prompt="door"), **fields}
    for call in (
        video.stub.CreateSession(pb.CreateSessionRequest(**fields)),
        video.stub.Generate(pb.GenerateRequest(**fields, actions=SOME)),
    ):
        refusal = await video.refused(call)
        assert (refusal.code, refusal.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        assert said in refusal.message
    assert len((await video.stub.List(pb.ListRequest())).sessions) == 0


def _spoilt(folder: Path, change: Callable[[Any], None]) -> None:
    graph = onnx.load(folder / "scene.onnx")
    change(graph.graph)
    onnx.save(graph, folder / "scene.onnx")


async def test_a_scene_that_is_not_finite_opens_no_session(start_video: Any, tmp_path: Path) -> None:
    folder = TinyWorld(prompt=True).write(tmp_path / "spoilt")

    def logarithm(graph: Any) -> None:
        # Of what lies below 0, as half of a picture does, there is none.
        (last,) = [node for node in graph.node if "x0" in node.output]
        last.output[0] = "whole"
        graph.node.append(onnx.helper.make_node("Log", ["whole"], ["x0"]))

    _spoilt(folder, logarithm)
    video = await start_video(models=tmp_path / "spoilt")
    refusal = await video.refused(video.stub.CreateSession(pb.CreateSessionRequest(**asked(video, "door"))))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "MODEL_OUTPUT_NOT_FINITE")
    assert "prompt's scene" in refusal.message
    assert len((await video.stub.List(pb.ListRequest())).sessions) == 0
    # The same world still opens from a start.
    assert await video.create()


async def test_a_scene_graph_for_another_number_of_words_is_refused_at_load(start_video: Any, tmp_path: Path) -> None:
    folder = TinyWorld(prompt=True).write(tmp_path / "spoilt")
    manifest = folder / "model.yaml"
    manifest.write_text(manifest.read_text().replace("tokens: 4", "tokens: 5"))
    with pytest.raises(PackageError, match=r"scene\.onnx: input tokens: must have shape \(None, 5\)"):
        await start_video(models=tmp_path / "spoilt")


async def test_a_scene_is_noise_of_its_own_and_not_that_of_the_first_chunk(start_video: Any) -> None:
    video = await start_video(TinyWorld(prompt=True))
    world = await opened(video, "red")
    step = await video.stub.Step(pb.StepRequest(session=world.session.session, actions=SOME))
    scene, first = (
        np.frombuffer(each.tensor.data, np.uint8).astype(float) for each in (world.frames, step.chunks[0].frames)
    )
    assert abs(np.corrcoef(scene, first)[0, 1]) < 0.5
